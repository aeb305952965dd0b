"""What came out of a benchmark, as JSON: a row per policy, the ratios between them, and all that was timed."""

import json
import re
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from forcing_kv.bench.ceilings import Ceilings
from forcing_kv.bench.plan import SEED, BenchmarkPlan
from forcing_kv.bench.steady_state import frames_read
from forcing_kv.bench.turns import Measured
from forcing_kv.bench.video import TimedVideo
from forcing_kv.output_files import atomic_write
from forcing_kv.policies import ForcingKV
from forcing_kv.video.decoders import VAE_NAME

FORMAT = "forcing-kv-benchmark"
VERSION = 1
COMPARED = ("steady_chunk_ms", "flops_per_pass", "bytes_per_pass", "steady_cache_bytes")
"""Columns whose ratios stand in the report: the clock's, and beside it the arithmetic's."""


def benchmark_report(
    plan: BenchmarkPlan, measured: Sequence[Measured], *, ceilings: Ceilings, environment: dict[str, Any]
) -> dict[str, Any]:
    """The document of a benchmark, finished or not; a policy without a timed video has no row.

    Args:
        plan: What was to be measured.
        measured: What is known of each policy.
        ceilings: Of the machine.
        environment: What it was measured with, from before the run: the tree may change under a long one.
    """
    rows = [policy_row(plan, one, ceilings=ceilings) for one in measured if one.videos]
    left_out = plan.left_out()
    if any(one.peak_bytes is None for one in measured):
        left_out["peak_bytes"] = f"this system does not tell what a program takes of {plan.device.type}"
    return {
        "format": FORMAT,
        "version": VERSION,
        "complete": all(len(one.videos) == plan.repeats for one in measured),
        "config": _config(plan),
        "ceilings": {
            "matmul_tflops_per_second": _rounded(ceilings.matmul_flops_per_second / 1e12),
            "copy_gbytes_per_second": _rounded(ceilings.copy_bytes_per_second / 1e9),
        },
        "left_out": left_out,
        "policies": rows,
        "ratios": ratios(rows, against=_reference([policy.name for policy in plan.policies])),
        "environment": environment,
    }


def policy_row(plan: BenchmarkPlan, measured: Measured, *, ceilings: Ceilings) -> dict[str, Any]:
    """One policy: medians over its videos or chunks, each with its least and its greatest value."""
    policy, videos = measured.policy, measured.videos
    steady = [chunk for video in videos for chunk in video.steady_chunks]
    steady_ms = statistics.median(chunk.diffusion_ms for chunk in steady)
    latencies = [chunk.latency_ms for video in videos for chunk in video.chunks]
    tokens = steady[0].history_tokens
    work, least_ms = plan.pass_work(tokens), plan.least_chunk_ms(tokens, ceilings)
    return {
        "name": policy.name,
        "policy": policy.stream.policy.spec(),
        "videos": len(videos),
        "fps_diffusion": _rounded(statistics.median(video.fps_diffusion for video in videos)),
        "fps_diffusion_range": _range(video.fps_diffusion for video in videos),
        "fps_end_to_end": _rounded(statistics.median(video.fps_end_to_end for video in videos))
        if plan.decodes
        else None,
        "fps_end_to_end_range": _range(video.fps_end_to_end for video in videos) if plan.decodes else None,
        "first_frame_ms": _rounded(statistics.median(video.first_frame_ms for video in videos)),
        "first_frame_ms_range": _range(video.first_frame_ms for video in videos),
        "first_compile_ms": _rounded(measured.first_compile_ms),
        "compile_ms": _rounded(statistics.median(video.compile_ms for video in videos)),
        "chunk_latency_ms": _rounded(statistics.median(latencies)),
        "chunk_latency_ms_p95": _rounded(float(np.percentile(latencies, 95))),
        "steady_chunk_ms": _rounded(steady_ms),
        "steady_chunk_ms_range": _range(chunk.diffusion_ms for chunk in steady),
        "steady_chunks": sorted({chunk.index for chunk in steady}),
        "cache_bytes": videos[-1].chunks[-1].cache_bytes,
        "steady_cache_bytes": steady[0].cache_bytes,
        "peak_bytes": measured.peak_bytes,
        "frames_read": _rounded(frames_read(tokens, plan.geometry)),
        "flops_per_pass": work.flops,
        "bytes_per_pass": work.bytes,
        "least_chunk_ms": _rounded(least_ms),
        "share_of_ceiling": _rounded(least_ms / steady_ms),
        "by_chunk": _by_chunk(plan, videos),
        "timed": [_timed(video) for video in videos],
    }


