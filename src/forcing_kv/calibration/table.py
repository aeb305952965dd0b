"""The stability of a map as a short table for the terminal, for readers who know neither paper nor project."""

from forcing_kv.calibration.stability import AXES, MIDDLE_BAND, NEAR_THRESHOLD, HalvesAgreement, Stability


def format_table(stability: Stability) -> str:
    """What `forcing-kv calibrate` prints at its end; under 100 columns."""
    return "\n".join(
        [
            f"{_part(stability.num_static, stability.num_heads)} heads are static: "
            f"score (attention on the newest frames) {stability.threshold:.2f} or more.",
            "",
            *_axis_lines(stability),
            "",
            *_summary_lines(stability),
        ]
    )


def _axis_lines(stability: Stability) -> list[str]:
    lines = [
        f"{'':17}{'':>10}   {'standard deviation of score':>27}   heads whose role",
        f"{'compared over':17}{'how many':>10}   {'mean':>14}{'largest':>13}   ever changes",
    ]
    for axis in stability.axes:
        start = f"{AXES[axis.name]:17}{axis.num_values:>10}   "
        if axis.has_one_value:
            lines.append(f"{start}      one only: nothing to compare")
            continue
        mean, largest = float(axis.deviations.mean()), float(axis.deviations.max())
        lines.append(f"{start}{mean:>14.3f}{largest:>13.3f}   {_part(axis.num_flips, stability.num_heads)}")
    return [line.rstrip() for line in lines]


def _summary_lines(stability: Stability) -> list[str]:
    near, middle = stability.num_within(NEAR_THRESHOLD), stability.num_within(MIDDLE_BAND)
    entries = [
        ("halves of the prompts", _halves_text(stability.halves)),
        (
            "near the threshold",
            [
                f"{_part(near, stability.num_heads)} heads within {NEAR_THRESHOLD:.2f} of it, "
                f"{_part(middle, stability.num_heads)} within {MIDDLE_BAND:.2f}"
            ],
        ),
        ("widest gap in scores", _gap_text(stability)),
    ]
    if stability.sampling_errors.any():
        largest = float(stability.sampling_errors.max())
        entries.append(("sampled queries", [f"a score's standard error from them is at most {largest:.4f}"]))
    return [f"{label if number == 0 else '':24}{line}" for label, lines in entries for number, line in enumerate(lines)]


def _halves_text(halves: HalvesAgreement | None) -> list[str]:
    if halves is None:
        return ["one prompt only: nothing to compare"]
    share = halves.equal_share
    splits = "1 split" if halves.num_splits == 1 else f"{halves.num_splits} random splits"
    lowest, highest = _percent(share.lowest), _percent(share.highest)
    first = f"their maps agree on {_percent(share.mean)} of heads ({lowest} to {highest}; {splits})"
    if halves.kappa is None:
        return [first, "Cohen's kappa is undefined: both maps give all heads the same role"]
    kappa = halves.kappa
    second = f"Cohen's kappa {kappa.mean:.2f} ({kappa.lowest:.2f} to {kappa.highest:.2f}); 1 = equal maps, 0 = chance"
    undefined = [f"(in {halves.num_undefined} splits undefined: one role only)"] if halves.num_undefined else []
    return [first, second, *undefined]


def _gap_text(stability: Stability) -> list[str]:
    gap = stability.gap
    if gap is None:
        return ["none: all scores are equal" if stability.num_heads > 1 else "none: one head only"]
    first = f"from {gap.low:.2f} to {gap.high:.2f}, with {gap.num_below} heads below and {gap.num_above} above"
    if gap.low < stability.threshold <= gap.high:
        return [f"{first}; the threshold lies in it"]
    return [first, f"the threshold does not lie in it; {gap.middle:.2f} would"]


def _part(count: int, total: int) -> str:
    return f"{count} of {total} ({_percent(count / total)})"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
