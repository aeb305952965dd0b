"""What every row of the GPU benchmarks should take on one H200, worked out before anything is measured.

Operations over the rate of the unit that does them, how unevenly the work falls on the chip's multiprocessors, bytes
over the rate of memory, and launches. Nothing here is a measurement of ours: `ASSUMED` says where each rate is from,
and the summary puts what was measured beside it.

    python benchmarks/gpu/predictions.py OUT        # a table, and OUT/predictions.json
"""

import argparse
import heapq
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from rows import Run, attention_there, made_with, quickest_way, stages

from forcing_kv.attention import BACKENDS
from forcing_kv.cache.size import TRAINED_FRAMES, cache_bytes, history_capacity
from forcing_kv.execution import EXECUTIONS
from forcing_kv.geometry import FrameGeometry
from forcing_kv.models import find_model
from forcing_kv.output_files import atomic_write
from forcing_kv.policies import CachePolicy, parse_policy
from forcing_kv.resolution import parse_resolution
from forcing_kv.wan import TransformerConfig
from forcing_kv.wan.fp8 import quantised_layers

FRAMES_PER_LATENT = 4
Groups = Sequence[tuple[int, int]]
"""Of one layer: heads, and the keys that each of them reads."""


@dataclass(frozen=True, kw_only=True)
class Assumed:
    """What predictions rest on.

    Attributes:
        linear_tflops: Of matrix products, by precision.
        attention_tflops: Of attention kernels at 128 values per head, by back end.
        memory_tbytes: Read and written per second.
        multiprocessors: Of the chip; tiles of work are dealt out to them.
        query_tile: Queries that one of them takes at a time.
        launch_gap_us: Between two kernels on the device, when replayed and when launched by the host.
        host_launch_us: What the host takes to launch a kernel; a pass takes no less than all of its launches.
        vae_us_per_pixel: Of the VAE of Wan2.1, per pixel of every frame.
        compiled_vae: How many times quicker it is compiled and channels-last.
        provenance: Where these are from.
    """

    linear_tflops: dict[str, float]
    attention_tflops: dict[str, float]
    memory_tbytes: float
    multiprocessors: int
    query_tile: int
    launch_gap_us: dict[str, float]
    host_launch_us: float
    vae_us_per_pixel: float
    compiled_vae: float
    provenance: dict[str, str]


ASSUMED = Assumed(
    linear_tflops={"bf16": 790, "fp8": 1580},
    attention_tflops={"sdpa": 370, "cudnn": 600, "fa3": 650, "triton": 390, "flex": 390, "plain": 100},
    memory_tbytes=4.3,
    multiprocessors=132,
    query_tile=128,
    launch_gap_us={"replayed": 1, "launched": 2},
    host_launch_us=8,
    vae_us_per_pixel=223e3 / (832 * 480 * 12),
    compiled_vae=1.5,
    provenance={
        "linear_tflops": "bf16: measured on an H200 in a large product; fp8: twice that, a bound",
        "attention_tflops": "published for an H100 (FlashAttention-3 paper, pytorch issue 142132): sdpa is taken to "
        "be FlashAttention-2; flex and plain are guesses",
        "memory_tbytes": "measured on an H200 in a large copy",
        "launch_gap_us": "guessed",
        "host_launch_us": "guessed",
        "vae_us_per_pixel": "reported elsewhere: 223 ms per chunk at 480p (SGLang pull request 38182)",
        "compiled_vae": "guessed; reported elsewhere: 1.2 to 2.7",
    },
)


