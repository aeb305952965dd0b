"""What a user gets wrong ends as one line and exit code 2, with nothing half-written."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from forcing_kv.cli import COMMANDS, cli

START = "from forcing_kv.cli import main; main()"


def run_program(*arguments: object) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", START, *map(str, arguments)], capture_output=True, text=True, check=False
    )


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """The working folder: a file that exists, prompt files, a head map of another model."""
    monkeypatch.chdir(tmp_path)
    Path("there.mp4").write_bytes(b"precious")
    Path("bad.txt").write_text('a circle\n{"prompts": [\na square\n')
    Path("good.txt").write_text("a circle\n")
    Path("map.json").write_text(
        '{"format": "forcing-kv-head-map", "version": 1, "model": "other", "num_layers": 2, "num_heads": 3, '
        '"roles": ["sds", "ddd"], "scores": null, "threshold": 0.8, "provenance": {}}'
    )
    Path("broken.json").write_text("{")
    return tmp_path


BAD_CALLS = [
    (["generate", ""], "prompt is empty"),
    (["generate", "  \t "], "prompt is empty"),
    (["generate"], "either a PROMPT or --prompt-file"),
    (["generate", "a circle", "--resume", "--overwrite"], "--overwrite starts it over: give one of the two"),
    (["generate", "a circle", "--execution", "cuda-graphs", "--device", "cpu"], "needs a CUDA GPU"),
    (["generate", "a circle", "--attention", "sdpb"], "unknown attention back end 'sdpb'"),
    (["generate", "a circle", "--decoder", "none.pth", "--model", "self-forcing-1.3b"], "none.pth does not exist"),
    (["generate", "a circle", "--prompt-file", "good.txt"], "either a PROMPT or --prompt-file"),
    (["generate", "a circle", "-o", "there.mp4"], "there.mp4 exists: .*--overwrite"),
    (["generate", "a circle", "-o", "missing/out.mp4"], "missing does not exist"),
    (["generate", "a circle", "-o", "."], "is a folder"),
    (["generate", "a circle", "-o", "out.gif"], "is no MP4"),
    (["generate", "a circle", "--model", "nonsense"], "unknown model 'nonsense'; choose one of: tiny"),
    (["generate", "a circle", "--policy", "nonsense"], "unknown policy 'nonsense'; choose one of: forcing-kv"),
    (["generate", "a circle", "--policy", "full:depth=3"], "unknown setting of policy 'full' 'depth'"),
    (["generate", "a circle", "--policy", "forcing-kv:sink_frames=many"], "sink_frames='many' is not a number"),
    (["generate", "a circle", "--resolution", "8k"], "unknown resolution '8k'; use .*480p, 720p, 1080p, 480p-portrait"),
    (["generate", "a circle", "--resolution", "100x64"], "100x64: .*multiples of 16; nearest: 96x64"),
    (["generate", "a circle", "--precision", "fp4"], "unknown precision 'fp4'; choose one of: fp8"),
    (["generate", "a circle", "--execution", "fast"], "unknown execution 'fast'; choose one of: eager, compile"),
    (["generate", "a circle", "--device", "cpu", "--execution", "cuda-graphs"], "needs a CUDA GPU"),
    (["bench", "--device", "cpu", "--execution", "compile+cuda-graphs"], "needs a CUDA GPU"),
    (["bench", "--random-weights", "--layers", "2", "--precision", "fp8"], "so 2 layers have nothing to quantise"),
    (["generate", "a circle", "--frames", "0"], "0 frames cannot be made: ask for at least 1"),
    (["generate", "a circle", "--frames", "-5"], "-5 frames cannot be made"),
    (["generate", "a circle", "--frames", "many"], "'many' is not a valid integer"),
    (["generate", "a circle", "--seconds", "0"], "0 seconds cannot be made"),
    (["generate", "a circle", "--seconds", "nan"], "nan seconds cannot be made"),
    (["generate", "a circle", "--seconds", "inf"], "inf seconds cannot be made"),
    (["generate", "a circle", "--seconds", "1", "--frames", "9"], "not both"),
    (["generate", "a circle", "--seed", "lucky"], "'--seed': 'lucky' is not a valid integer"),
    (["generate", "a circle", "--seed", "-1"], "seed -1 is out of range"),
    (["generate", "a circle", "--num-videos", "0"], "0 videos cannot be made"),
    (["generate", "a circle", "--num-videos", "2", "-o", "there.mp4"], "there.mp4 is a file"),
    (["generate", "a circle", "--num-videos", "2", "-o", "missing/videos"], "missing does not exist"),
    (["generate", "a circle", "--device", "abacus"], "unknown device 'abacus'"),
    (["generate", "a circle", "--dtype", "int3"], "unknown dtype 'int3'"),
    (["generate", "a circle", "--head-map", "map.json"], "has 2 layers x 3 heads, the model has 3 x 4"),
    (["generate", "a circle", "--head-map", "broken.json"], "not valid JSON"),
    (["generate", "a circle", "--head-map", "missing.json"], "cannot read head map"),
    (["generate", "--prompt-file", "bad.txt"], "bad.txt, line 2: no valid JSON"),
    (["generate", "--prompt-file", "missing.txt"], "missing.txt cannot be read"),
    (["generate", "a circle", "--json", "missing/r.json"], "missing does not exist"),
    (["generate", "a circle", "--contact-sheet", "there.mp4"], "there.mp4 exists"),
    (["generate", "a circle", "--save-latents", "missing/l.safetensors"], "missing does not exist"),
    (["generate", "a circle", "--nonsense"], "No such option"),
    (["nonsense"], "unknown command 'nonsense'; choose one of: generate"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD_CALLS, ids=[" ".join(call[0][:4]) for call in BAD_CALLS])
def test_one_line_exit_code_2_nothing_written(folder, tiny_model_folder, arguments, message):
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    if arguments[0] == "generate" and "--model" not in arguments:
        arguments = [*arguments, "--model", str(tiny_model_folder)]
    result = CliRunner().invoke(cli, arguments)
    lines = result.stderr.splitlines()
    assert result.exit_code == 2, result.output
    assert lines[-1].startswith("forcing-kv: error: ")
    assert len([line for line in lines if "error" in line]) == 1
    assert re.search(message, lines[-1]), lines[-1]
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    assert not list(folder.glob("*.partial"))
    assert not Path("videos").exists()


def test_folder_that_is_not_writable(folder, tiny_model_folder, monkeypatch):
    monkeypatch.setattr(os, "access", lambda *_: False)  # tests may run as root, who may write everywhere
    result = CliRunner().invoke(cli, ["generate", "a circle", "--model", str(tiny_model_folder)])
    assert result.exit_code == 2
    assert "is not writable" in result.stderr


def test_program_prints_one_line_even_after_the_model_was_loaded(folder, tiny_model_folder):
    """The libraries below must not chatter on stderr, and the head map is only checked against the loaded model."""
    result = run_program("generate", "a circle", "--model", tiny_model_folder, "--head-map", "map.json")
    assert result.returncode == 2
    assert result.stdout == ""
    assert len(result.stderr.splitlines()) == 1, result.stderr
    assert result.stderr.startswith("forcing-kv: error: the head map of 'other'")


def test_help_is_quick_and_loads_no_heavy_library(folder):
    times = []
    for _ in range(3):
        started = time.perf_counter()
        result = run_program("--help")
        times.append(time.perf_counter() - started)
        assert result.returncode == 0
    for name, about in COMMANDS.items():
        assert name in result.stdout
        assert about in result.stdout
    report = "print([name for name in ('torch', 'av', 'diffusers') if name in sys.modules])"
    code = f"import sys\ntry:\n    {START}\nexcept SystemExit:\n    {report}"
    heavy = subprocess.run([sys.executable, "-c", code, "--help"], capture_output=True, text=True, check=True)
    assert heavy.stdout.splitlines()[-1] == "[]"
    assert min(times) < 1.0  # 0.15 s on an idle machine


def test_help_of_generate_teaches_every_flag():
    result = CliRunner().invoke(cli, ["generate", "--help"])
    assert result.exit_code == 0
    flags = (
        "-o --model --policy --positions --seconds --frames --resolution --seed --num-videos --weights --lora "
        "--components --device --dtype --text-encoder-device --head-map --prompt-file --save-latents --continue-from "
        "--contact-sheet --json --resume --overwrite --skip-memory-check --kv-dtype --step-cache --attention "
        "--execution --precision --decoder --vae-dtype --vae-layout --compile-vae --overlap --switch"
    )
    for flag in flags.split():
        assert flag in result.output


def test_version():
    result = CliRunner().invoke(cli, ["--version"])
    assert result.exit_code == 0
    assert result.output.startswith("forcing-kv, version ")


def test_defects_show_their_traceback(monkeypatch):
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("a defect")

    monkeypatch.setattr("forcing_kv.cli.generate.find_model", broken)
    result = CliRunner().invoke(cli, ["generate", "a circle"])
    assert isinstance(result.exception, ZeroDivisionError)
