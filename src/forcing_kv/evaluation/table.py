"""The figures of a comparison as a short table for the terminal."""

from forcing_kv.evaluation.bootstrap import Estimate
from forcing_kv.evaluation.metrics import Better, Metric
from forcing_kv.evaluation.summary import PolicySummary, Summary

_ARROWS = {Better.HIGHER: "↑", Better.LOWER: "↓", Better.NEAR_ONE: "→1", Better.NEITHER: ""}
_MARKS = {"better": "+", "worse": "-", "differs": "*", "": " "}


def format_table(summary: Summary) -> str:
    """A line per policy: means over prompts, half their interval behind ±, and how they compare with the reference."""
    heads = ["policy", "cache", *(f"{metric.name} {arrow(metric)}".strip() for metric in summary.metrics)]
    rows = [[_label(policy), megabytes(policy.cache_bytes), *_cells(policy, summary)] for policy in summary.policies]
    widths = [max(len(row[column]) for row in [heads, *rows]) for column in range(len(heads))]
    lines = ["  ".join(_aligned(row, widths)).rstrip() for row in [heads, *rows]]
    notes = ["±: half the 95 % interval over prompts. Told from the reference: + better, - worse, * different."]
    shared = savings(summary)
    if shared:
        notes.append(f"{shared}.")
    flow = summary.compared.chosen.flow
    if flow is not None:
        notes.append(f"Optical flow: {flow}.")
    notes += [f"{name}: left out, {reason}" for name, reason in summary.compared.chosen.left_out.items()]
    return "\n".join([*lines, "", *notes])


def arrow(metric: Metric) -> str:
    """Which way is better."""
    return _ARROWS[metric.better]


def megabytes(num_bytes: float) -> str:
    """As people read it."""
    return f"{num_bytes / 1e9:.2f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:.2f} MB"


def savings(summary: Summary) -> str:
    """What all policies of a comparison have in common besides what they keep, in words; empty where it is nothing."""
    settings, words = summary.compared.settings, []
    if settings["precision"] is not None:
        words.append(f"linear layers in {settings['precision']}")
    if settings["positions"] != "absolute":
        words.append(f"{settings['positions']} positions")
    if settings["kv_dtype"] is not None:
        words.append(f"the cache stored as {settings['kv_dtype']}")
    if settings["step_cache"] is not None:
        left_out = f"{settings['steps_skipped']} of {len(settings['timesteps'])} steps left out"
        words.append(f"a step cache at {settings['step_cache']:g} ({left_out})")
    if not words:
        return ""
    is_plain = summary.compared.asked.plain_reference
    who = "All policies but the reference" if is_plain else "All policies, the reference too,"
    return f"{who} with {' and '.join(words)}"


def _label(policy: PolicySummary) -> str:
    return f"{policy.spec} (reference)" if policy.is_reference else policy.spec


def _cells(policy: PolicySummary, summary: Summary) -> list[str]:
    cells = []
    for metric in summary.metrics:
        figures = policy.metrics.get(metric.name)
        if figures is None or figures.estimate is None:
            cells.append("")
            continue
        cells.append(f"{_estimate(figures.estimate, metric.digits)}{_MARKS[figures.verdict]}")
    return cells


def _estimate(estimate: Estimate, digits: int) -> str:
    if estimate.interval_95 is None:
        return f"{estimate.mean:.{digits}f}"
    low, high = estimate.interval_95
    return f"{estimate.mean:.{digits}f} ±{(high - low) / 2:.{digits}f}"


def _aligned(cells: list[str], widths: list[int]) -> list[str]:
    """The first column to the left, numbers to the right."""
    first, *others = zip(cells, widths, strict=True)
    return [first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in others)]
