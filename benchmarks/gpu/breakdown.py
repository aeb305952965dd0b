"""Where the time of one steady pass goes, kernel by kernel, from torch's profiler.

By kind of kernel, with the gaps between kernels as a kind of their own and the predicted milliseconds beside them; the
kernels that take longest; and what share of the measured ceilings the whole and its products reach. The pass is timed
without the profiler too. On a CPU operations stand for kernels, and there are no gaps.

    python benchmarks/gpu/breakdown.py --out OUT                 # on a CUDA GPU, at 480p and 1080p
    python benchmarks/gpu/breakdown.py --out OUT --dry-run       # on a CPU, at toy size
"""

import argparse
import json
import statistics
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from predictions import predict
from rows import OURS, Run, made_with, quickest_way
from steady_pass import DRY_LAYERS, DRY_RESOLUTION, SteadyPass
from torch.profiler import ProfilerActivity, profile

from forcing_kv.bench import Ceilings, cache_work, measure_ceilings, random_transformer
from forcing_kv.clock import milliseconds_since
from forcing_kv.devices import synchronize
from forcing_kv.output_files import atomic_write
from forcing_kv.wan import WAN_1_3B, CausalWanTransformer

REPEATS, DRY_REPEATS = 20, 2
NUM_KERNELS = 15
ATTENTION, PRODUCTS, COPIES, ELEMENT_WISE, OTHER, GAPS = "attention", "gemm", "copy", "element-wise", "other", "gaps"
KINDS = {
    ATTENTION: ("attention", "attend_kernel", "flash", "fmha", "sdpa"),
    PRODUCTS: ("gemm", "nvjet", "cutlass", "xmma", "splitk", "addmm", "scaled_mm", "bmm", "::mm", "linear"),
    COPIES: ("memcpy", "memset", "copy", "catarray", "::cat"),
    ELEMENT_WISE: ("elementwise", "norm", "reduce", "gelu", "::add", "::mul", "::div", "::sqrt", "::rsqrt", "::square"),
}
"""Parts of the names of kernels and operations; the first kind that matches is taken."""

PREDICTED = {ATTENTION: ("attention", "cross_attention"), PRODUCTS: ("linear",), GAPS: ("gaps",)}
"""Which parts of a prediction a kind is; element-wise work and copies are one there."""


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """One launch, or one operation of a CPU.

    Attributes:
        name: Of the kernel.
        start_us: When it began; 0 where that is not known.
        taken_us: How long it took.
    """

    name: str
    start_us: float
    taken_us: float


def main() -> None:
    """Measures, prints tables and writes OUT/breakdown.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the results; its ladder says how to run")
    parser.add_argument("--resolutions", nargs="+", default=["480p", "1080p"])
    parser.add_argument("--policies", nargs="+", default=[OURS])
    parser.add_argument("--dry-run", action="store_true", help="on a CPU, at toy size")
    args = parser.parse_args()
    device = torch.device("cpu" if args.dry_run else "cuda")
    way, environment = quickest_way(args.out), made_with()
    ceilings = measure_ceilings(device, torch.bfloat16)
    layers = DRY_LAYERS if args.dry_run else WAN_1_3B.num_layers
    rows: list[dict[str, Any]] = []
    for precision in (None, "fp8"):
        transformer = random_transformer(
            replace(WAN_1_3B, num_layers=layers), device=device, dtype=torch.bfloat16, precision=precision
        )
        for resolution in args.resolutions:
            for policy in args.policies:
                run = Run(
                    name="breakdown",
                    resolution=resolution,
                    attention=way.attention,
                    execution=way.execution,
                    precision=precision,
                )
                rows.append(measure(transformer, run, policy, ceilings, dry_run=args.dry_run))
                print(describe(rows[-1]), flush=True)
        del transformer
    document = {
        "benchmark": "gpu-breakdown",
        "dry_run": args.dry_run,
        "config": {"layers": layers, "device": str(device), "dtype": "bfloat16", "way": asdict(way)},
        "ceilings": asdict(ceilings),
        "rows": rows,
        "environment": environment,
    }
    with atomic_write(args.out / "breakdown.json") as temporary:
        temporary.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def measure(
    transformer: CausalWanTransformer, run: Run, policy: str, ceilings: Ceilings, *, dry_run: bool
) -> dict[str, Any]:
    """One policy: the pass timed, then profiled."""
    here = replace(run.on_cpu(), resolution=DRY_RESOLUTION) if dry_run else run
    row: dict[str, Any] = {"policy": policy, "options": run.options(), "prediction": predict(run, policy)}
    missing = here.lacks(transformer.device)
    if missing is not None:
        return {**row, "status": "skipped", "reason": missing}
    torch.compiler.reset()  # what is compiled for other rows counts towards a limit
    steady = SteadyPass(
        transformer, policy, resolution=here.resolution, attention=here.attention, execution=here.execution
    )
    for _ in range(3):
        steady()  # warms up, and captures a graph
    times_ms = [milliseconds(steady) for _ in range(DRY_REPEATS if dry_run else REPEATS)]
    pass_ms = statistics.median(times_ms)
    kernels = profiled(steady, transformer.device)
    work = cache_work(transformer.config, steady.cache)
    kinds = by_kind(kernels)
    with_gaps = transformer.device.type == "cuda"
    gaps_ms = 1e-3 * idle_us(kernels) if with_gaps else None
    products_flops = linear_flops(transformer, steady.geometry.chunk_tokens)
    attention_flops = work.flops - products_flops
    return {
        **row,
        "status": "measured",
        "reason": None,
        "resolution": here.resolution,
        "attention": steady.cache.attention.name,
        "pass_ms": pass_ms,
        "pass_ms_range": [min(times_ms), max(times_ms)],
        "least_ms": ceilings.least_ms(work),
        "share_of_ceiling": ceilings.least_ms(work) / pass_ms,
        "flops": {PRODUCTS: products_flops, ATTENTION: attention_flops},
        "share_of_matmul": {
            PRODUCTS: share(products_flops, kinds[PRODUCTS]["ms"], ceilings),
            ATTENTION: share(attention_flops, kinds[ATTENTION]["ms"], ceilings),
        },
        "kinds": {**kinds, GAPS: {"ms": gaps_ms, "launches": None}},
        "predicted_ms": None if dry_run else predicted_kinds(row["prediction"]["parts_ms"]),
        "launches": len(kernels) if with_gaps else sum(kind["launches"] for kind in kinds.values()),
        "kernels": longest(kernels),
    }


def milliseconds(steady: SteadyPass) -> float:
    """One pass by the clock, the device's work included."""
    device = steady.cache.device
    synchronize(device)
    started = time.perf_counter()
    steady()
    synchronize(device)
    return milliseconds_since(started)


