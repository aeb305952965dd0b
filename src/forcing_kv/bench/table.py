"""A benchmark in a terminal: what it will be bound by, before it, and what came out, after it."""

from typing import Any

from forcing_kv.bench.ceilings import Ceilings
from forcing_kv.bench.plan import BenchmarkPlan
from forcing_kv.bench.steady_state import frames_read


def describe_limits(plan: BenchmarkPlan, ceilings: Ceilings) -> str:
    """What is going to be measured, and the least that a steady chunk of each policy can take."""
    width = max(len(policy.name) for policy in plan.policies)
    source, dtype = plan.source, str(plan.dtype).removeprefix("torch.")
    picture = "x".join(map(str, plan.resolution))
    weights = ", random weights" if plan.random_weights else ""
    options = plan.options
    kind = f"{dtype} on {plan.device}" + ("" if options.kv_dtype is None else f", {options.kv_dtype} cache")
    steps = len(source.preset.steps)
    skipped = "" if options.step_cache is None else f" (step cache: {plan.steps_skipped} of {steps} steps left out)"
    lines = [
        f"{source.preset.name}{weights}, {source.config.num_layers} layers, {picture}, {kind}: "
        f"{plan.repeats} x {plan.num_frames} frames ({plan.num_chunks} chunks) timed per policy, after one to warm up; "
        f"attention by {options.attention}",
        f"this machine at its best: {ceilings.matmul_flops_per_second / 1e12:.3g} TFLOP/s in a matrix product, "
        f"{ceilings.copy_bytes_per_second / 1e9:.3g} GB/s in a copy; so a chunk of {plan.chunk_passes} passes{skipped} "
        "takes at least, in the steady state:",
        f"{'':<{width}} {'frames read':>11} {'TFLOP/pass':>10} {'GB/pass':>8} {'ms/chunk':>9}",
    ]
    for policy in plan.policies:
        tokens = policy.steady.history_tokens
        work, read = plan.pass_work(tokens), frames_read(tokens, plan.geometry)
        lines.append(
            f"{policy.name:<{width}} {read:>11.2f} {work.flops / 1e12:>10.3g} {work.bytes / 1e9:>8.3g} "
            f"{_number(plan.least_chunk_ms(tokens, ceilings)):>9}"
        )
    return "\n".join(lines)


def describe_results(document: dict[str, Any]) -> str:
    """One line per policy, then the ratios, the arithmetic's beside the clock's."""
    rows = document["policies"]
    width = max((len(row["name"]) for row in rows), default=0)
    lines = [
        f"{'':<{width}} {'FPS of':>9} {'FPS end':>8} {'ms per steady chunk':>26} {'of':>7} {'first':>9} {'cache':>9} "
        f"{'peak':>9}",
        f"{'':<{width}} {'diffusion':>9} {'to end':>8} {'median (least to most)':>26} {'ceiling':>7} {'frame ms':>9} "
        f"{'MB':>9} {'MB':>9}",
    ]
    lines += [_result_line(row, width) for row in rows]
    lines += [f"left out: {name}: {reason}" for name, reason in document["left_out"].items()]
    against = document["ratios"]["against"]
    for name, ratio in document["ratios"]["policies"].items():
        lines.append(
            f"{against} is {ratio['steady_chunk_ms']:.2f}x as fast as {name} in the steady state (arithmetic: "
            f"{ratio['flops_per_pass']:.2f}x) and holds 1/{ratio['steady_cache_bytes']:.2f} of its bytes"
        )
    return "\n".join(lines)


def _result_line(row: dict[str, Any], width: int) -> str:
    least, most = (_number(value) for value in row["steady_chunk_ms_range"])
    steady = f"{_number(row['steady_chunk_ms'])} ({least} to {most})"
    cache, peak = (_megabytes(row[name]) for name in ("cache_bytes", "peak_bytes"))
    return (
        f"{row['name']:<{width}} {_number(row['fps_diffusion']):>9} {_number(row['fps_end_to_end']):>8} {steady:>26} "
        f"{100 * row['share_of_ceiling']:>5.1f} % {_number(row['first_frame_ms']):>9} {cache:>9} {peak:>9}"
    )


def _megabytes(num_bytes: int | None) -> str:
    return _number(None if num_bytes is None else num_bytes / 1e6)


def _number(value: float | None) -> str:
    """With three digits where it has fewer before the point."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
