"""The videos of a benchmark: in which order they are made, and what is timed of each."""

import itertools
from dataclasses import replace

import pytest
import torch

from forcing_kv.bench import Ceilings, load_pipeline, run_benchmark
from forcing_kv.bench import turns as turns_module
from forcing_kv.bench.peak_memory import peak_meter
from forcing_kv.bench.turns import take_turns
from forcing_kv.bench.video import time_video
from forcing_kv.cache import cache_bytes
from forcing_kv.stream_options import StreamOptions
from forcing_kv.video import DecoderOptions
from measurements import small_plan, timed_video

CEILINGS = Ceilings(matmul_flops_per_second=1e15, copy_bytes_per_second=1e15)


@pytest.fixture(scope="module")
def plan(tiny_model_folder):
    return small_plan(tiny_model_folder, resolution=(48, 32))


@pytest.fixture(scope="module")
def pipeline(plan):
    return load_pipeline(plan)


def test_policies_take_turns_and_the_first_turn_does_not_count(plan, monkeypatch):
    made = []

    def record(pipeline, plan, policy, path, *, on_chunk):
        made.append((policy.name, policy.num_chunks))
        for _ in range(policy.num_chunks):
            on_chunk()
        return timed_video(plan, policy, [float(len(made))] * policy.num_chunks)

    monkeypatch.setattr(turns_module, "time_video", record)
    progress = []
    states = [
        [len(one.videos) for one in measured]
        for measured in take_turns(plan, None, on_progress=lambda done, total: progress.append((done, total)))
    ]
    turn = [("full", 7), ("window", 4), ("forcing-kv", 4)]
    assert made == [("full", 1), *turn * 3]  # one chunk for what is loaded on first use, and a turn to warm up
    assert states == [[1, 0, 0], [1, 1, 0], [1, 1, 1], [2, 1, 1], [2, 2, 1], [2, 2, 2]]
    total = 1 + 3 * (7 + 4 + 4)
    assert progress == [(done, total) for done in range(1, total + 1)]


def test_timed_videos_are_those_after_the_first_turn(plan, monkeypatch):
    clock = itertools.count(1)
    monkeypatch.setattr(
        turns_module,
        "time_video",
        lambda pipeline, plan, policy, path, *, on_chunk: timed_video(plan, policy, [float(next(clock))] * 7),
    )
    *_, measured = take_turns(plan, None)
    # Video 1 is the single chunk, 2 to 4 are the warm-up.
    assert [[video.chunks[0].diffusion_ms for video in one.videos] for one in measured] == [[5, 8], [6, 9], [7, 10]]


def test_a_video_part_by_part(plan, pipeline, tmp_path):
    made = []
    full, window, _ = plan.policies
    video = time_video(pipeline, plan, full, tmp_path / "v.mp4", on_chunk=lambda: made.append(1))
    assert len(made) == 7
    assert [chunk.index for chunk in video.chunks] == [0, 1]
    assert [chunk.frames for chunk in video.chunks] == [9, 12]
    assert [chunk.index for chunk in video.steady_chunks] == [6]
    assert video.steady_chunks[0].history_tokens == full.steady.history_tokens
    assert video.chunks[0].history_tokens == 0
    for chunk in video.chunks:
        assert min(chunk.diffusion_ms, chunk.decode_ms, chunk.encode_ms) > 0
    assert video.chunks[0].text_ms > 0
    assert video.chunks[0].diffusion_ms + video.chunks[0].decode_ms < video.first_frame_ms
    assert sum(chunk.latency_ms for chunk in video.chunks) < video.total_ms
    assert video.fps_end_to_end < video.fps_diffusion
    assert not list(tmp_path.iterdir())
    held = time_video(pipeline, plan, window, tmp_path / "v.mp4").chunks[-1].cache_bytes
    assert held == 12 * plan.geometry.kv_bytes(1, bytes_per_value=4)


