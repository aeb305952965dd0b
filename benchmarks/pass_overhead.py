"""What a transformer pass takes beside its matrix products and its attention.

One pass of a chunk in the steady state is recorded: every product and every attention call, with the shapes and strides
of what they are given. These calls are then run bare, on the same weights and on tensors laid out alike, in turn with
whole passes. The ratio of the two is what all the rest costs: norms, modulation, rotation, GELU, writing the cache,
Python. Full shapes of Wan 1.3B (or --layers of them), random weights, the published head map.

    python benchmarks/pass_overhead.py --layers 2 --json benchmarks/results/pass_overhead_cpu_DATE.json   # on a CPU
    python benchmarks/pass_overhead.py --device cuda --execution compile+cuda-graphs                      # 30 layers
"""

import argparse
import json
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from forcing_kv.bench import environment, filled_stream, random_transformer
from forcing_kv.clock import milliseconds_since
from forcing_kv.devices import resolve_device, resolve_dtype, synchronize
from forcing_kv.execution import EXECUTIONS, check_execution, pass_runner
from forcing_kv.models import ModelPreset, published_head_map
from forcing_kv.output_files import atomic_write
from forcing_kv.policies import parse_policy, split_policies
from forcing_kv.resolution import parse_resolution
from forcing_kv.wan import WAN_1_3B, CausalWanTransformer, check_precision

TIMESTEP = 750.0
PRODUCTS = ("addmm", "mm", "bmm", "baddbmm", "linear", "_linear_pointwise", "_scaled_mm")
KINDS = {
    "attention": ("attention", "flash", "fmha", "sdpa"),
    "matrix products": (*PRODUCTS, "convolution", "gemm", "nvjet", "cutlass"),
    "GELU": ("gelu",),
    "norms": ("norm",),
    "copies": ("copy", "cat", "clone", "stack", "contiguous"),
    "element-wise": ("add", "addcmul", "mul", "div", "sub", "rsqrt", "pow", "clamp", "complex", "elementwise"),
}
"""Kinds of operation: names, or parts (of four letters and more) of names of operations and kernels, first match first;
what is left is `other`."""


def main() -> None:
    """Measures, prints a table and writes the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=WAN_1_3B.num_layers, help="blocks of the model to build (of 30)")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="auto", help="auto is bfloat16 where the device multiplies it")
    parser.add_argument("--resolution", default="480p")
    parser.add_argument("--policies", default="forcing-kv")
    parser.add_argument("--execution", default="eager", choices=tuple(EXECUTIONS))
    parser.add_argument("--precision", help="fp8")
    parser.add_argument("--repeats", type=int, default=7, help="timed passes, each beside its bare calls")
    parser.add_argument("--json", type=Path, help="where to write the result")
    args = parser.parse_args()
    made_with = environment()
    device = resolve_device(args.device)
    dtype = resolve_dtype(args.dtype, device)
    check_execution(args.execution, device=device)
    config = replace(WAN_1_3B, num_layers=args.layers)
    check_precision(args.precision, config, dtype=dtype, device=device)
    transformer = random_transformer(config, device=device, dtype=dtype, precision=args.precision)
    head_map = published_head_map("self-forcing-1.3b").first_layers(args.layers)
    transformer.set_head_order(head_map.side_by_side())
    rows = []
    for spec in split_policies(args.policies):
        rows.append(measure(args, transformer, spec, parse_policy(spec, head_map=head_map)))
        print(describe(rows[-1]), flush=True)
    document = {
        "benchmark": "pass_overhead",
        "config": {
            "model": "Wan 1.3B, random weights",
            "layers": args.layers,
            "resolution": parse_resolution(args.resolution),
            "device": str(device),
            "dtype": str(dtype).removeprefix("torch."),
            "precision": args.precision,
            "execution": args.execution,
            "repeats": args.repeats,
            "threads": torch.get_num_threads(),
        },
        "rows": rows,
        "environment": made_with,
    }
    if args.json:
        with atomic_write(args.json) as temporary:
            temporary.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


@dataclass(frozen=True, kw_only=True)
class Call:
    """A product or an attention call, ready to be run again."""

    kind: str
    run: Callable[[], object]


class Recorder(TorchDispatchMode):
    """Notes the products and attention calls made while it is on; `calls` runs them on stand-ins.

    Args:
        transformer: Its weights are used as they are; anything else gets a stand-in of the same shape and strides.
    """

    def __init__(self, transformer: CausalWanTransformer) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._weights = {weight.untyped_storage().data_ptr() for weight in transformer.parameters()}
        self._stand_ins: dict[tuple[object, ...], Tensor] = {}
        self.calls: list[Call] = []

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Runs the operation, and notes it if it is one of those."""
        kind = kind_of(func.name())
        if kind in ("matrix products", "attention"):
            positional, named = tree_map(self._stand_in, (args, kwargs or {}))
            if func.name().startswith("mkldnn::_linear_pointwise"):  # without the GELU that may be in it
                self.calls.append(Call(kind=kind, run=partial(func, *positional[:3], "none", [], "")))
            else:
                self.calls.append(Call(kind=kind, run=partial(func, *positional, **named)))
        return func(*args, **(kwargs or {}))

    def _stand_in(self, value: Any) -> Any:
        if not isinstance(value, Tensor) or value.untyped_storage().data_ptr() in self._weights:
            return value
        key = (value.shape, value.stride(), value.dtype)
        if key not in self._stand_ins:
            stand_in = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=value.device)
            self._stand_ins[key] = stand_in.copy_(value)
        return self._stand_ins[key]