def main() -> None:
    """Prints the table and writes the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder of the results; its ladder says how the other stages run")
    args = parser.parse_args()
    way = quickest_way(args.out)
    rows = [
        {
            "stage": stage,
            "run": run.name,
            "policy": policy,
            "options": run.options(),
            "prediction": predict(run, policy),
        }
        for stage, runs in stages(way).items()
        for run in runs
        for policy in run.policies
    ]
    document = {
        "benchmark": "gpu-predictions",
        "way": asdict(way),
        "assumed": asdict(ASSUMED),
        "rows": rows,
        "environment": made_with(),
    }
    with atomic_write(args.out / "predictions.json") as temporary:
        temporary.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    print("\n".join(table(rows)))


def predict(run: Run, policy_name: str, assumed: Assumed = ASSUMED) -> dict[str, Any]:
    """Of one policy of a run.

    Returns:
        `parts_ms` of a pass by kind of work, `pass_ms`, `launches`, `frames_read`, and what is measured
        too: `chunk_ms`, `fps`, `vae_ms`, `fps_end_to_end`, `first_frame_ms`, `cache_bytes`.
    """
    source = find_model(run.model)
    config, preset = source.config, source.preset
    geometry = preset.geometry(config, parse_resolution(run.resolution))
    policy = parse_policy(policy_name, head_map=source.head_map)
    layers = layer_groups(policy, geometry)
    passes = len(preset.steps) + 1
    parts = pass_parts_ms(run, config, geometry, layers, assumed)
    chunk_ms = passes * _pass_ms(parts)
    pixels = math.prod(parse_resolution(run.resolution))
    frames = geometry.chunk_frames * FRAMES_PER_LATENT
    vae_ms = 1e-3 * assumed.vae_us_per_pixel * pixels * frames / (assumed.compiled_vae if run.compile_vae else 1)
    # The first chunk has no history and is not decoded quicker: compiled pieces of the VAE start later.
    alone = [[(config.num_heads, geometry.chunk_tokens)]] * config.num_layers
    first_ms = passes * _pass_ms(pass_parts_ms(run, config, geometry, alone, assumed))
    first_vae_ms = 1e-3 * assumed.vae_us_per_pixel * pixels * (frames - FRAMES_PER_LATENT + 1)
    keys = sum(heads * keys for groups in layers for heads, keys in groups)
    return {
        "attention": attention_there(run.attention),
        "frames_read": _rounded(keys / config.num_layers / config.num_heads / geometry.frame_tokens),
        "launches": sum(_launches(run, config, layer, groups) for layer, groups in enumerate(layers)),
        "parts_ms": {name: _rounded(value) for name, value in parts.items()},
        "pass_ms": _rounded(_pass_ms(parts)),
        "chunk_ms": _rounded(chunk_ms),
        "fps": _rounded(1e3 * frames / chunk_ms),
        "vae_ms": _rounded(vae_ms),
        # Overlap fills what diffusion leaves idle, and by this account it leaves nothing.
        "fps_end_to_end": _rounded(1e3 * frames / (chunk_ms + vae_ms)),
        "first_frame_ms": _rounded(first_ms + first_vae_ms),
        "cache_bytes": cache_bytes(policy, geometry, dtype=torch.bfloat16),
    }


def pass_parts_ms(
    run: Run, config: TransformerConfig, geometry: FrameGeometry, layers: Sequence[Groups], assumed: Assumed
) -> dict[str, float]:
    """Milliseconds of a pass by kind of work; `host` is what the launches take where no graph is replayed."""
    queries, dim, ffn_dim = geometry.chunk_tokens, config.dim, config.ffn_dim
    kernel = attention_there(run.attention)
    together = BACKENDS[kernel].one_launch
    way = EXECUTIONS[run.execution]
    per_key = 4 * assumed.query_tile * config.head_dim  # operations of one tile of queries
    rate = {name: 1e9 * value / assumed.multiprocessors for name, value in assumed.attention_tflops.items()}
    parts = dict.fromkeys(("linear", "attention", "cross_attention", "element_wise", "gaps", "host"), 0.0)
    for layer, groups in enumerate(layers):
        precision = run.precision if run.precision and layer in quantised_layers(config) else "bf16"
        for out_dim, in_dim, count in ((3 * dim, dim, 1), (dim, dim, 3), (ffn_dim, dim, 1), (dim, ffn_dim, 1)):
            ideal_ms = 2.0 * queries * out_dim * in_dim / (1e9 * assumed.linear_tflops[precision])
            parts["linear"] += count * ideal_ms / product_share(queries, out_dim, assumed.multiprocessors)
        parts["attention"] += per_key * _makespan(groups, together, queries, assumed) / rate[kernel]
        # The prompt is read by torch's own attention, whatever reads the history.
        prompt = ((config.num_heads, config.text_len),)
        parts["cross_attention"] += per_key * _makespan(prompt, True, queries, assumed) / rate["sdpa"]
        moved = 2.0 * queries * _values_moved(run, config, layer, groups)
        parts["element_wise"] += moved / (1e9 * assumed.memory_tbytes)
        launches = _launches(run, config, layer, groups)
        parts["gaps"] += 1e-3 * launches * assumed.launch_gap_us["replayed" if way.replays else "launched"]
        parts["host"] += 0 if way.replays else 1e-3 * launches * assumed.host_launch_us
    return parts


def layer_groups(policy: CachePolicy, geometry: FrameGeometry) -> list[list[tuple[int, int]]]:
    """Heads and keys of every group of every layer in the steady state; a part without a bound has 21 frames."""
    plan = policy.plan(geometry, grouped=True)
    without_bound = TRAINED_FRAMES - geometry.chunk_frames
    layers = []
    for groups in plan.layers:
        sizes = []
        for group in groups:
            recent = without_bound - group.sink_frames if group.recent_frames is None else group.recent_frames
            history = history_capacity(group, geometry, plan.segments_per_frame, recent)
            sizes.append((len(group.heads), geometry.chunk_tokens + history))
        layers.append(sizes)
    return layers


@cache
def product_share(rows: int, cols: int, multiprocessors: int) -> float:
    """Of the rate of a large product, what the tiles of this one can reach: the best of the usual tile shapes.

    Tiles are dealt out in waves, the last of which is not full; some hang over the edge; and small ones are slower.
    """
    best = 0.0
    for tile_rows, tile_cols, speed in (
        (128, 256, 1),
        (256, 128, 1),
        (128, 192, 0.97),
        (192, 128, 0.97),
        (128, 128, 0.92),
    ):
        down, across = math.ceil(rows / tile_rows), math.ceil(cols / tile_cols)
        waves = math.ceil(down * across / multiprocessors)
        best = max(best, speed * rows * cols / (waves * multiprocessors * tile_rows * tile_cols))
    return best


def _makespan(groups: Groups, together: bool, queries: int, assumed: Assumed) -> float:
    """Keys that the busiest multiprocessor reads, the longest heads first: in one launch, or in launches side by side.

    One launch hands out its tiles one by one. Launches side by side are taken to share out their tiles beforehand, as
    FlashAttention-3 does: each of its workers has every so-manieth, and starts where a multiprocessor is free.
    """
    tiles, workers = math.ceil(queries / assumed.query_tile), assumed.multiprocessors
    jobs: list[tuple[int, int]] = []
    for heads, keys in sorted(groups, key=lambda group: -group[1]):
        each, rest = divmod(heads * tiles, workers)
        jobs += [(keys, heads * tiles)] if together else [((each + 1) * keys, rest), (each * keys, workers - rest)]
    return _busiest(tuple(jobs), workers)


@cache
def _busiest(jobs: tuple[tuple[int, int], ...], workers: int) -> float:
    """Of `workers`, after jobs of (length, how many), each taken by whoever is free first."""
    loads = [0.0] * workers
    for length, count in jobs:
        for _ in range(count):
            heapq.heapreplace(loads, loads[0] + length)
    return max(loads)


def _values_moved(run: Run, config: TransformerConfig, layer: int, groups: Groups) -> float:
    """Values of a token that a block reads and writes between its products, two bytes each.

    Norm and modulation 2 x 2 dim, norm of cross-attention 2, norm and rotation of q and k 4, their norm in cross-
    attention 2, k and v into the cache 4, two gates with residual and one plain residual 3 x 3; GELU twice the hidden
    layer. Outputs of head groups are joined, where each is a launch. Compiled, a residual and the norm after it are
    one. In fp8 what goes into a product is written in one byte, after a trip of its own where no norm is before it.
    """
    compiles = EXECUTIONS[run.execution].compiles
    dim, hidden = 23.0 if compiles else 25.0, 2.0
    if len(groups) > 1 and not BACKENDS[attention_there(run.attention)].one_launch:
        dim += 2
    if run.precision and layer in quantised_layers(config):
        dim, hidden = (dim + 1.5, 2.5) if compiles else (dim + 5 * 10.5, 2.0 + 10.5)
    return dim * config.dim + hidden * config.ffn_dim


def _launches(run: Run, config: TransformerConfig, layer: int, groups: Groups) -> int:
    """Kernels of a block: 20 with one head group, of which compiling joins two."""
    compiles = EXECUTIONS[run.execution].compiles
    together = BACKENDS[attention_there(run.attention)].one_launch
    launches = (18 if compiles else 20) + 2 * (len(groups) - 1)  # k and v of each group into its buffers
    if not together and len(groups) > 1:
        launches += len(groups)  # a launch per group, and one to join
    if run.precision and layer in quantised_layers(config):
        launches += 2 if compiles else 6 * 6
    return launches


def _pass_ms(parts: dict[str, float]) -> float:
    return max(parts["host"], sum(value for name, value in parts.items() if name != "host"))


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")


def table(rows: Iterable[dict[str, Any]]) -> list[str]:
    """In markdown, a line per row."""
    lines = [
        "| stage | run | policy | ms per chunk | FPS | with the VAE | linear | attention "
        "| cross | element-wise | gaps |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        said = row["prediction"]
        parts = [f"{said['parts_ms'][name]:.1f}" for name in PARTS]
        name = str(row["policy"]).partition(":")[0]
        lines.append(
            f"| {row['stage']} | {row['run']} | {name} | {said['chunk_ms']:.0f} | {said['fps']:.1f} | "
            f"{said['fps_end_to_end']:.1f} | {' | '.join(parts)} |"
        )
    return lines


PARTS = ("linear", "attention", "cross_attention", "element_wise", "gaps")


if __name__ == "__main__":
    main()
