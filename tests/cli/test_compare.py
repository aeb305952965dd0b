"""`forcing-kv compare`, from a prompt file to a report."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from forcing_kv.cli import cli

PROMPTS = ["a large red circle bouncing sideways", "a small blue square circling clockwise"]


def compare(*arguments, prompt_file="prompts.txt", output="quality", model="tiny"):
    settings = ["--model", model, "--prompt-file", prompt_file, "-o", output, "--device", "cpu"]
    return CliRunner().invoke(cli, ["compare", *map(str, [*settings, *arguments])])


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty working folder with a prompt file."""
    monkeypatch.chdir(tmp_path)
    Path("prompts.txt").write_text("\n".join(PROMPTS) + "\n")
    return tmp_path


def report(folder):
    """All that is the same for the same comparison: not when it was made, on what, and how fast."""
    document = json.loads(Path(folder, "report.json").read_text())
    del document["environment"]
    for policy in document["policies"]:
        del policy["seconds"]
    return document


def test_prompts_to_a_report(folder):
    """At the size of the embedded model's world, so that it is judged by rule too."""
    result = compare("--policies", "full,forcing-kv", "--seconds", 3, "--resolution", "160x96", "--seed", 5)
    assert result.exit_code == 0, result.output
    assert sorted(os.listdir("quality")) == ["measured", "report.html", "report.json", "videos"]
    assert sorted(os.listdir("quality/videos")) == ["forcing-kv", "full"]
    document = json.loads(Path("quality/report.json").read_text())
    assert document["prompts"] == [{"prompt": PROMPTS[0], "seed": 5}, {"prompt": PROMPTS[1], "seed": 6}]
    config = document["config"]
    assert (config["model"], config["resolution"], config["frames"], config["fps"]) == ("tiny", [160, 96], 57, 16)
    assert config["seconds"] == 57 / 16
    full, forcing_kv = document["policies"]
    assert (full["name"], full["is_reference"], forcing_kv["name"]) == ("full", True, "forcing-kv")
    assert forcing_kv["cache_bytes"] < 0.5 * full["cache_bytes"]
    metrics = forcing_kv["metrics"]
    assert set(metrics) | set(document["left_out"]) == {
        "world",
        "psnr",
        "ssim",
        "lpips",
        "cosine",
        "motion",
        "motion-ratio",
        "discontinuity",
        "boundary-jump",
        "drift-colour",
        "drift-contrast",
        "drift-sharpness",
    }
    assert 0 <= metrics["world"]["mean"] <= 100
    assert metrics["world"]["difference"]["num_prompts"] == 2
    assert 15 < metrics["psnr"]["mean"] < 100
    assert 0.5 < metrics["ssim"]["mean"] < 1
    assert 0.5 < metrics["cosine"]["mean"] < 1
    assert full["metrics"].keys().isdisjoint({"psnr", "ssim", "lpips", "cosine", "motion-ratio"})
    assert set(full["world"]["rights"][0]) >= {"colour", "shape", "motion", "no collapse"}
    assert document["metrics"]["motion"]["flow"].startswith("DIS")
    assert document["environment"]["versions"]["scikit-image"]
    page = Path("quality/report.html").read_text(encoding="utf-8")
    assert page.count("data:video/mp4;base64,") == 2 * 2
    *_, last = result.stdout.splitlines()
    assert last == "quality/report.html"
    assert re.search(r"^full \(reference\) +\d", result.stdout, flags=re.MULTILINE)
    assert re.search(r"^forcing-kv +\d", result.stdout, flags=re.MULTILINE)

    refused = compare("--policies", "full,forcing-kv")
    assert refused.exit_code == 2
    assert "quality exists: go on with an unfinished comparison with --resume" in refused.stderr


