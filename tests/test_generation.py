"""The run that makes a file: what it writes, and how it goes on after a kill."""

import json
import os
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open

from forcing_kv.errors import ConfigurationError, OutputError
from forcing_kv.generation import (
    VideoRequest,
    check_made_alike,
    check_requests,
    frames_of,
    generate_video,
    is_finished,
    plan_requests,
)
from forcing_kv.generation.request import MAX_SEED, slug
from forcing_kv.pipeline import VideoPipeline
from forcing_kv.prompt_schedule import ScheduledPrompt, prompt_schedule
from forcing_kv.stream_options import StreamOptions
from forcing_kv.video import VideoWriter, probe, read_video
from forcing_kv.video.writer import partial_folder

PROMPT = prompt_schedule("a red circle")


@pytest.fixture(scope="module")
def pipeline(tiny_model_folder) -> VideoPipeline:
    return VideoPipeline.from_pretrained(tiny_model_folder, device="cpu")


class Killed(BaseException):
    """Stands for a death that runs no clean-up of the driver's."""


def kill_after(num_chunks: int, error: type[BaseException] = Killed):
    def on_progress(progress) -> None:
        if progress.chunks_done == num_chunks:
            raise error

    return on_progress


def test_frames_of_seconds():
    assert [frames_of(seconds, 16) for seconds in (20, 0.01, 0.0625, 0.1 + 0.2)] == [320, 1, 1, 5]
    for seconds in (0, -1, float("nan"), float("inf")):
        with pytest.raises(ConfigurationError, match="seconds cannot be made: ask for more than 0"):
            frames_of(seconds, 16)


def test_file_report_and_latents(pipeline, tmp_path):
    request = VideoRequest(
        prompts=PROMPT, path=tmp_path / "v.mp4", num_frames=20, seed=3, latents_path=tmp_path / "v.safetensors"
    )
    steps = []
    report = generate_video(pipeline, request, on_progress=lambda progress: steps.append(progress.chunks_done))
    assert steps == [0, 1, 2]
    assert (report.frames, report.frames_made, report.frames_requested) == (21, 21, 20)
    assert sorted(os.listdir(tmp_path)) == ["v.mp4", "v.safetensors"]
    info = probe(request.path)
    assert (info.num_frames, info.width, info.height, info.fps) == (21, 96, 64, 16)
    assert info.metadata["title"] == "a red circle"
    comment = json.loads(info.metadata["comment"])
    assert {key: comment[key] for key in ("prompt", "seed", "model")} == {
        "prompt": "a red circle",
        "seed": 3,
        "model": "random",
    }
    assert comment["policy"].startswith("forcing-kv")
    expected = VideoWriter(tmp_path / "expected.mp4")
    for chunk in pipeline.generate("a red circle", num_frames=20, seed=3)[0].split([9, 12]):
        expected.write(chunk)
    assert torch.equal(read_video(request.path), read_video(expected.finish()))
    with safe_open(str(request.latents_path), "pt") as file:
        assert json.loads(file.metadata()["comment"])["seed"] == 3
        latents = file.get_tensor("latents")
    stream = pipeline.stream("a red circle", num_frames=20, seed=3)
    assert torch.equal(latents, torch.cat([chunk.latents[0] for chunk in stream]))

    document = json.loads(json.dumps(report.to_json()))
    assert document["seconds_video"] == pytest.approx(21 / 16)
    assert document["fps_diffusion"] > document["fps_end_to_end"] > 0
    assert document["cache_bytes"] == stream.cache.nbytes
    assert document["full_cache_bytes"] == pipeline.geometry().kv_bytes(6, bytes_per_value=pipeline.dtype.itemsize)
    assert {"policy", "model", "device", "seed", "versions", "width", "height"} <= document.keys()
    assert document["versions"].keys() >= {"forcing-kv", "torch"}


@pytest.fixture(autouse=True)
def a_snapshot_after_every_chunk(monkeypatch):
    monkeypatch.setattr("forcing_kv.generation.run.MAX_SNAPSHOT_SHARE", 1.0)  # however slow the disk is


