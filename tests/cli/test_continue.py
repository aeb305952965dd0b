"""`forcing-kv generate --continue-from`, from arguments to files, on the embedded model."""

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
from safetensors.torch import load_file, save_file

from forcing_kv.cli import cli
from forcing_kv.video import VideoWriter, probe, read_video
from forcing_kv.video.writer import partial_folder

RED = "a large red circle bouncing sideways slowly on a plain gray background"
BLUE = "a small blue square bouncing vertically quickly on a plain white background"


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    """A folder with a first video `clip.mp4` of 33 frames, and its latents `clip.safetensors`."""
    folder = tmp_path_factory.mktemp("clip")
    arguments = ["generate", RED, "-o", folder / "clip.mp4", "--seconds", 2, "--seed", 3]
    result = CliRunner().invoke(cli, list(map(str, [*arguments, "--save-latents", folder / "clip.safetensors"])))
    assert result.exit_code == 0, result.output
    return folder


@pytest.fixture
def generate(clip, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> Result:
        return CliRunner().invoke(cli, ["generate", *map(str, arguments), "--device", "cpu"])

    return run


def mean_change(frames: torch.Tensor) -> torch.Tensor:
    """How much each frame differs from the one before it."""
    return (frames[1:].float() - frames[:-1].float()).abs().mean(dim=(1, 2, 3))


def test_from_latents(generate, clip):
    arguments = (RED, "--seed", 3, "--save-latents")
    assert generate(*arguments, "whole.safetensors", "-o", "whole.mp4", "--frames", 57).exit_code == 0
    result = generate(
        *arguments, "v.safetensors", "-o", "v.mp4", "--frames", 20,
        "--continue-from", clip / "clip.safetensors", "--json", "r.json",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert torch.equal(read_video("v.mp4"), read_video("whole.mp4"))
    assert torch.equal(load_file("v.safetensors")["latents"], load_file("whole.safetensors")["latents"])
    assert "v.mp4: 57 frames of 160x96" in result.stdout
    assert re.search(r"  given  its first 33 frames, from clip\.safetensors \(sha256 [0-9a-f]{16}\)\n", result.stdout)
    assert "  20 new frames were asked for; a video is made of whole chunks" in result.stdout
    assert "without" not in result.stdout
    report = json.loads(Path("r.json").read_text())
    counts = [report[f"frames{which}"] for which in ("", "_given", "_made", "_requested")]
    assert counts == [57, 33, 24, 20]
    assert report["fps_diffusion"] == pytest.approx(1e3 * 24 / report["diffusion_ms"], abs=1e-3)
    assert report["given_ms"] > 0


def test_from_a_video_of_ours(generate, clip):
    result = generate(BLUE, "-o", "v.mp4", "--frames", 24, "--continue-from", clip / "clip.mp4")
    assert result.exit_code == 0, result.output
    assert "24 new frames" not in result.stdout  # exactly as many as were asked for
    frames, first = read_video("v.mp4"), read_video(clip / "clip.mp4")
    assert frames.shape == (57, 96, 160, 3)
    assert (frames[:33].float() - first.float()).abs().mean() < 4  # the VAE and H.264 once more, of 255
    comment = json.loads(probe("v.mp4").metadata["comment"])
    prompts = [{"at_seconds": 0.0, "text": RED}, {"at_seconds": 33 / 16, "text": BLUE}]
    assert comment["prompt"] == prompts  # what was given keeps the prompt it was made from
    third = generate(RED, "-o", "w.mp4", "--frames", 12, "--continue-from", "v.mp4")
    assert third.exit_code == 0, third.output
    comment = json.loads(probe("w.mp4").metadata["comment"])
    assert comment["prompt"] == [*prompts, {"at_seconds": 57 / 16, "text": RED}]
    assert comment["continue_from"].startswith("v.mp4 (sha256 ")


def test_there_is_no_jump_at_the_joint(generate, clip):
    for source in ("clip.mp4", "clip.safetensors"):
        assert (
            generate(RED, "-o", "v.mp4", "--frames", 24, "--continue-from", clip / source, "--overwrite").exit_code == 0
        )
        changes = mean_change(read_video("v.mp4"))
        others = changes[[8, 20, 44]].mean()  # the other joints of chunks: more changes there than within
        assert changes[32] < 1.5 * others  # from the last given frame to the first new one


def test_what_is_left_out_is_said(generate, clip):
    frames = read_video(clip / "clip.mp4")
    writer = VideoWriter("cut.mp4")
    writer.write(frames[:26])
    writer.finish()
    latents = load_file(clip / "clip.safetensors")["latents"]
    save_file({"latents": latents[:8]}, "cut.safetensors")
    result = generate(RED, "-o", "v.mp4", "--frames", 12, "--continue-from", "cut.mp4")
    assert "v.mp4: 33 frames" in result.stdout
    assert "without the first 5 of that file, which make no whole chunk" in result.stdout
    result = generate(RED, "-o", "l.mp4", "--frames", 12, "--continue-from", "cut.safetensors", "--json", "r.json")
    assert "l.mp4: 33 frames" in result.stdout
    assert "without the last 8 of that file, which make no whole chunk" in result.stdout
    report = json.loads(Path("r.json").read_text())
    assert (report["first_frames_left_out"], report["last_frames_left_out"]) == (0, 8)


def test_one_beginning_for_many_videos(generate, clip):
    Path("p.txt").write_text(f"{RED}\n{BLUE}\n")
    source = clip / "clip.safetensors"
    arguments = ("--prompt-file", "p.txt", "--num-videos", 2, "--frames", 12, "--continue-from", source, "-o", "videos")
    result = generate(*arguments)
    assert result.exit_code == 0, result.output
    videos = [read_video(path) for path in sorted(Path("videos").iterdir())]
    assert [len(frames) for frames in videos] == [45] * 4
    assert all(torch.equal(frames[:33], videos[0][:33]) for frames in videos)
    assert len({frames[33:].float().mean().item() for frames in videos}) == 4
    again = generate(*arguments, "--resume")
    assert again.exit_code == 0
    assert again.stdout.count("finished already") == 4
    refused = generate(*arguments[:-3], clip / "clip.mp4", "-o", "videos", "--resume")
    assert refused.exit_code == 2
    assert re.search(r"finished, with continue_from 'clip\.safetensors .*, not 'clip\.mp4", refused.stderr)


def test_killed_in_the_given_part_and_resumed(generate, clip):
    save_file({"latents": load_file(clip / "clip.safetensors")["latents"].repeat(5, 1, 1, 1)}, "long.safetensors")
    arguments = (BLUE, "--continue-from", "long.safetensors", "--frames", 12, "-o")
    assert generate(*arguments, "whole.mp4").exit_code == 0
    start = "from forcing_kv.cli import main; main()"
    command = [sys.executable, "-c", start, "generate", *map(str, arguments), "v.mp4", "--device", "cpu"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}  # as here: torch rounds otherwise with other threads
    with subprocess.Popen(command, stderr=subprocess.DEVNULL, env=environment) as process:
        _wait_for(partial_folder("v.mp4") / "segment-00002.mp4", process)
        process.send_signal(signal.SIGKILL)
    save_file({"latents": torch.zeros(3, 16, 12, 20)}, "other.safetensors")
    refused = generate(BLUE, "--continue-from", "other.safetensors", "--frames", 12, "-o", "v.mp4", "--resume")
    assert refused.exit_code == 2
    assert re.search(r"asked for with continue_from 'long\.safetensors .*, not 'other\.safetensors", refused.stderr)
    result = generate(*arguments, "v.mp4", "--resume", "--json", "r.json")
    assert result.exit_code == 0, result.output
    assert Path("v.mp4").read_bytes() == Path("whole.mp4").read_bytes()
    report = json.loads(Path("r.json").read_text())
    assert (report["frames"], report["frames_given"], report["frames_made"]) == (189, 177, 12)


def _wait_for(path: Path, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 120
    while not path.exists():
        assert process.poll() is None, "the program ended before it was expected to"
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.fixture
def broken(tmp_path, clip) -> Path:
    """A folder of files that cannot be continued."""
    (tmp_path / "text.mp4").write_text("no video")
    (tmp_path / "broken.safetensors").write_bytes((clip / "clip.safetensors").read_bytes()[:200])
    save_file({"weight": torch.zeros(3)}, tmp_path / "weights.safetensors")
    save_file({"latents": torch.zeros(3, 12, 12, 20)}, tmp_path / "other_model.safetensors")
    save_file({"latents": torch.zeros(2, 16, 12, 20)}, tmp_path / "short.safetensors")
    save_file({"latents": torch.full((3, 16, 12, 20), torch.inf)}, tmp_path / "infinite.safetensors")
    for name, num_frames, width, fps in (("short", 8, 160, 16), ("wide", 9, 164, 16), ("fast", 9, 160, 30)):
        writer = VideoWriter(tmp_path / f"{name}.mp4", fps=fps)
        writer.write(torch.zeros(num_frames, 96, width, 3, dtype=torch.uint8))
        writer.finish()
    return tmp_path


BAD_SOURCES = [
    (["missing.mp4"], "missing.mp4 cannot be read: No such file"),
    (["text.mp4"], "text.mp4 cannot be read as a video"),
    (["short.mp4"], "short.mp4 has 8 frames, too few to be continued: at least 9 are needed"),
    (["wide.mp4"], "164x96 at 16 .* must be 160x96 at 16 .*: ffmpeg -i wide.mp4 -vf scale=160:96,fps=16 out.mp4"),
    (["fast.mp4"], "160x96 at 30 .* must be 160x96 at 16 .*: ffmpeg -i fast.mp4 -vf scale=160:96,fps=16 out.mp4"),
    (["clip.mp4", "--resolution", "48x32"], "160x96 at 16 .* must be 48x32 at 16 .*scale=48:32"),
    (["clip.safetensors", "--resolution", "48x32"], "of 160x96 pixels cannot be continued at 48x32: ask for 160x96"),
    (["broken.safetensors"], "broken.safetensors cannot be read as latents"),
    (["weights.safetensors"], "weights.safetensors holds no latents but weight: give a file that --save-latents wrote"),
    (["other_model.safetensors"], "of 12 channels do not fit this model, whose latents have 16"),
    (["short.safetensors"], "2 latent frames are too few to be continued"),
    (["infinite.safetensors"], "not all finite"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD_SOURCES, ids=[" ".join(call[0]) for call in BAD_SOURCES])
def test_one_line_before_the_model_is_loaded(generate, broken, clip, monkeypatch, *, arguments, message):
    monkeypatch.setattr("forcing_kv.pipeline.VideoPipeline.from_pretrained", lambda *_, **__: pytest.fail("loaded"))
    before = sorted(os.listdir())
    source = clip / arguments[0] if (clip / arguments[0]).exists() else arguments[0]
    result = generate(RED, "--continue-from", source, *arguments[1:])
    assert result.exit_code == 2, result.output
    assert len(result.stderr.splitlines()) == 1, result.stderr
    assert re.search(f"^forcing-kv: error: .*{message}", result.stderr), result.stderr
    assert sorted(os.listdir()) == before