def test_a_quantised_cache_and_steps_left_out(plan, pipeline, tmp_path, monkeypatch):
    """Both reach the stream; what is held is what is stored, its workspace included."""
    _, window, _ = plan.policies
    plan = replace(plan, options=StreamOptions(kv_dtype="int8", step_cache=1e6)).with_steps_of(pipeline)
    assert plan.steps_skipped == len(plan.source.preset.steps) - 1
    passes = []
    run_blocks = pipeline.transformer.run_blocks
    monkeypatch.setattr(
        pipeline.transformer, "run_blocks", lambda *args, **settings: passes.append(1) or run_blocks(*args, **settings)
    )
    video = time_video(pipeline, plan, window, tmp_path / "v.mp4")
    assert len(passes) == window.num_chunks * plan.chunk_passes == window.num_chunks * 2
    held = cache_bytes(window.stream.policy, plan.geometry, num_chunks=2, dtype=torch.float32, kv_dtype="int8")
    assert video.chunks[-1].cache_bytes == held


def test_every_video_pays_for_its_prompt(plan, pipeline, tmp_path, monkeypatch):
    encoded = []
    encoder = pipeline.encode_prompt
    load = encoder._load
    monkeypatch.setattr(encoder, "_load", lambda: _Recording(load(), encoded))
    monkeypatch.setattr(encoder, "_encoder", None)
    one_chunk = replace(plan, num_chunks=1)
    for policy in plan.policies:
        time_video(pipeline, one_chunk, replace(policy, num_chunks=1), tmp_path / "v.mp4")
    assert encoded == [["a red circle"]] * 3


class _Recording:
    def __init__(self, encoder, encoded):
        self.encoder, self.encoded, self.model = encoder, encoded, encoder.model

    def __call__(self, texts):
        self.encoded.append(list(texts))
        return self.encoder(texts)


def test_a_whole_benchmark(plan, pipeline, tmp_path):
    """All videos are made of the same noise: the course of the cache is that of the policy, turn for turn."""
    path = tmp_path / "r.json"
    plan = replace(plan, repeats=1)
    *documents, last = run_benchmark(plan, pipeline, ceilings=CEILINGS, json_path=path)
    assert [document["complete"] for document in documents] == [False] * 2
    assert last["complete"]
    assert path.exists()
    full, window, ours = last["policies"]
    frame = plan.geometry.kv_bytes(1, bytes_per_value=4)
    assert full["by_chunk"]["cache_bytes"] == [15 * frame] * 2  # room for four chunks and the current one
    assert full["steady_cache_bytes"] == 27 * frame
    assert window["cache_bytes"] == 12 * frame
    assert ours["cache_bytes"] == pytest.approx(frame * (4 * 5 + 2 * 5 + 2 * 6 + 5 + 3 * 6) / 12)
    for row in last["policies"]:
        assert row["videos"] == 1
        assert 0 < row["share_of_ceiling"] < 1
        assert row["peak_bytes"] is None or row["peak_bytes"] >= 0
        assert row["fps_end_to_end"] < row["fps_diffusion"]


def test_a_meter_sees_what_a_block_takes():
    meter = peak_meter(torch.device("cpu"))
    if meter is None:
        pytest.skip("this system does not tell")
    with meter:
        held = torch.ones(50_000_000, dtype=torch.uint8)
    assert held.nbytes <= meter.taken_bytes < 2 * held.nbytes
    assert peak_meter(torch.device("meta")) is None


def test_a_video_whose_decoding_is_overlapped(tiny_model_folder, tmp_path):
    plan = small_plan(
        tiny_model_folder,
        policies=("window",),
        resolution=(48, 32),
        num_frames=45,
        decoding=DecoderOptions(overlap=True),
    )
    pipeline = load_pipeline(plan)
    assert pipeline.is_overlapped
    video = time_video(pipeline, plan, plan.policies[0], tmp_path / "v.mp4")
    assert [chunk.index for chunk in video.chunks] == [0, 1, 2, 3]
    assert [chunk.frames for chunk in video.chunks] == [9, 12, 12, 12]
    for chunk in video.chunks:
        assert min(chunk.diffusion_ms, chunk.decode_ms, chunk.encode_ms) > 0
        assert chunk.queued_ms >= 0
    # The first pixels are those of the first chunk, which nothing is made beside.
    assert video.chunks[0].diffusion_ms + video.chunks[0].decode_ms < video.first_frame_ms
    assert video.first_frame_ms < video.total_ms
    assert video.fps_end_to_end < video.fps_diffusion
    assert not list(tmp_path.iterdir())
