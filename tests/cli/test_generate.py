"""`forcing-kv generate`, from arguments to files."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image

from forcing_kv.cli import cli
from forcing_kv.video import probe, read_video
from forcing_kv.video.writer import partial_folder
from tiny_decoders import released_weights

REPORT_KEYS = {
    "frames",
    "width",
    "height",
    "seconds_video",
    "fps_diffusion",
    "fps_end_to_end",
    "cache_bytes",
    "full_cache_bytes",
    "policy",
    "positions",
    "model",
    "attention",
    "device",
    "seed",
    "versions",
}


@pytest.fixture
def generate(tiny_model_folder, tmp_path, monkeypatch):
    """Run `forcing-kv generate` on the small model, in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object, model: object = tiny_model_folder) -> Result:
        settings = ["--model", model, "--device", "cpu"]
        return CliRunner().invoke(cli, ["generate", *map(str, [*arguments, *settings])])

    return run


def program(model: Path, *arguments: object) -> list[str]:
    start = "from forcing_kv.cli import main; main()"
    return [sys.executable, "-c", start, "generate", *map(str, arguments), "--model", str(model), "--device", "cpu"]


def test_video_report_sheet_and_latents(generate):
    result = generate(
        "a red circle", "-o", "v.mp4", "--frames", 10, "--seed", 7, "--policy", "full",
        "--json", "r.json", "--contact-sheet", "s.png", "--save-latents", "l.safetensors", "--attention", "plain",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert sorted(os.listdir()) == ["l.safetensors", "r.json", "s.png", "v.mp4"]
    report = json.loads(Path("r.json").read_text())
    assert report.keys() >= REPORT_KEYS
    assert (report["frames"], report["width"], report["height"]) == (21, 96, 64)
    assert (report["policy"], report["model"], report["seed"], report["attention"]) == ("full", "random", 7, "plain")
    info = probe("v.mp4")
    assert (info.num_frames, info.width, info.height) == (21, 96, 64)
    assert json.loads(info.metadata["comment"])["seed"] == 7
    with Image.open("s.png") as sheet:
        assert sheet.width > 6 * 96
    assert "v.mp4: 21 frames of 96x64, 1.3 s" in result.stdout
    assert "10 frames were asked for" in result.stdout
    assert "FPS diffusion" in result.stdout
    assert "cache" in result.stdout


def test_seconds_resolution_and_savings(generate):
    result = generate("a circle", "--seconds", 4, "--resolution", "48x32", "--policy", "window:window_frames=6")
    assert result.exit_code == 0, result.output
    assert "out.mp4: 69 frames of 48x32" in result.stdout
    assert "% saved" in result.stdout


def test_relative_positions_and_a_change_of_prompt(generate):
    """On the embedded model."""
    prompts = [
        {"at_seconds": 0, "text": "a large red circle bouncing sideways"},
        {"at_seconds": 2, "text": "a large blue square circling clockwise"},
    ]
    Path("p.txt").write_text(json.dumps({"prompts": prompts}) + "\n")
    arguments = ("--prompt-file", "p.txt", "-o", "videos", "--seconds", 4, "--json", "r.json")
    result = generate(*arguments, "--positions", "relative", model="tiny")
    assert result.exit_code == 0, result.output
    (video,) = json.loads(Path("r.json").read_text())["videos"]
    assert (video["positions"], video["frames"], video["prompt"]) == ("relative", 69, prompts)
    assert json.loads(probe(video["path"]).metadata["comment"])["positions"] == "relative"
    red, *_, blue = read_video(video["path"])[:, 24:72, 40:120].float().mean((1, 2))
    assert red[0] > red[2]
    assert blue[2] > blue[0]

    assert generate(*arguments, "--positions", "relative", "--resume", model="tiny").exit_code == 0
    refused = generate(*arguments, "--resume", model="tiny")
    assert refused.exit_code == 2
    assert "finished, with positions 'relative', not 'absolute'" in refused.stderr


def test_positions_that_cannot_work_are_refused_before_any_work(generate):
    arguments = ("a circle", "--num-videos", 2, "--seconds", 8)
    refused = generate(*arguments, "--policy", "full", "--positions", "relative")
    assert refused.exit_code == 2
    assert "cannot hold a stream of 33 latent frames: the model was trained at 21" in refused.stderr
    refused = generate(*arguments, "--positions", "near")
    assert refused.exit_code == 2
    assert "'absolute', 'relative'" in refused.stderr
    assert os.listdir() == []


def test_an_attention_back_end_that_is_not_there_is_refused_before_any_work(generate):
    for name, message in (
        ("sage", "unknown attention back end 'sage'; choose one of: auto, sdpa, "),
        ("cudnn", "attention back end 'cudnn' cannot be had on cpu"),
    ):
        refused = generate("a circle", "--attention", name)
        assert refused.exit_code == 2
        assert message in refused.stderr
        assert "fa3 (not here: needs an NVIDIA GPU)" in refused.stderr
    assert os.listdir() == []


def test_same_seed_same_video(generate):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        assert generate("a circle", "-o", f"{name}.mp4", "--frames", 9, "--seed", seed).exit_code == 0
    assert Path("a.mp4").read_bytes() == Path("b.mp4").read_bytes()
    assert Path("a.mp4").read_bytes() != Path("c.mp4").read_bytes()


def test_a_device_that_is_too_small_is_refused_and_the_check_can_be_skipped(generate, monkeypatch):
    monkeypatch.setattr("forcing_kv.free_memory.free_bytes", lambda device: 10**6)
    refused = generate("a circle", "--frames", 9)
    assert refused.exit_code == 2
    assert re.search(r"error: 96x64 with policy forcing-kv needs 0\.\d+ GB: weights .* no flag makes", refused.stderr)
    assert not os.listdir()
    assert generate("a circle", "--frames", 9, "--skip-memory-check").exit_code == 0


def test_switch_is_a_prompt_file_line_in_words(generate):
    schedule = [
        {"at_seconds": 0.0, "text": "a circle"},
        {"at_seconds": 0.5, "text": "a square"},
        {"at_seconds": 1.2, "text": "a blue cross"},
    ]
    Path("p.txt").write_text(json.dumps({"prompts": schedule}) + "\n")
    assert generate("--prompt-file", "p.txt", "-o", "videos", "--frames", 33).exit_code == 0
    switches = ("--switch", 1.2, "a blue cross", "--switch", 0.5, "a square")
    result = generate("a circle", *switches, "-o", "v.mp4", "--frames", 33, "--json", "r.json")
    assert result.exit_code == 0, result.output
    assert json.loads(Path("r.json").read_text())["prompt"] == schedule
    assert torch.equal(read_video("v.mp4"), read_video("videos/001-a-circle.mp4"))
    assert generate("a circle", "-o", "unswitched.mp4", "--frames", 33).exit_code == 0
    assert not torch.equal(read_video("v.mp4"), read_video("unswitched.mp4"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--prompt-file", "p.txt", "--switch", 1, "a square"), "write the times into its lines"),
        (("a circle", "--switch", -1, "a square"), "cannot begin at -1"),
        (("a circle", "--switch", 1, " "), "the prompt is empty"),
        (("a circle", "--switch", 1, "a square", "--switch", 1, "a cross"), "scheduled for the same time"),
        (("a circle", "--switch", "soon", "a square"), "'soon' is not a valid float"),
    ],
)
def test_wrong_switches_are_one_line(generate, arguments, message):
    Path("p.txt").write_text("a circle\n")
    result = generate(*arguments, "-o", "v.mp4")
    assert result.exit_code == 2
    assert message in result.stderr
    assert not Path("v.mp4").exists()


def test_prompt_file_makes_a_folder(generate):
    schedule = {"prompts": [{"at_seconds": 0, "text": "a circle"}, {"at_seconds": 0.5, "text": "a square"}]}
    Path("p.txt").write_text(f"a red circle\n{json.dumps(schedule)}\n")
    arguments = (
        "--prompt-file",
        "p.txt",
        "-o",
        "videos",
        "--frames",
        9,
        "--json",
        "r.json",
        "--contact-sheet",
        "s.png",
    )
    result = generate(*arguments, "--save-latents", "latents")
    assert result.exit_code == 0, result.output
    assert sorted(os.listdir("videos")) == ["001-a-red-circle.mp4", "002-a-circle.mp4"]
    assert sorted(os.listdir("latents")) == ["001-a-red-circle.safetensors", "002-a-circle.safetensors"]
    videos = json.loads(Path("r.json").read_text())["videos"]
    assert [video["frames"] for video in videos] == [9, 9]
    assert videos[1]["prompt"] == schedule["prompts"]
    metadata = probe("videos/002-a-circle.mp4").metadata
    assert metadata["title"] == "a circle / a square"
    assert json.loads(metadata["comment"])["prompt"] == schedule["prompts"]

    Path("videos/002-a-circle.mp4").unlink()  # what is finished is left as it is
    first = Path("videos/001-a-red-circle.mp4").stat()
    result = generate(*arguments, "--resume")
    assert result.exit_code == 0, result.output
    assert Path("videos/001-a-red-circle.mp4").stat() == first
    assert [video.get("skipped", False) for video in json.loads(Path("r.json").read_text())["videos"]] == [True, False]

    refused = generate(*arguments, "--resume", "--policy", "full")  # not passed off as what it is not
    assert refused.exit_code == 2
    assert "finished, with policy 'forcing-kv', not 'full'" in refused.stderr
    assert "with frames 9, not 21" in generate(*arguments[:4], "--frames", 20, "--resume").stderr


def test_many_videos_count_seeds(generate):
    result = generate("a circle", "--num-videos", 2, "--seed", 4, "--frames", 9)
    assert result.exit_code == 0, result.output
    paths = [Path("videos") / f"00{number}-a-circle.mp4" for number in (1, 2)]
    assert [json.loads(probe(path).metadata["comment"])["seed"] for path in paths] == [4, 5]
    assert generate("a circle", "--seed", 5, "--frames", 9, "-o", "one.mp4").exit_code == 0
    assert Path("one.mp4").read_bytes() == paths[1].read_bytes()


def test_killed_run_is_resumed_to_the_same_video(generate, tiny_model_folder):
    assert generate("a circle", "-o", "whole.mp4", "--frames", 165).exit_code == 0
    arguments = ("a circle", "-o", "v.mp4", "--frames", 165)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}  # as here: torch rounds otherwise with other threads
    pipes = {"stderr": subprocess.DEVNULL, "env": environment}
    with subprocess.Popen(program(tiny_model_folder, *arguments), **pipes) as process:
        _wait_for(partial_folder("v.mp4") / "segment-00002.mp4", process)
        process.send_signal(signal.SIGKILL)
    assert not Path("v.mp4").exists()
    refused = generate(*arguments)
    assert refused.exit_code == 2
    assert "--resume" in refused.stderr
    result = generate(*arguments, "--resume", "--json", "r.json")
    assert result.exit_code == 0, result.output
    assert Path("v.mp4").read_bytes() == Path("whole.mp4").read_bytes()
    report = json.loads(Path("r.json").read_text())
    assert report["frames"] == 165
    assert 0 < report["frames_made"] <= 165 - 9  # the first chunk has a snapshot, however slow the disk is
    assert not partial_folder("v.mp4").exists()