@torch.no_grad()
def measure(args: argparse.Namespace, transformer: CausalWanTransformer, spec: str, policy: Any) -> dict[str, Any]:
    """Passes in the steady state of one policy, in turn with their bare calls."""
    device, config = transformer.device, transformer.config
    geometry = ModelPreset(name="random").geometry(config, parse_resolution(args.resolution))
    print(f"{spec}: filling the cache", flush=True)
    cache = filled_stream(transformer, geometry, policy).cache
    start = cache.first_position
    text = transformer.encode_text(torch.randn(1, config.text_len, config.text_dim).to(device))
    rows, cols = geometry.frame_rows, geometry.frame_cols
    positions = transformer.token_positions(range(start, start + geometry.chunk_frames), rows, cols)
    level = transformer.noise_level(TIMESTEP)
    latents = torch.randn(1, geometry.chunk_frames, config.in_dim, 2 * rows, 2 * cols, device=device)
    memory: dict[str, Any] = {"text": text, "positions": positions, "memory": cache}
    run_pass = partial(pass_runner(args.execution, transformer), latents, level, **memory)
    with Recorder(transformer) as recorder:
        transformer.at_level(latents, level, **memory)
    bare = {kind: [call for call in recorder.calls if call.kind == kind] for kind in ("matrix products", "attention")}
    times: dict[str, list[float]] = defaultdict(list)
    for turn in range(args.repeats + 2):  # two turns warm up: a graph is captured in the second
        measured = {"pass": milliseconds(run_pass, device)}
        for kind, calls in bare.items():
            measured[kind] = milliseconds(partial(run_all, calls), device)
        if turn >= 2:
            for name, value in measured.items():
                times[name].append(value)
    ratios = [whole / sum(parts) for whole, *parts in zip(times["pass"], *(times[kind] for kind in bare), strict=True)]
    return {
        "policy": spec,
        "pass_ms": statistics.median(times["pass"]),
        "bare_ms": {kind: statistics.median(times[kind]) for kind in bare},
        "calls": {kind: len(calls) for kind, calls in bare.items()},
        "pass_over_bare": statistics.median(ratios),
        "pass_over_bare_range": [min(ratios), max(ratios)],
        "breakdown": breakdown(run_pass, device),
        "timed_ms": dict(times),
    }


def run_all(calls: Sequence[Call]) -> None:
    """One after the other."""
    for call in calls:
        call.run()


def milliseconds(work: Callable[[], object], device: torch.device) -> float:
    """By the clock, the device's work included."""
    synchronize(device)
    started = time.perf_counter()
    work()
    synchronize(device)
    return milliseconds_since(started)


def breakdown(run_pass: Callable[[], object], device: torch.device) -> list[dict[str, Any]]:
    """Where the time of one pass goes, by kind of operation; the profiler's own cost is in it."""
    on_gpu = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with profile(activities=activities) as profiled:
        run_pass()
        synchronize(device)
    kinds: dict[str, list[float]] = defaultdict(lambda: [0.0, 0])
    for event in profiled.key_averages():
        taken_us = event.self_device_time_total if on_gpu else event.self_cpu_time_total
        if taken_us:
            kinds[kind_of(event.key)][0] += taken_us / 1e3
            kinds[kind_of(event.key)][1] += event.count
    total = sum(taken for taken, _ in kinds.values())
    ranked = sorted(kinds.items(), key=lambda item: -item[1][0])
    return [{"kind": kind, "ms": taken, "share": taken / total, "calls": count} for kind, (taken, count) in ranked]


def kind_of(name: str) -> str:
    """Of an operation, by its name: `aten::addmm`, or that of a kernel."""
    whole = name.lower()
    bare = whole.rpartition("::")[2].partition(".")[0].rstrip("_")
    for kind, parts in KINDS.items():
        if bare in parts or any(len(part) > 3 and part in whole for part in parts):
            return kind
    return "other"


def describe(row: dict[str, Any]) -> str:
    """For the terminal."""
    bare = ", ".join(f"{row['calls'][kind]} {kind} {taken:,.1f}" for kind, taken in row["bare_ms"].items())
    least, most = row["pass_over_bare_range"]
    lines = [
        f"{row['policy']}: a pass takes {row['pass_ms']:,.1f} ms; bare: {bare}",
        f"  {row['pass_over_bare']:.3f} times its bare calls ({least:.3f} to {most:.3f})",
    ]
    lines += [
        f"  {part['kind']:<16} {part['ms']:>9,.1f} ms {100 * part['share']:>5.1f} %  {part['calls']} calls"
        for part in row["breakdown"]
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
