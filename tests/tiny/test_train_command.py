from click.testing import CliRunner

from forcing_kv.cli.train_tiny import command


def test_checkpoints_are_not_overwritten_by_accident(tmp_path):
    (tmp_path / "vae.pt").write_bytes(b"")
    result = CliRunner().invoke(command, ["-o", str(tmp_path)])
    assert result.exit_code == 2
    assert "add --resume" in result.stderr


def test_a_stage_out_of_order_says_which_one_comes_first(tmp_path):
    result = CliRunner().invoke(command, ["-o", str(tmp_path), "--stage", "transformer"])
    assert result.exit_code != 0
    assert "run the stage 'latents' first" in str(result.exception)


def test_help_names_the_stages():
    result = CliRunner().invoke(command, ["--help"])
    assert "vae|latents|transformer|decoder|export" in result.stdout.replace("\n", "").replace(" ", "")