def test_ctrl_c_ends_the_video_early(tiny_model_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = ("a circle", "-o", "v.mp4", "--frames", 4005, "--json", "r.json")
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it, for good
    try:
        process = subprocess.Popen(program(tiny_model_folder, *arguments), **pipes)
    finally:
        signal.signal(signal.SIGINT, before)
    with process:
        _wait_for(partial_folder("v.mp4") / "segment-00001.mp4", process)
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted: 4005 frames were asked for" in stdout
    assert stderr.strip() == "forcing-kv: error: interrupted"
    report = json.loads(Path("r.json").read_text())
    assert report["interrupted"]
    assert 21 <= probe("v.mp4").num_frames == report["frames"] < 4005
    assert sorted(os.listdir()) == ["r.json", "v.mp4"]


def _wait_for(path: Path, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 120
    while not path.exists():
        assert process.poll() is None, "the program ended before it was expected to"
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_decoder_options(generate):
    torch.save(released_weights(), "taew2_1.pth")
    arguments = ("a red circle", "--frames", 21, "--resolution", "48x32")
    result = generate(
        *arguments, "-o", "t.mp4", "--json", "t.json",
        "--decoder", "taew2_1.pth", "--vae-dtype", "bfloat16", "--vae-layout", "contiguous", "--overlap",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    report = json.loads(Path("t.json").read_text())
    assert report["decoder"].startswith("taew2_1.pth (sha256 ")
    assert [report[f"decoder_{key}"] for key in ("dtype", "layout", "compiled")] == ["bfloat16", "contiguous", False]
    assert report["overlapped"] is True
    result = generate(*arguments, "-o", "v.mp4", "--json", "v.json", "--no-overlap")
    assert result.exit_code == 0, result.output
    report = json.loads(Path("v.json").read_text())
    assert (report["decoder"], report["overlapped"]) == ("VAE", False)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--decoder", "none.pth"], "none.pth does not exist"),
        (["--vae-dtype", "half"], "unknown dtype 'half'; choose one of: auto, float32, bfloat16, float16"),
        (["--decoder", "d.pth", "--compile-vae"], "only the VAE is compiled, and d.pth takes its place"),
    ],
)
def test_wrong_decoder_options_are_one_line(generate, flags, message):
    result = generate("a red circle", "-o", "v.mp4", *flags)
    assert result.exit_code != 0
    assert message in str(result.exception) + result.output
    assert os.listdir() == []


def test_what_compiles_needs_a_compiler(generate, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    for flags in (["--compile-vae"], ["--execution", "compile"], ["--attention", "flex"]):
        result = generate("a red circle", "-o", "v.mp4", *flags, model="tiny")
        assert result.exit_code == 2, result.output
        assert "needs a C++ compiler, and there is no no-such-compiler" in result.output
        assert os.listdir() == []


def test_a_video_is_not_gone_on_with_where_only_a_tiny_decoder_is(generate):
    assert generate("a red circle", "-o", "a.mp4", "--frames", 9).exit_code == 0
    torch.save(released_weights(), "taew2_1.pth")
    result = generate("a circle", "-o", "b.mp4", "--continue-from", "a.mp4", "--decoder", "taew2_1.pth")
    assert (result.exit_code, "continue from latents" in result.output) == (2, True)


def test_linear_layers_in_fp8(generate):
    for arguments in (["-o", "plain.mp4"], ["-o", "fp8.mp4", "--precision", "fp8"]):
        path = Path(arguments[1])
        result = generate("a red circle", *arguments, "--frames", 9, "--json", path.with_suffix(".json"))
        assert result.exit_code == 0, result.output
    plain, report = (json.loads(Path(name).read_text()) for name in ("plain.json", "fp8.json"))
    assert (plain["precision"], report["precision"]) == (None, "fp8")
    assert report["execution"] == "eager"
    assert report["compile_ms"] == 0
    assert json.loads(probe(Path("fp8.mp4")).metadata["comment"])["precision"] == "fp8"
    again = generate("a red circle", "-o", "fp8.mp4", "--frames", 9, "--resume")
    assert again.exit_code == 2
    assert "with precision 'fp8', not None" in again.stderr
