"""Small benchmarks: a plan on the small model, and measurements made up of round numbers."""

import torch

from forcing_kv.bench import BenchmarkPlan, plan_benchmark
from forcing_kv.bench.turns import Measured
from forcing_kv.bench.video import TimedChunk, TimedVideo
from forcing_kv.models import find_model


def small_plan(model, policies=("full", "window", "forcing-kv"), **settings) -> BenchmarkPlan:
    """Of a saved folder, on the CPU, in float32."""
    settings = {"num_frames": 21, "repeats": 2, "prompt": "a red circle", **settings}
    return plan_benchmark(
        find_model(model), list(policies), device=torch.device("cpu"), dtype=torch.float32, **settings
    )


def timed_video(plan: BenchmarkPlan, policy, diffusion_ms) -> TimedVideo:
    """With these times of its chunks; every decode takes 20 ms, every encode 10 ms, the text 5 ms."""
    chunks = [
        TimedChunk(
            index=index,
            frames=12 if index else 9,
            text_ms=0.0 if index else 5.0,
            diffusion_ms=milliseconds,
            decode_ms=20.0,
            encode_ms=10.0,
            cache_bytes=1000 * (index + 1),
            history_tokens=policy.steady.history_tokens,
        )
        for index, milliseconds in enumerate(diffusion_ms)
    ]
    return TimedVideo(
        chunks=tuple(chunks[: plan.num_chunks]),
        steady_chunks=tuple(chunk for chunk in chunks if chunk.index in policy.steady),
        first_frame_ms=100.0 + diffusion_ms[0],
        total_ms=500.0,
    )


def measured(plan: BenchmarkPlan, times, *, peak_bytes: int | None = 7_000_000) -> list[Measured]:
    """Per policy a list of videos, each given by the times of its chunks."""
    return [
        Measured(policy=policy, videos=[timed_video(plan, policy, video) for video in videos], peak_bytes=peak_bytes)
        for policy, videos in zip(plan.policies, times, strict=True)
    ]