def ratios(rows: Sequence[dict[str, Any]], *, against: str) -> dict[str, Any]:
    """Every policy's time, arithmetic and bytes in the steady state as multiples of one policy's."""
    reference = next((row for row in rows if row["name"] == against), None)
    if reference is None:
        return {"against": against, "policies": {}}
    return {
        "against": against,
        "policies": {
            row["name"]: {column: _rounded(row[column] / reference[column]) for column in COMPARED}
            for row in rows
            if row is not reference
        },
    }


def write_report(document: dict[str, Any], path: Path) -> None:
    """Writes the JSON; a reader finds the old one or the new one, whole.

    Raises:
        OutputError: The file cannot be written.
    """
    with atomic_write(path) as temporary:
        text = json.dumps(document, indent=1)
        # Numbers of one list on one line; a string has no line breaks in JSON, so none is touched.
        text = re.sub(r"\[\n([^][{}\"]*?)\n *\]", lambda match: f"[{' '.join(match[1].split())}]", text)
        temporary.write_text(text + "\n", encoding="utf-8")


def _reference(names: Sequence[str]) -> str:
    """The policy that others are compared with: ours, where it takes part."""
    return next((name for name in names if name.partition(":")[0] == ForcingKV.name), names[0])


def _config(plan: BenchmarkPlan) -> dict[str, Any]:
    source, preset = plan.source, plan.source.preset
    return {
        "model": preset.name,
        "weights": "random" if plan.random_weights else source.weights_label(),
        "num_layers": source.config.num_layers,
        "head_map": None if plan.head_map is None else plan.head_map.model,
        "resolution": list(plan.resolution),
        "frames": plan.num_frames,
        "seconds": plan.num_frames / preset.fps,
        "fps_video": preset.fps,
        "chunks": plan.num_chunks,
        "chunk_frames": preset.chunk_frames,
        "steps": list(preset.steps),
        "policies": [policy.name for policy in plan.policies],
        **plan.options.changing_results(),
        "steps_skipped": plan.steps_skipped,
        "passes_per_chunk": plan.chunk_passes,
        "repeats": plan.repeats,
        "warm_up_turns": 1,
        "prompt": plan.prompt,
        "seed": SEED,
        "attention": plan.options.attention,
        "device": str(plan.device),
        "dtype": str(plan.dtype).removeprefix("torch."),
        **_decoder_config(plan),
        "precision": plan.precision,
        "execution": plan.options.execution,
        "threads": torch.get_num_threads(),
    }


def _decoder_config(plan: BenchmarkPlan) -> dict[str, Any]:
    """Which decoder made pixels, and how; nothing but None where none did."""
    if not plan.decodes:
        return {"decoder": None}
    decoding = plan.decoding
    return {
        "decoder": VAE_NAME if decoding.file is None else decoding.file.name,
        "decoder_dtype": str(decoding.dtype_beside(plan.dtype, plan.device)).removeprefix("torch."),
        "decoder_layout": "channels-last" if decoding.is_channels_last(plan.device) else "contiguous",
        "decoder_compiled": decoding.compiled,
        "overlapped": decoding.is_overlapped(plan.device),
    }


def _by_chunk(plan: BenchmarkPlan, videos: Sequence[TimedVideo]) -> dict[str, list[Any]]:
    """The course of a video, which the figure shows: a value per chunk."""
    chunks = list(zip(*(video.chunks for video in videos), strict=True))
    frames = np.cumsum([same[0].frames for same in chunks])
    fps = [[1e3 * chunk.frames / chunk.diffusion_ms for chunk in same] for same in chunks]
    return {
        "end_seconds": [_rounded(float(end) / plan.source.preset.fps) for end in frames],
        "fps_diffusion": [_rounded(statistics.median(values)) for values in fps],
        "fps_diffusion_range": [_range(values) for values in fps],
        "cache_bytes": [same[-1].cache_bytes for same in chunks],
    }


def _timed(video: TimedVideo) -> dict[str, Any]:
    """A video as it was timed."""
    parts = ("compile_ms", "diffusion_ms", "decode_ms", "encode_ms", "queued_ms")
    return {
        "text_ms": _rounded(video.chunks[0].text_ms),
        **{part: [_rounded(getattr(chunk, part)) for chunk in video.chunks] for part in parts},
        "steady_ms": [_rounded(chunk.diffusion_ms) for chunk in video.steady_chunks],
        "first_frame_ms": _rounded(video.first_frame_ms),
        "total_ms": _rounded(video.total_ms),
    }


def _range(values: Any) -> list[float]:
    values = list(values)
    return [_rounded(min(values)), _rounded(max(values))]


def _rounded(value: float) -> float:
    """To six digits: more than any clock here knows."""
    return float(f"{value:.6g}")
