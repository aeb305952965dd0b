"""`forcing-kv calibrate`, from a prompt file to a head map."""

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

from forcing_kv import HeadMap
from forcing_kv.cli import cli

PROMPTS = ["a large red circle bouncing sideways", "a small blue square circling clockwise"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty working folder with a prompt file."""
    monkeypatch.chdir(tmp_path)
    Path("prompts.txt").write_text("\n".join(PROMPTS) + "\n")
    return tmp_path


def calibrate(*arguments, prompt_file="prompts.txt", output="roles", model="tiny"):
    settings = ["--model", model, "--prompt-file", prompt_file, "-o", output, "--device", "cpu"]
    return CliRunner().invoke(cli, ["calibrate", *map(str, [*arguments, *settings])])


def test_prompts_to_a_head_map(folder):
    result = calibrate("--chunks", 4, "--steps", "0,3", "--target-static-fraction", 0.5, "--seed", 5)
    assert result.exit_code == 0, result.output
    pictures = ["frame_mass.png", "roles.png", "spread.png"]
    assert sorted(os.listdir("roles")) == sorted(["head_map.json", "observations", "report.json", *pictures])
    assert json.loads(Path("roles/report.json").read_text())["prompts"] == PROMPTS
    assert sorted(os.listdir("roles/observations")) == ["00000.safetensors", "00001.safetensors"]
    head_map = HeadMap.load("roles/head_map.json")
    assert (head_map.model, head_map.num_layers, head_map.num_heads, head_map.num_static) == ("tiny", 6, 6, 18)
    provenance = head_map.provenance
    assert (provenance["prompts"], provenance["seeds"]) == (PROMPTS, [5, 6])
    assert (provenance["chunks"], provenance["steps"]) == ([3], [0, 3])
    first, *_, summary = result.stdout.splitlines()
    assert first.startswith("18 of 36 (50.0 %) heads are static: score (attention on the newest frames) 0.")
    assert summary.startswith("roles: 18 of 36 heads are static (score at least 0.")
    assert summary.endswith("use the map with --head-map roles/head_map.json")
    video = ["generate", PROMPTS[0], "--frames", "9", "--device", "cpu", "--head-map", "roles/head_map.json"]
    assert CliRunner().invoke(cli, video).exit_code == 0


def test_resume_and_overwrite(folder):
    arguments = ("--chunks", 4, "--steps", 0, "--max-queries", 20)
    assert calibrate(*arguments).exit_code == 0
    first = Path("roles/head_map.json").read_text()
    times = {path: path.stat().st_mtime_ns for path in Path("roles/observations").iterdir()}

    refused = calibrate(*arguments)
    assert refused.exit_code == 2
    assert (
        "roles exists: go on with an unfinished calibration with --resume, replace it with --overwrite"
        in refused.stderr
    )
    refused = calibrate(*arguments, "--resume", "--seed", 1)
    assert refused.exit_code == 2
    assert "was made with seed 0, not 1" in refused.stderr

    Path("roles/observations/00001.safetensors").unlink()  # as if it had been killed during the second prompt
    del times[Path("roles/observations/00001.safetensors")]
    assert calibrate(*arguments, "--resume").exit_code == 0
    assert Path("roles/head_map.json").read_text() == first
    for path, written in times.items():
        assert path.stat().st_mtime_ns == written

    Path("roles/observations/notes.txt").write_text("the user's own")
    assert calibrate(*arguments, "--overwrite", "--seed", 1, "--threshold", 0.3).exit_code == 0
    assert HeadMap.load("roles/head_map.json").provenance["seeds"] == [1, 2]
    assert HeadMap.load("roles/head_map.json").threshold == 0.3
    assert Path("roles/observations/notes.txt").exists()


def test_killed_and_resumed(folder, tmp_path):
    """By a signal that leaves no time to tidy up, in the middle of a prompt."""
    Path("prompts.txt").write_text("\n".join(PROMPTS * 4) + "\n")
    arguments = ["--chunks", "5", "--steps", "0,3", "--device", "cpu", "--prompt-file", "prompts.txt"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}  # as here: torch rounds otherwise with other threads
    start = [sys.executable, "-c", "from forcing_kv.cli import main; main()", "calibrate", *arguments, "-o", "roles"]
    with subprocess.Popen(start, env=environment, stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 120
        while not Path("roles/observations/00001.safetensors").exists():
            assert process.poll() is None, "the program ended before it was expected to"
            assert time.monotonic() < deadline
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
    assert not Path("roles/head_map.json").exists()
    times = {path: path.stat().st_mtime_ns for path in Path("roles/observations").glob("*.safetensors")}
    assert 2 <= len(times) < 8
    assert calibrate(*arguments, "--resume").exit_code == 0
    assert {path: path.stat().st_mtime_ns for path in times} == times
    assert calibrate(*arguments, output="in/a/folder").exit_code == 0
    assert Path("roles/head_map.json").read_text() == Path("in/a/folder/head_map.json").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--chunks", 3], "3 chunks of 3 frames are too few: .* use at least 4 chunks"),
        (["--steps", "4"], r"steps=\[4\] must name some of the 4 denoising steps of tiny: 0 to 3"),
        (["--steps", "first"], "steps 'first' are no list of numbers: write 0,2 or all"),
        (["--threshold", 0.5, "--target-static-fraction", 0.5], "either a threshold or a target_static_fraction"),
        (["--threshold", 80], "threshold=80.0 must lie between 0 and 1"),
        (["--max-queries", 1], "max_queries=1 must be at least 2"),
        (["--sink-frames", -1], "sink_frames=-1 must be at least 0"),
        (["--seed", -1], "-1 is not in the range"),
        (["--resolution", "8k"], "unknown resolution '8k'"),
        (["--model", "nonsense"], "unknown model 'nonsense'"),
        (["--device", "abacus"], "unknown device 'abacus'"),
        (["--prompt-file", "missing.txt"], "missing.txt cannot be read"),
        (["--prompt-file", "schedule.txt"], "schedule.txt, line 2: a calibration takes one prompt per line"),
        (["-o", "prompts.txt/roles"], "prompts.txt is a file"),
        (["-o", "prompts.txt"], "prompts.txt is a file"),
        (["-o", "."], r"\. exists: .*--resume"),
        (["--resolution", "8192x8192", "--chunks", 400], "it fits|no flag makes it fit"),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, list) else "",
)
def test_what_cannot_work_is_told_before_the_model_is_loaded(folder, monkeypatch, arguments, message):
    def load(*_: object, **__: object) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr("forcing_kv.cli.calibrate.VideoPipeline.from_source", load)
    Path("schedule.txt").write_text(
        'a circle\n{"prompts": [{"at_seconds": 0, "text": "a circle"}, {"at_seconds": 1, "text": "a square"}]}\n'
    )
    before = sorted(os.listdir())
    settings = ["--prompt-file", "prompts.txt", "-o", "roles", *map(str, arguments)]  # click takes the last of each
    result = CliRunner().invoke(cli, ["calibrate", *settings])
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith("forcing-kv: error: ")
    assert len(result.stderr.splitlines()) == 1
    assert re.search(message, result.stderr), result.stderr
    assert "--policy" not in result.stderr
    assert "--seconds" not in result.stderr
    assert sorted(os.listdir()) == before
