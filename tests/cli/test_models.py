"""`forcing-kv models`."""

import pytest
from click.testing import CliRunner

from forcing_kv.cli import cli
from forcing_kv.models import RELEASED_MODELS


@pytest.fixture
def run(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))

    def run(*names):
        result = CliRunner().invoke(cli, ["models", *names])
        assert result.exit_code == 0, result.output
        return {line.split()[0]: line.split() for line in reversed(result.stdout.splitlines()) if line}, result.stdout

    return run


def test_every_model_is_a_row(run):
    rows, _ = run()
    assert rows["tiny"][1:4] == ["Apache-2.0", "-", "yes"]
    assert rows["self-forcing-1.3b"][1:5] == ["Apache-2.0", "5.7", "GB", "no"]
    assert rows["longlive-1.3b"][1:5] == ["Apache-2.0", "7.1", "GB", "no"]  # with its LoRA
    assert " ".join(rows["krea-realtime-14b"][1:8]) == "CC-BY-NC-SA-4.0 (not for commercial use) 28.6 GB"
    assert rows.keys() >= {"tiny", *RELEASED_MODELS}


def test_memory_is_shown_per_size_and_policy(run):
    _, output = run()
    memory = [line.split() for line in output.partition("Memory of a run")[2].splitlines()]
    assert ["self-forcing-1.3b", "480p", "2.8", "4.5", "7.8", "3.5", "1.6", "16.6", "11.9", "9.9"] in memory
    assert ["causal-forcing-1.3b-framewise", "480p", "2.8", "4.5", "7.2", "3.5", "-", "15.9", "11.7", "-"] in memory
    assert ["krea-realtime-14b", "1080p", "28.6", "22.5", "180.5", "80.2", "40.1", "254.8", "144.5", "100.4"] in memory
    assert sum(line[:1] in ([name] for name in RELEASED_MODELS) for line in memory) == 3 * len(RELEASED_MODELS)


def test_one_model_in_full(run):
    _, output = run("longlive-1.3b")
    for part in (
        "Efficient-Large-Model/LongLive-1.3B: models/longlive_base.pt",
        "models/lora.pt, merged at load",
        "Wan-AI/Wan2.1-T2V-1.3B-Diffusers: vae/",
        "832x480, 16 frames per second, chunks of 3 latent frames",
        "1000, 937.5, 833.333, 625",
        "forcing-kv:warmup_chunks=3",
        "154 of 360 heads static",
    ):
        assert part in output
    assert "raven" not in output


def test_a_saved_folder_and_an_unknown_name(run, tiny_model_folder):
    _, output = run(str(tiny_model_folder))
    assert str(tiny_model_folder / "transformer") in output
    result = CliRunner().invoke(cli, ["models", "huge"])
    assert result.exit_code == 2
    assert "unknown model 'huge'; choose one of: tiny, self-forcing-1.3b" in result.stderr