@pytest.mark.parametrize("died_after", [0, 1, 2, 3])
def test_resumed_file_equals_uninterrupted_one(pipeline, tmp_path, died_after, monkeypatch):
    schedule = (ScheduledPrompt(text="a red circle"), ScheduledPrompt(at_seconds=1, text="a blue square"))
    whole = VideoRequest(prompts=schedule, path=tmp_path / "whole.mp4", num_frames=45)
    generate_video(pipeline, whole)
    cut = VideoRequest(prompts=schedule, path=tmp_path / "cut.mp4", num_frames=45, latents_path=tmp_path / "l.st")
    monkeypatch.setattr("forcing_kv.video.VideoWriter.discard", lambda _: None)  # the dead tidy nothing up
    with pytest.raises(Killed):
        generate_video(pipeline, cut, on_progress=kill_after(died_after))
    assert not cut.path.exists()
    assert not is_finished(cut)
    report = generate_video(pipeline, cut, resume=True)
    assert (report.frames, report.frames_made) == (45, 45 if died_after == 0 else 45 - (12 * died_after - 3))
    assert cut.path.read_bytes() == whole.path.read_bytes()
    assert is_finished(cut)
    assert not partial_folder(cut.path).exists()


def test_where_snapshots_are_slow_not_every_chunk_gets_one(pipeline, tmp_path, monkeypatch):
    monkeypatch.setattr("forcing_kv.generation.run.MAX_SNAPSHOT_SHARE", 0.0)  # the first chunk only
    whole = VideoRequest(prompts=PROMPT, path=tmp_path / "whole.mp4", num_frames=45)
    generate_video(pipeline, whole)
    cut = VideoRequest(prompts=PROMPT, path=tmp_path / "cut.mp4", num_frames=45, latents_path=tmp_path / "l.st")
    with pytest.raises(Killed):
        generate_video(pipeline, cut, on_progress=kill_after(3))
    assert generate_video(pipeline, cut, resume=True).frames_made == 45 - 9
    assert cut.path.read_bytes() == whole.path.read_bytes()


def test_latents_that_were_kept_are_not_lost_by_a_resume_without_them(pipeline, tmp_path):
    cut = VideoRequest(prompts=PROMPT, path=tmp_path / "cut.mp4", num_frames=33, latents_path=tmp_path / "l.st")
    with pytest.raises(Killed):
        generate_video(pipeline, cut, on_progress=kill_after(1))
    with pytest.raises(OutputError, match="was begun with --save-latents, and its latents would be lost"):
        generate_video(pipeline, replace(cut, latents_path=None), resume=True)
    generate_video(pipeline, cut, resume=True)
    check_made_alike(pipeline, cut)
    cut.latents_path.unlink()
    with pytest.raises(OutputError, match="is finished, and its latents were not kept in"):
        check_made_alike(pipeline, cut)


def test_snapshot_that_lags_behind_makes_the_chunk_again(pipeline, tmp_path, monkeypatch):
    """Killed between a segment and its snapshot: the segment is dropped and made again."""
    request = VideoRequest(prompts=PROMPT, path=tmp_path / "v.mp4", num_frames=33)
    generate_video(pipeline, request)
    expected = request.path.read_bytes()
    original = type(pipeline.stream("a")).snapshot

    def killed_at_second(stream):
        if stream.chunk_index == 2:
            raise Killed
        return original(stream)

    with monkeypatch.context() as patch:
        patch.setattr("forcing_kv.rollout.VideoStream.snapshot", killed_at_second)
        with pytest.raises(Killed):
            generate_video(pipeline, request, overwrite=True)
    assert len(list(partial_folder(request.path).glob("segment-*.mp4"))) == 2
    assert request.path.read_bytes() == expected  # the old file stays until the new one is whole
    assert generate_video(pipeline, request, resume=True).frames_made == 24
    assert request.path.read_bytes() == expected


def test_resume_can_ask_for_more_or_fewer_frames(pipeline, tmp_path):
    whole = VideoRequest(prompts=PROMPT, path=tmp_path / "whole.mp4", num_frames=33)
    generate_video(pipeline, whole)
    for num_frames, expected in ((33, 33), (9, 9)):
        request = VideoRequest(prompts=PROMPT, path=tmp_path / f"{num_frames}.mp4", num_frames=21)
        longer = VideoRequest(prompts=PROMPT, path=request.path, num_frames=num_frames)
        with pytest.raises(Killed):
            generate_video(pipeline, request, on_progress=kill_after(2))
        assert generate_video(pipeline, longer, resume=True).frames == expected
        assert torch.equal(read_video(longer.path), read_video(whole.path)[:expected])


def test_interrupt_gives_what_is_there(pipeline, tmp_path):
    request = VideoRequest(prompts=PROMPT, path=tmp_path / "v.mp4", num_frames=45, latents_path=tmp_path / "v.st")
    report = generate_video(pipeline, request, on_progress=kill_after(2, KeyboardInterrupt))
    assert (report.interrupted, report.frames) == (True, 21)
    assert probe(request.path).num_frames == 21
    with safe_open(str(request.latents_path), "pt") as file:
        assert file.get_tensor("latents").shape[0] == 6


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_death_before_the_first_chunk_leaves_nothing(pipeline, tmp_path, error):
    request = VideoRequest(prompts=PROMPT, path=tmp_path / "v.mp4", num_frames=9)
    with pytest.raises(error):
        generate_video(pipeline, request, on_progress=kill_after(0, error))
    assert os.listdir(tmp_path) == []


