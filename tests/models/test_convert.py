"""`forcing-kv convert`: bit-exact, whole or not at all."""

import shutil
from dataclasses import replace

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file

from checkpoints import write_released
from forcing_kv import CheckpointError, OutputError, VideoPipeline
from forcing_kv.cli import cli
from forcing_kv.models import RELEASED_MODELS, Components, find_model
from forcing_kv.models.convert import convert

CPU = torch.device("cpu")


def loaded(source, dtype=torch.float32):
    return source.load_transformer(dtype=dtype, device=CPU).state_dict()


@pytest.mark.parametrize("name", RELEASED_MODELS)
def test_a_round_trip_is_bit_exact(name, tmp_path):
    source = write_released(name, tmp_path / "hub").source()
    convert(source, tmp_path / "saved")
    saved = find_model(tmp_path / "saved")
    assert (saved.preset, saved.config, saved.head_map) == (source.preset, source.config, source.head_map)
    assert saved.components == Components.on_hub("Wan-AI/Wan2.1-T2V-1.3B-Diffusers")
    before, after = loaded(source), loaded(saved)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    stored = load_file(tmp_path / "saved" / "transformer" / "diffusion_pytorch_model.safetensors")
    assert stored.keys() == before.keys()
    assert {tensor.dtype for tensor in stored.values()} == {torch.bfloat16 if "krea" in name else torch.float32}
    convert(saved, tmp_path / "again")
    assert (tmp_path / "again/transformer/diffusion_pytorch_model.safetensors").read_bytes() == (
        tmp_path / "saved/transformer/diffusion_pytorch_model.safetensors"
    ).read_bytes()


def test_another_dtype(tmp_path):
    release = write_released("longlive-1.3b", tmp_path / "hub")
    convert(release.source(), tmp_path / "saved", dtype=torch.bfloat16)
    stored = load_file(tmp_path / "saved" / "transformer" / "diffusion_pytorch_model.safetensors")
    weights = loaded(release.source(), torch.bfloat16)
    assert all(torch.equal(stored[name], tensor) for name, tensor in weights.items())


def test_nothing_half_written_is_left(tmp_path, monkeypatch):
    source = write_released("raven-1.3b", tmp_path / "hub").source()
    target = tmp_path / "saved"
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="file is a file: choose another place"):
        convert(source, tmp_path / "file" / "saved")
    (tmp_path / "file").unlink()
    target.mkdir()
    with pytest.raises(OutputError, match="exists: choose another name, or replace it with --overwrite"):
        convert(source, target)

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("forcing_kv.models.folder.save_file", full)
        with pytest.raises(OutputError, match="the disk is full; free some space"):
            convert(source, target, overwrite=True)
    assert list(target.iterdir()) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hub", "saved"]

    with monkeypatch.context() as patched:
        patched.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 9, 1))
        with pytest.raises(OutputError, match=r"needs 0.0 GB, the disk has 0.0 GB free"):
            convert(source, target, overwrite=True)

    convert(source, target, overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hub", "saved"]
    assert loaded(find_model(target)).keys() == loaded(source).keys()


def test_on_the_command_line(tmp_path, tiny_model_folder):
    """A saved folder is a source as well; its text encoder and VAE come along, and the result runs."""
    output = tmp_path / "copy"
    result = CliRunner().invoke(cli, ["convert", "--model", str(tiny_model_folder), "-o", str(output)])
    assert result.exit_code == 0, result.output
    assert result.output == f"{output}: random, 0.01 GB; run it with --model {output}\n"
    frames = VideoPipeline.from_pretrained(output).generate("a red circle", num_frames=9, seed=3)
    expected = VideoPipeline.from_pretrained(tiny_model_folder).generate("a red circle", num_frames=9, seed=3)
    assert torch.equal(frames, expected)

    result = CliRunner().invoke(cli, ["convert", "--model", "raven-1.3b", "--weights", str(output), "-o", str(output)])
    assert result.exit_code == 2
    assert result.stderr.startswith(f"forcing-kv: error: {output} exists")


def test_folders_above_it_are_made(tmp_path):
    source = write_released("raven-1.3b", tmp_path / "hub").source()
    convert(source, tmp_path / "models" / "mine" / "raven")
    assert find_model(tmp_path / "models" / "mine" / "raven").preset == source.preset


def test_components_given_are_copied(tmp_path, tiny_model_folder):
    release = write_released("raven-1.3b", tmp_path / "hub")
    source = release.source(components=tiny_model_folder)
    convert(source, tmp_path / "saved")
    assert find_model(tmp_path / "saved").components == Components.in_folder(tmp_path / "saved")
    for part in ("vae", "text_encoder", "tokenizer"):
        assert (tmp_path / "saved" / part).is_dir()
    missing = replace(source, components=Components.in_folder(tmp_path))
    with pytest.raises(CheckpointError, match="vae does not exist"):
        convert(missing, tmp_path / "other")
    assert not (tmp_path / "other").exists()
