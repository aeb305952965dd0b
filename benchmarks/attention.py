"""How fast every attention back end that is here reads a cache, beside the rate of this machine's matrix products.

One layer's call of attention, at the shapes of Wan 1.3B (12 heads of 128): the heads of a policy's typical layer in
groups, each with as many keys as it reads in the steady state, in buffers of its own as a cache holds them. Back ends
that take a number of keys per head are timed twice: all groups in one launch, and a launch per group. Every result is
compared with torch's own before it is timed; a rate is a median, its share is of the measured matrix product.

    python benchmarks/attention.py --device cuda --json OUT            # 480p
    python benchmarks/attention.py --device cuda --tiles --json OUT    # and our Triton kernel cut in other ways
    python benchmarks/attention.py --quick                             # on a CPU, in seconds
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from forcing_kv import CachePolicy, FrameGeometry
from forcing_kv.attention import AUTO, BACKENDS, AttentionBackend, GroupKV, Placement, choose_backend, order_for
from forcing_kv.attention.triton_backend import Tiles, attend_together
from forcing_kv.bench import Ceilings, environment, measure_ceilings
from forcing_kv.cache.size import TRAINED_FRAMES, history_capacity
from forcing_kv.devices import resolve_device, resolve_dtype, synchronize
from forcing_kv.models import published_head_map
from forcing_kv.policies import parse_policy
from forcing_kv.resolution import PIXELS_PER_TOKEN, parse_resolution
from forcing_kv.wan import WAN_1_3B

MODEL = "self-forcing-1.3b"
POLICIES = ("forcing-kv", "window", "full")
QUICK_RESOLUTION = "96x64"
HOLDS_ALL_SCORES = "plain"
"""Left out where the scores would not fit: on anything but a CPU."""
LONG_ENOUGH_SECONDS = 0.02
"""Calls that take less are timed several at a time."""
TILES = [
    Tiles(queries=queries, keys=keys, num_warps=num_warps, num_stages=num_stages)
    for queries, keys, num_warps in ((128, 128, 8), (128, 64, 8), (128, 64, 4), (64, 64, 4), (128, 32, 4), (64, 128, 4))
    for num_stages in (2, 3, 4)
]
"""Ways to cut the work of our Triton kernel that are worth a try."""


@dataclass(frozen=True, kw_only=True)
class Layer:
    """What one call of attention reads.

    Attributes:
        policy: Whose cache it is.
        q: Queries of the chunk.
        groups: Keys and values.
        flops: Of its two products.
    """

    policy: str
    q: Tensor
    groups: Sequence[GroupKV]
    flops: float


def main() -> None:
    """Measures, prints a table and writes the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--resolution", default="480p")
    parser.add_argument("--repeats", type=int, default=20, help="timed turns of every row")
    parser.add_argument("--tiles", action="store_true", help="try our Triton kernel cut in other ways")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_RESOLUTION} and 3 repeats")
    parser.add_argument("--json", type=Path, help="where to write the result")
    args = parser.parse_args()
    if args.quick:
        args.resolution, args.repeats = QUICK_RESOLUTION, 3

    made_with = environment()
    device = resolve_device(args.device)
    dtype = resolve_dtype(args.dtype, device)
    placement = Placement(device=device, dtype=dtype, head_dim=WAN_1_3B.head_dim)
    missing = {name: backend.lacks(placement) for name, backend in BACKENDS.items()}
    if device.type != "cpu":
        missing[HOLDS_ALL_SCORES] = "left out: holds all scores"
    here = [backend for name, backend in BACKENDS.items() if missing[name] is None]
    ceilings = measure_ceilings(device, dtype)
    peak = ceilings.matmul_flops_per_second
    print(f"{placement}: {peak / 1e12:.3g} TFLOP/s in a matrix product")
    print(f"auto is {choose_backend(AUTO, placement).name}: {order_for(placement).provenance}")
    for name in filter(missing.get, missing):
        print(f"{name} is not here: {missing[name]}")

    rows: list[dict[str, Any]] = []
    with torch.no_grad():
        for policy in POLICIES:
            layer = typical_layer(policy, args.resolution, device=device, dtype=dtype)
            ways = {name: way for backend in here for name, way in ways_of(backend, layer).items()}
            if args.tiles and missing["triton"] is None:
                ways |= {
                    tiles_name(tiles): partial(attend_together, layer.q, layer.groups, tiles=tiles) for tiles in TILES
                }
            print(f"\n{policy}: {describe(layer)}\n{'':<44} {'ms':>9} {'TFLOP/s':>8} {'share':>6}")
            for row in time_ways(layer, ways, ceilings, device=device, repeats=args.repeats):
                rows.append(row)
                print(table_line(row), flush=True)
    document = {
        "benchmark": "attention",
        "config": {
            "shapes": f"one layer of {MODEL}, random values",
            "resolution": args.resolution,
            "device": str(device),
            "dtype": str(dtype).removeprefix("torch."),
            "repeats": args.repeats,
            "threads": torch.get_num_threads(),
            "clock": clock_of(device).__name__,
            "auto": choose_backend(AUTO, placement).name,
        },
        "ceilings": asdict(ceilings),
        "not_here": {name: reason for name, reason in missing.items() if reason},
        "rows": rows,
        "environment": made_with,
    }
    if args.json:
        args.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def typical_layer(policy_name: str, resolution: str, *, device: torch.device, dtype: torch.dtype) -> Layer:
    """The layer whose work is the median of all layers, in the steady state (`full`: at 21 frames)."""
    width, height = parse_resolution(resolution)
    geometry = FrameGeometry(
        num_layers=WAN_1_3B.num_layers,
        num_heads=WAN_1_3B.num_heads,
        head_dim=WAN_1_3B.head_dim,
        frame_rows=height // PIXELS_PER_TOKEN,
        frame_cols=width // PIXELS_PER_TOKEN,
    )
    policy = parse_policy(policy_name, head_map=published_head_map(MODEL))
    layers = sorted(layer_groups(policy, geometry), key=lambda groups: sum(len(p) * keys for p, keys in groups))
    generator = torch.Generator(device).manual_seed(0)
    first, groups = 0, []
    for heads, num_keys in layers[len(layers) // 2]:
        shape = (2, 1, num_keys, len(heads), geometry.head_dim)
        keys, values = torch.randn(shape, generator=generator, device=device).to(dtype)
        # Side by side, as a model's heads are once it knows its head map.
        groups.append(GroupKV(places=tuple(range(first, first + len(heads))), keys=keys, values=values))
        first += len(heads)
    q_shape = (1, geometry.chunk_tokens, geometry.num_heads, geometry.head_dim)
    return Layer(
        policy=policy.spec(),
        q=torch.randn(q_shape, generator=generator, device=device).to(dtype),
        groups=groups,
        flops=sum(4.0 * geometry.chunk_tokens * group.keys.numel() for group in groups),
    )


def layer_groups(policy: CachePolicy, geometry: FrameGeometry) -> list[list[tuple[Sequence[int], int]]]:
    """Heads and keys of every group of every layer; one without a bound has 21 frames."""
    plan = policy.plan(geometry, grouped=True)
    without_bound = TRAINED_FRAMES - geometry.chunk_frames
    return [
        [
            (
                tuple(group.heads),
                geometry.chunk_tokens
                + history_capacity(
                    group,
                    geometry,
                    plan.segments_per_frame,
                    without_bound - group.sink_frames if group.recent_frames is None else group.recent_frames,
                ),
            )
            for group in groups
        ]
        for groups in plan.layers
    ]


def ways_of(backend: AttentionBackend, layer: Layer) -> dict[str, Callable[[], Tensor]]:
    """How a back end can attend to a layer, by the name of the row."""
    launches = f"{backend.name}, {len(layer.groups)} launch" + "es" * (len(layer.groups) > 1)
    ways: dict[str, Callable[[], Tensor]] = {
        launches: partial(backend.attend_groups, layer.q, layer.groups, one_by_one=True)
    }
    if len(layer.groups) > 1 and backend.one_launch:
        ways[f"{backend.name}, 1 launch"] = partial(backend.attend_groups, layer.q, layer.groups)
    elif len(layer.groups) > 1 and layer.q.is_cuda:
        ways[f"{launches} side by side"] = partial(backend.attend_groups, layer.q, layer.groups)
    return ways


def time_ways(
    layer: Layer, ways: dict[str, Callable[[], Tensor]], ceilings: Ceilings, *, device: torch.device, repeats: int
) -> list[dict[str, Any]]:
    """Every way of attending to a layer, in turns, so that whatever else the machine does falls on all alike."""
    expected = BACKENDS["sdpa"].attend_groups(layer.q, layer.groups).float()
    rows: list[dict[str, Any]] = []
    calls: dict[str, int] = {}
    for name, way in ways.items():
        row = {"policy": layer.policy, "way": name, "groups": shape_of(layer), "flops": layer.flops}
        rows.append(row)
        try:
            difference = (way().float() - expected).abs().max().item()
        except Exception as error:  # a cut that the chip has no room for
            row["error"] = f"{type(error).__name__}: {error}"
            continue
        row["largest_difference_from_sdpa"] = difference
        calls[name] = max(1, round(LONG_ENOUGH_SECONDS / seconds_of(way, 1, device)))
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, count in calls.items():
            seconds[name].append(seconds_of(ways[name], count, device))
    for row in rows:
        if row["way"] in seconds:
            median = statistics.median(seconds[row["way"]])
            row["ms"] = 1e3 * median
            row["ms_range"] = [1e3 * min(seconds[row["way"]]), 1e3 * max(seconds[row["way"]])]
            row["tflops_per_second"] = layer.flops / median / 1e12
            row["share_of_matmul"] = layer.flops / median / ceilings.matmul_flops_per_second
    return rows


def seconds_of(way: Callable[[], Tensor], count: int, device: torch.device) -> float:
    """Of one call, so many being made before the device is waited for."""
    clock = clock_of(device)
    synchronize(device)
    started = clock()
    for _ in range(count):
        way()
    synchronize(device)
    return (clock() - started) / count


def clock_of(device: torch.device) -> Callable[[], float]:
    """The wall's; of one thread on a CPU its own, which whatever else runs there does not lengthen."""
    return time.process_time if device.type == "cpu" and torch.get_num_threads() == 1 else time.perf_counter


def shape_of(layer: Layer) -> list[dict[str, int]]:
    """Heads and keys of every group."""
    return [{"heads": len(group.places), "keys": group.keys.shape[1]} for group in layer.groups]


def describe(layer: Layer) -> str:
    """What is read, in words."""
    groups = " and ".join(f"{group['heads']} heads of {group['keys']:,} keys" for group in shape_of(layer))
    return f"{layer.q.shape[1]:,} queries, {groups}"


def tiles_name(tiles: Tiles) -> str:
    """Of a row."""
    return f"triton {tiles.queries}x{tiles.keys}, {tiles.num_warps} warps, {tiles.num_stages} stages"


def table_line(row: dict[str, Any]) -> str:
    """One row for the terminal."""
    if "error" in row:
        return f"{row['way']:<44} {row['error'].partition(chr(10))[0]}"
    return f"{row['way']:<44} {row['ms']:>9.3f} {row['tflops_per_second']:>8.3g} {100 * row['share_of_matmul']:>5.0f}%"


if __name__ == "__main__":
    main()