def profiled(steady: SteadyPass, device: torch.device) -> list[Kernel]:
    """What one pass launches; on a CPU its operations, as often as they were called."""
    on_gpu = device.type == "cuda"
    synchronize(device)
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]) as profiler:
        steady()
        synchronize(device)
    events = [event for event in profiler.events() or [] if not getattr(event, "is_user_annotation", False)]
    if on_gpu:
        return [
            Kernel(name=event.name, start_us=event.time_range.start, taken_us=event.time_range.elapsed_us())
            for event in events
            if event.device_type == torch.autograd.DeviceType.CUDA  # type: ignore[attr-defined]
        ]
    return [Kernel(name=event.name, start_us=0, taken_us=event.self_cpu_time_total) for event in events]


def kind_of(name: str) -> str:
    """Of a kernel, by its name."""
    lowered = name.lower()
    if lowered.startswith("triton_") and not lowered.startswith("triton_tem_"):
        return ELEMENT_WISE  # fused by torch; its name lists what was fused, and even where that came from
    return next((kind for kind, parts in KINDS.items() if any(part in lowered for part in parts)), OTHER)


def by_kind(kernels: Iterable[Kernel]) -> dict[str, dict[str, Any]]:
    """Milliseconds and launches of every kind."""
    kinds: dict[str, dict[str, Any]] = {kind: {"ms": 0.0, "launches": 0} for kind in (*KINDS, OTHER)}
    for kernel in kernels:
        kind = kinds[kind_of(kernel.name)]
        kind["ms"] += 1e-3 * kernel.taken_us
        kind["launches"] += 1
    return kinds


def idle_us(kernels: Sequence[Kernel]) -> float:
    """Between the first kernel's begin and the last one's end, the time in which none ran."""
    idle, busy_until = 0.0, None
    for kernel in sorted(kernels, key=lambda kernel: kernel.start_us):
        if busy_until is not None:
            idle += max(0.0, kernel.start_us - busy_until)
        busy_until = max(busy_until or 0.0, kernel.start_us + kernel.taken_us)
    return idle


def longest(kernels: Iterable[Kernel]) -> list[dict[str, Any]]:
    """The kernels that take longest, all launches of one together."""
    together: dict[str, list[float]] = defaultdict(list)
    for kernel in kernels:
        together[kernel.name].append(1e-3 * kernel.taken_us)
    ranked = sorted(together.items(), key=lambda item: -sum(item[1]))[:NUM_KERNELS]
    return [{"name": name, "kind": kind_of(name), "ms": sum(taken), "launches": len(taken)} for name, taken in ranked]


def linear_flops(transformer: CausalWanTransformer, num_tokens: int) -> float:
    """Of the linear layers of all blocks in one pass; the prompt's keys and values are there already."""
    config = transformer.config
    return 2.0 * num_tokens * config.num_layers * (6 * config.dim**2 + 2 * config.dim * config.ffn_dim)


def predicted_kinds(parts_ms: dict[str, float]) -> dict[str, float]:
    """The parts of a prediction, by the kinds of here."""
    kinds = {kind: sum(parts_ms[part] for part in parts) for kind, parts in PREDICTED.items()}
    return {**kinds, f"{ELEMENT_WISE} and {COPIES}": parts_ms["element_wise"]}


def share(flops: float, taken_ms: float, ceilings: Ceilings) -> float | None:
    """Of the rate of a large bfloat16 product."""
    return 1e3 * flops / taken_ms / ceilings.matmul_flops_per_second if taken_ms else None


def describe(row: dict[str, Any]) -> str:
    """For the terminal."""
    name = f"{row['policy']}, {row['options']['resolution']}, {row['options']['precision'] or 'bf16'}"
    if row["status"] != "measured":
        return f"{name}: {row['status']}: {row['reason']}"
    lines = [f"{name}: a pass takes {row['pass_ms']:.2f} ms, {100 * row['share_of_ceiling']:.0f} % of the ceiling"]
    lines += [f"  {kind:<14} {part['ms']:>9.2f} ms" for kind, part in row["kinds"].items() if part["ms"] is not None]
    lines += [f"  {kernel['ms']:>9.2f} ms {kernel['launches']:>5} x {kernel['name'][:90]}" for kernel in row["kernels"]]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