def test_killed_and_resumed(folder, tiny_model_folder):
    """By a signal that leaves no time to tidy up, in the middle of a video."""
    Path("prompts.txt").write_text("\n".join(PROMPTS * 2) + "\n")
    arguments = ["--policies", "full,window:window_frames=6", "--seconds", "1", "--together", "1"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}  # as here: torch rounds otherwise with other threads
    settings = ["--model", tiny_model_folder, "--prompt-file", "prompts.txt", "-o", "killed", "--device", "cpu"]
    start = [
        sys.executable,
        "-c",
        "from forcing_kv.cli import main; main()",
        "compare",
        *map(str, settings),
        *arguments,
    ]
    with subprocess.Popen(start, env=environment, stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 240
        while len(list(Path("killed").glob("measured/*/00001.json"))) < 2:
            assert process.poll() is None, "the program ended before it was expected to"
            assert time.monotonic() < deadline
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
    assert not Path("killed/report.json").exists()
    times = {path: path.stat().st_mtime_ns for path in Path("killed").glob("measured/*/*.json")}
    assert 4 <= len(times) < 8
    result = compare(*arguments, "--resume", output="killed", model=tiny_model_folder)
    assert result.exit_code == 0, result.output
    is_kept = {path: path.stat().st_mtime_ns == written for path, written in times.items()}
    assert sum(is_kept.values()) >= len(times) - 1  # the reference of the prompt in work may be made again
    assert not list(Path("killed").rglob("*.partial"))
    assert compare(*arguments, model=tiny_model_folder).exit_code == 0
    assert report("killed") == report("quality")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--policies", "full,nonsense"], "unknown policy 'nonsense'; choose one of: "),
        (["--policies", "full,window:depth=3"], "unknown setting of policy 'window' 'depth'"),
        (["--policies", "full"], "name the reference full only: name another one too"),
        (["--policies", "window,window"], "'window' is there twice"),
        (["--reference", "nonsense"], "unknown policy 'nonsense'"),
        (["--metrics", "psnr,beauty"], "unknown metric 'beauty'; choose one of: all, world, psnr"),
        (["--metrics", "psnr,lpips"], r"LPIPS needs .*(forcing-kv\[lpips\]|torchvision)"),
        (["--flow", "eyes"], "unknown optical flow 'eyes'; choose one of: dis, raft"),
        (["--flow", "raft"], r"RAFT needs .*(forcing-kv\[lpips\]|raft_small)"),
        (["--seconds", 0], "a video of 0 seconds cannot be made"),
        (["--seconds", "nan"], "a video of nan seconds"),
        (["--kv-dtype", "int3"], "unknown kv_dtype 'int3'; choose one of: int8, fp8"),
        (["--step-cache", "-1"], "step cache threshold -1 must be at least 0"),
        (["--seed", -1], "seed -1 is out of range"),
        (["--together", 0], "0 prompts cannot be made together"),
        (["--resolution", "8k"], "unknown resolution '8k'"),
        (["--model", "nonsense"], "unknown model 'nonsense'"),
        (["--device", "abacus"], "unknown device 'abacus'"),
        (["--head-map", "missing.json"], "cannot read head map"),
        (["--prompt-file", "missing.txt"], "missing.txt cannot be read"),
        (["--prompt-file", "gap.txt"], "gap.txt, line 2: the line is empty"),
        (["--prompt-file", "long.txt"], "long.txt, line 2: a prompt of 9,004 characters is too long"),
        (["--prompt-file", "schedule.txt"], "schedule.txt, line 2: a comparison takes one prompt per line"),
        (["-o", "prompts.txt"], "prompts.txt is a file"),
        (["-o", "."], r"\. exists: .*--resume"),
        (["--seconds", 1e9], "needs .* GB: "),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, list) else "",
)
def test_what_cannot_work_is_told_before_the_model_is_loaded(folder, monkeypatch, arguments, message):
    def load(*_: object, **__: object) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr("forcing_kv.cli.compare.VideoPipeline.from_source", load)
    monkeypatch.setenv("TORCH_HOME", str(folder / "nothing-downloaded"))
    Path("gap.txt").write_text("a circle\n\na square\n")
    Path("long.txt").write_text("a circle\n" + "very " * 1800 + "long\n")
    Path("schedule.txt").write_text(
        'a circle\n{"prompts": [{"at_seconds": 0, "text": "a circle"}, {"at_seconds": 1, "text": "a square"}]}\n'
    )
    before = sorted(os.listdir())
    result = compare(*arguments)  # click takes the last of each
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith("forcing-kv: error: ")
    assert len(result.stderr.splitlines()) == 1
    assert re.search(message, result.stderr), result.stderr
    assert sorted(os.listdir()) == before


@pytest.mark.parametrize("module", ["cv2", "skimage.metrics", "jinja2"])
def test_a_missing_extra_is_named(folder, monkeypatch, module):
    monkeypatch.setitem(sys.modules, module, None)
    result = compare()
    assert result.exit_code == 2
    assert "pip install 'forcing-kv[evaluation]'" in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert not Path("quality").exists()


def test_a_missing_codec_is_named(folder, monkeypatch):
    monkeypatch.setattr("forcing_kv.video.h264.CODEC", "libnothing")
    result = compare()
    assert result.exit_code == 2
    assert "has no H.264 encoder (libnothing)" in result.stderr
    assert not Path("quality").exists()


def test_help_teaches():
    result = CliRunner().invoke(cli, ["compare", "--help"])
    assert result.exit_code == 0
    flags = (
        "--prompt-file -o --model --policies --reference --kv-dtype --step-cache --seconds --metrics --flow --seed "
        "--together --resolution --weights --device --dtype --head-map --resume --overwrite --skip-memory-check"
    )
    for flag in flags.split():
        assert flag in result.output
    assert "boundary-jump" in result.output