def test_resume_refuses_other_settings(pipeline, tmp_path):
    settings = {"path": tmp_path / "v.mp4", "num_frames": 21}
    request = VideoRequest(prompts=PROMPT, **settings)
    with pytest.raises(Killed):
        generate_video(pipeline, request, on_progress=kill_after(1))
    for change, message in (
        ({"prompts": prompt_schedule("a blue square")}, "prompt 'a red circle', not 'a blue square'"),
        ({"prompts": PROMPT, "seed": 4}, "seed 0, not 4"),
        ({"prompts": PROMPT, "policy": "full"}, "policy 'forcing-kv.*', not 'full'"),
        ({"prompts": PROMPT, "options": StreamOptions(positions="relative")}, "positions 'absolute', not 'relative'"),
    ):
        with pytest.raises(OutputError, match=message):
            generate_video(pipeline, VideoRequest(**change, **settings), resume=True)
    with_latents = VideoRequest(prompts=PROMPT, latents_path=tmp_path / "v.st", **settings)
    with pytest.raises(OutputError, match="kept no latents"):
        generate_video(pipeline, with_latents, resume=True)
    assert generate_video(pipeline, request, resume=True).frames == 21  # none of the refusals did any harm


def test_bad_policy_leaves_nothing(pipeline, tmp_path):
    for policy in ("nonsense", "forcing-kv:segments_per_frame=7"):
        request = VideoRequest(prompts=PROMPT, path=tmp_path / "v.mp4", num_frames=9, policy=policy)
        with pytest.raises(ValueError, match=r"nonsense|segments_per_frame=7"):
            generate_video(pipeline, request)
    assert os.listdir(tmp_path) == []


def test_a_model_without_a_decoder_makes_no_video(pipeline, tmp_path):
    blind = VideoPipeline(
        preset=pipeline.preset,
        transformer=pipeline.transformer,
        encode_prompt=pipeline.encode_prompt,
        head_map=pipeline.head_map,
    )
    request = VideoRequest(prompts=PROMPT, path=tmp_path / "v.mp4", num_frames=9)
    with pytest.raises(ConfigurationError, match="was loaded without a VAE: no video"):
        generate_video(blind, request)
    assert os.listdir(tmp_path) == []


def test_planned_requests_count_videos_and_seeds(tmp_path):
    prompts = [prompt_schedule("A red circle, moving!"), prompt_schedule("日本")]
    requests = plan_requests(prompts, tmp_path, num_frames=9, seed=5, num_videos=2, latents_folder=tmp_path / "l")
    assert [(request.path.name, request.seed) for request in requests] == [
        ("001-a-red-circle-moving.mp4", 5),
        ("002-a-red-circle-moving.mp4", 6),
        ("003-video.mp4", 5),
        ("004-video.mp4", 6),
    ]
    assert requests[3].latents_path == tmp_path / "l" / "004-video.safetensors"
    assert slug("Ein Füchslein " + "sehr " * 20) == "ein-fuchslein-sehr-sehr-sehr-sehr-sehr"
    with pytest.raises(ConfigurationError, match="0 videos"):
        plan_requests(prompts, tmp_path, num_frames=9, num_videos=0)


def test_all_files_are_checked_before_the_first_is_begun(tmp_path):
    requests = plan_requests([PROMPT], tmp_path / "new", num_frames=9, num_videos=2)
    with pytest.raises(OutputError, match="does not exist"):
        check_requests(requests)
    check_requests(requests, folders=[tmp_path / "new"])
    (tmp_path / "new").mkdir()
    requests[1].path.touch()
    with pytest.raises(OutputError, match=r"002-a-red-circle\.mp4 exists"):
        check_requests(requests)
    with pytest.raises(OutputError, match=r"002-a-red-circle\.mp4 exists"):
        check_requests(requests, resume=True)  # it is not one of ours
    check_requests(requests, overwrite=True)


def test_request_refusals(tmp_path):
    with pytest.raises(ConfigurationError, match="0 frames"):
        VideoRequest(prompts=PROMPT, path=tmp_path / "v.mp4", num_frames=0)
    for seed in (-1, MAX_SEED + 1):
        with pytest.raises(ConfigurationError, match="out of range"):
            VideoRequest(prompts=PROMPT, path=tmp_path / "v.mp4", num_frames=9, seed=seed)
