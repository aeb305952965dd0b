"""Time and cache bytes of forcing-kv, the window cache and the full cache at the full shapes of Wan 1.3B.

Random weights (the arithmetic does not depend on them), the published head map, every policy on the same kernels in one
process. The limit is stated first: the ratio of floating-point operations.

    python benchmarks/policies.py --layers 2 --json benchmarks/results/policies_cpu_DATE.json    # on a CPU
    python benchmarks/policies.py --device cuda --resolution 1080p                               # all 30 layers, a GPU
"""

import argparse
import json
from dataclasses import asdict, replace
from pathlib import Path

import torch

from forcing_kv import HeadMap, parse_policy
from forcing_kv.bench import SteadyState, environment, measure_steady_state, random_transformer
from forcing_kv.models import ModelPreset, published_head_map
from forcing_kv.resolution import parse_resolution
from forcing_kv.wan import WAN_1_3B

POLICIES = ("full", "window", "forcing-kv")


def main() -> None:
    """Measures, prints a table and writes the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=WAN_1_3B.num_layers, help="blocks of the model to build (of 30)")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--resolution", default="480p")
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
    parser.add_argument("--repeats", type=int, default=5, help="timed chunks per policy")
    parser.add_argument("--json", type=Path, help="where to write the result")
    args = parser.parse_args()

    made_with = environment()  # before the run: the tree may change under a long one
    width, height = parse_resolution(args.resolution)
    config = replace(WAN_1_3B, num_layers=args.layers)
    roles = published_head_map("self-forcing-1.3b").roles[: args.layers]
    head_map = HeadMap(model="self-forcing-1.3b, first layers", roles=roles)
    transformer = random_transformer(config, device=args.device, dtype=getattr(torch, args.dtype))
    transformer.set_head_order(head_map.side_by_side())
    geometry = ModelPreset(name="random").geometry(config, (width, height))
    rows = measure_steady_state(
        transformer,
        geometry,
        {name: parse_policy(name, head_map=head_map) for name in POLICIES},
        repeats=args.repeats,
        on_progress=lambda message: print(message, flush=True),
    )
    document = {
        "benchmark": "policies",
        "config": {
            "model": "Wan 1.3B, random weights",
            "layers": args.layers,
            "resolution": [width, height],
            "device": args.device,
            "dtype": args.dtype,
            "repeats": args.repeats,
            "threads": torch.get_num_threads(),
            "chunk": "4 denoising passes, commit pass, commit",
        },
        "policies": [asdict(row) | {"steady_chunk_ms": row.steady_chunk_ms} for row in rows],
        "forcing_kv_against": compare(rows),
        "environment": made_with,
    }
    print_table(rows)
    if args.json:
        args.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def compare(rows: list[SteadyState]) -> dict[str, dict[str, float]]:
    """The other policies' time, arithmetic and bytes as multiples of forcing-kv's."""
    ours = next(row for row in rows if row.policy.startswith("forcing-kv"))
    return {
        row.policy: {
            "time": row.steady_chunk_ms / ours.steady_chunk_ms,
            "flops": row.pass_tflop / ours.pass_tflop,
            "bytes": row.cache_bytes / ours.cache_bytes,
        }
        for row in rows
        if row is not ours
    }


def print_table(rows: list[SteadyState]) -> None:
    """One line per policy, then the ratios, the arithmetic's beside the clock's."""
    print(f"\n{'policy':<12} {'frames read':>11} {'TFLOP/pass':>10} {'ms/chunk':>9} {'cache MB':>9}")
    for row in rows:
        print(
            f"{row.policy:<12} {row.frames_read:>11.2f} {row.pass_tflop:>10.2f} {row.steady_chunk_ms:>9,.0f} "
            f"{row.cache_bytes / 1e6:>9,.1f}"
        )
    for name, ratio in compare(rows).items():
        print(
            f"forcing-kv is {ratio['time']:.2f}x as fast as {name} (arithmetic: {ratio['flops']:.2f}x) and holds "
            f"1/{ratio['bytes']:.2f} of its bytes"
        )


if __name__ == "__main__":
    main()
