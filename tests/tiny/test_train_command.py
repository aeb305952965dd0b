from click.testing import CliRunner

from forcing_kv.cli.train_tiny import command
from forcing_kv.tiny.training.recipe import STAGES
from forcing_kv.tiny.training.trainer import Progress


def test_checkpoints_are_not_overwritten_by_accident(tmp_path):
    (tmp_path / "vae.pt").write_bytes(b"")
    result = CliRunner().invoke(command, ["-o", str(tmp_path)])
    assert result.exit_code == 2
    assert "add --resume" in result.stderr


def test_a_stage_out_of_order_says_which_one_comes_first(tmp_path):
    result = CliRunner().invoke(command, ["-o", str(tmp_path), "--stage", "transformer"])
    assert result.exit_code != 0
    assert "run the stage 'latents' first" in str(result.exception)


def test_help_names_the_stages_and_what_they_take():
    result = CliRunner().invoke(command, ["--help"])
    assert "vae|sharpen|latents|transformer|decoder|export" in result.stdout.replace("\n", "").replace(" ", "")
    lines = [line.split() for line in result.stdout.splitlines() if line.strip()]
    told = [words[0] for words in lines if words[0] in (*STAGES, "export") and len(words) > 3]
    assert told == [*STAGES, "export"]
    assert "hours on two CPU cores" in result.stdout


def test_stages_run_one_by_one_to_the_model_folder(tmp_path, monkeypatch):
    """With everything that takes time left out: what is called, with what, and where the model is said to lie."""
    called = []

    def stage(name):
        def run(folder, recipe, **settings):
            called.append((name, folder, recipe.seed, recipe.vae.last_step, settings.get("max_seconds")))
            return [Progress(step=5, num_steps=5, loss=0.5, seconds=60.0)]

        return run

    for name in ("train_vae", "sharpen_vae", "encode_training_set", "train_transformer", "train_decoder"):
        monkeypatch.setattr(f"forcing_kv.tiny.training.recipe.{name}", stage(name))
    monkeypatch.setattr("forcing_kv.tiny.training.export.export_model", lambda folder, target, recipe: target)
    output = tmp_path / "run"
    result = CliRunner().invoke(command, ["-o", str(output), "--seed", "3", "--steps", "5", "--minutes", "2"])
    assert result.exit_code == 0, result.output
    assert called == [
        ("train_vae", output, 3, 5, 120),
        ("sharpen_vae", output, 3, 5, 120),
        ("encode_training_set", output, 3, 5, None),
        ("train_transformer", output, 3, 5, 120),
        ("train_decoder", output, 3, 5, 120),
    ]
    assert "transformer step 5/5  loss 0.5000  1.0 min" in result.stdout
    assert f"the model lies in {output / 'model'}" in result.stdout
    called.clear()
    CliRunner().invoke(command, ["-o", str(output), "--stage", "decoder"])
    assert called == [("train_decoder", output, 0, 3200, float("inf"))]
