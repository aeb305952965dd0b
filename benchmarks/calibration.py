"""What it costs to measure head roles: time and peak memory of an observed chunk, beside a plain rollout of the same.

Full shapes of Wan 1.3B (or --layers of them), random weights, a full cache one chunk short of 21 frames, so that the
observed chunk reads 21. Plain and observed chunks take turns on one stream; each peak of memory is taken in a program
of its own. The limit is stated first: a measured pass is one more attention call per layer.

    python benchmarks/calibration.py --layers 2 --json benchmarks/results/calibration_cpu_DATE.json    # on a CPU
    python benchmarks/calibration.py --device cuda                                                     # all 30 layers
"""

import argparse
import json
import statistics
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from forcing_kv import Full
from forcing_kv.bench import PEAK_MEMORY, cache_work, environment, filled_stream, random_transformer
from forcing_kv.calibration import FrameMassObserver
from forcing_kv.models import ModelPreset
from forcing_kv.resolution import parse_resolution
from forcing_kv.rollout import VideoStream
from forcing_kv.sampling import FewStepSampler
from forcing_kv.wan import WAN_1_3B, CausalWanTransformer

NUM_STEPS = len(FewStepSampler().steps)
PLAIN = "plain"
MODES: dict[str, dict[str, Any] | None] = {
    PLAIN: None,
    "one pass": {"steps": [0]},
    "every pass": {"steps": range(NUM_STEPS)},
    "every pass, 512 queries": {"steps": range(NUM_STEPS), "max_queries": 512},
}
"""Name of a row -> settings of its observer."""


def main() -> None:
    """Measures, prints a table and writes the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=WAN_1_3B.num_layers, help="blocks of the model to build (of 30)")
    parser.add_argument("--device", default="cpu", choices=tuple(PEAK_MEMORY))
    parser.add_argument("--resolution", default="480p")
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
    parser.add_argument("--repeats", type=int, default=5, help="timed chunks of each kind")
    parser.add_argument("--json", type=Path, help="where to write the result")
    parser.add_argument("--peak-of", choices=tuple(MODES), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.peak_of:
        print(json.dumps(peak_bytes(args)))
        return

    made_with = environment()
    stream, transformer = build_stream(args)
    limits = {mode: arithmetic(stream, transformer, mode) for mode in MODES}
    for mode in MODES:
        print(f"arithmetic of {mode}: {limits[mode] / limits[PLAIN]:.2f} x plain", flush=True)
    times = measure_times(stream, args.repeats)
    del stream, transformer
    peaks = {}
    for mode in MODES:
        print(f"memory of {mode}", flush=True)
        command = [sys.executable, __file__, *sys.argv[1:], "--peak-of", mode]
        output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        peaks[mode] = json.loads(output.splitlines()[-1])

    medians = {mode: statistics.median(times[mode]) for mode in MODES}
    rows = [
        {
            "observed": mode,
            "chunk_ms": times[mode],
            "median_chunk_ms": medians[mode],
            "time_over_plain": medians[mode] / medians[PLAIN],
            "flops_over_plain": limits[mode] / limits[PLAIN],
            "peak_bytes": peaks[mode],
            "peak_over_plain": peaks[mode] / peaks[PLAIN],
        }
        for mode in MODES
    ]
    document = {
        "benchmark": "calibration",
        "config": {
            "model": "Wan 1.3B, random weights",
            "layers": args.layers,
            "resolution": parse_resolution(args.resolution),
            "device": args.device,
            "dtype": args.dtype,
            "repeats": args.repeats,
            "threads": torch.get_num_threads(),
            "chunk": f"{NUM_STEPS} denoising passes and the commit pass over 21 frames, full cache",
        },
        "rows": rows,
        "environment": made_with,
    }
    print(f"\n{'observed':<24} {'ms/chunk':>9} {'x plain':>8} {'limit':>6} {'peak MB':>9} {'x plain':>8}")
    for row in rows:
        print(
            f"{row['observed']:<24} {row['median_chunk_ms']:>9,.0f} {row['time_over_plain']:>8.2f} "
            f"{row['flops_over_plain']:>6.2f} {row['peak_bytes'] / 1e6:>9,.0f} {row['peak_over_plain']:>8.2f}"
        )
    if args.json:
        args.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def build_stream(args: argparse.Namespace) -> tuple[VideoStream, CausalWanTransformer]:
    """A stream whose next chunk reads 21 frames."""
    config = replace(WAN_1_3B, num_layers=args.layers)
    geometry = ModelPreset(name="random").geometry(config, parse_resolution(args.resolution))
    transformer = random_transformer(config, device=args.device, dtype=getattr(torch, args.dtype))
    print("filling the cache", flush=True)
    return filled_stream(transformer, geometry, Full()), transformer


def make_chunk(stream: VideoStream, mode: str) -> float:
    """Milliseconds of the stream's next chunk."""
    settings = MODES[mode]
    if settings is None:
        return next(stream).timings.diffusion_ms
    observer = FrameMassObserver(stream.cache.geometry, **settings)
    with stream.cache.observed_by(observer):
        milliseconds = next(stream).timings.diffusion_ms
    observer.observations(prompt="random", seed=0)
    return milliseconds


def measure_times(stream: VideoStream, repeats: int) -> dict[str, list[float]]:
    """Chunks of every mode in turn, each from the same state; a turn to warm up comes first."""
    start = stream.snapshot()
    times: dict[str, list[float]] = {mode: [] for mode in MODES}
    for turn in range(repeats + 1):
        for mode in MODES:
            milliseconds = make_chunk(stream, mode)
            stream.restore(start)
            if turn:
                times[mode].append(milliseconds)
            print(f"turn {turn} of {repeats}, {mode}: {milliseconds:,.0f} ms{'' if turn else ' (warm-up)'}", flush=True)
    return times


def arithmetic(stream: VideoStream, transformer: CausalWanTransformer, mode: str) -> float:
    """Operations of the chunk: its passes, and for each that is measured the attention of its queries once more."""
    cache, geometry, settings = stream.cache, stream.cache.geometry, MODES[mode] or {"steps": []}
    queries: int = min(settings.get("max_queries", geometry.chunk_tokens), geometry.chunk_tokens)
    keys = geometry.chunk_tokens + cache.history_tokens(0)[0]
    measured_pass = 4 * geometry.num_layers * geometry.num_heads * geometry.head_dim * queries * keys
    num_measured: int = len(settings["steps"])
    return (NUM_STEPS + 1) * cache_work(transformer.config, cache).flops + num_measured * measured_pass


def peak_bytes(args: argparse.Namespace) -> int:
    """Memory of a program that builds the model, fills the cache and makes one chunk."""
    with PEAK_MEMORY[args.device]() as memory:
        stream, _ = build_stream(args)
        make_chunk(stream, args.peak_of)
    taken: int = memory.taken_bytes
    return taken


if __name__ == "__main__":
    main()
