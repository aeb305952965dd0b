"""Draws what policies do to the embedded model's videos, beside what their caches hold; prints the same as a table.

python benchmarks/quality_figure.py QUALITY.json [...] --memory TINY_WORLD.json [...] -o docs/quality.png

QUALITY.json is the report of `forcing-kv compare`, TINY_WORLD.json of `benchmarks/tiny_world.py` for the memory scenes;
of several, each policy is taken from the first that has it.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from forcing_kv.figure_style import COLOURS, INK, PALE, SHADE, new_figure, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

OURS = "forcing-kv"
KEPT = "kept"
"""The memory scenes' share that counts: what came back was what had gone."""


@dataclass(frozen=True, kw_only=True)
class Score:
    """A mean in per cent, with its 95 % interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.1f} ({self.low:.1f} to {self.high:.1f})"


@dataclass(frozen=True, kw_only=True)
class Policy:
    """What is drawn of a policy.

    Attributes:
        name: Spelling.
        cache_bytes: Of one video, at its end.
        world: Score of free scenes.
        difference: That less the full cache's, in points; None for the full cache.
        kept: Memory scenes right after the hiding; None where that was not measured.
    """

    name: str
    cache_bytes: int
    world: Score
    difference: Score | None
    kept: Score | None


def main() -> None:
    """Reads, draws and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("reports", type=Path, nargs="+", metavar="QUALITY.json")
    parser.add_argument("--memory", type=Path, nargs="+", default=[], metavar="TINY_WORLD.json")
    parser.add_argument("-o", "--output", type=Path, required=True, help="PNG to write")
    args = parser.parse_args()
    policies = read_policies(
        [json.loads(path.read_text()) for path in args.reports],
        [json.loads(path.read_text()) for path in args.memory],
    )
    save_figure(args.output, lambda: quality_figure(policies))
    print(format_policies(policies))


def read_policies(reports: list[dict[str, Any]], memories: list[dict[str, Any]]) -> list[Policy]:
    """The policies of all reports, each once."""
    kept: dict[str, dict[str, Any]] = {}
    for memory in memories:
        kept = memory["results"]["parts"]["memory scenes"]["sources"] | kept
    policies: dict[str, Policy] = {}
    for report in reports:
        for row in report["policies"]:
            world = row["metrics"]["world"]
            share = kept.get(row["name"], {}).get("shares", {}).get(KEPT)
            policies.setdefault(
                row["name"],
                Policy(
                    name=row["name"],
                    cache_bytes=row["cache_bytes"],
                    world=_score(world["mean"], world["interval_95"]),
                    difference=None
                    if row["is_reference"]
                    else _score(world["difference"]["mean"], world["difference"]["interval_95"]),
                    kept=None
                    if share is None
                    else _score(100 * share["share"], [100 * end for end in share["interval_95"]]),
                ),
            )
    return list(policies.values())


def format_policies(policies: list[Policy]) -> str:
    """As a table in Markdown."""
    lines = ["| policy | cache | world score, % | less full, points | memory kept, % |", "|---|---|---|---|---|"]
    lines += [
        f"| `{policy.name}` | {policy.cache_bytes / 1e6:.2f} MB | {policy.world} | {policy.difference or ''} | "
        f"{policy.kept or ''} |"
        for policy in policies
    ]
    return "\n".join(lines)


def quality_figure(policies: list[Policy]) -> "Figure":
    """A row per policy: left the world score, right the memory scenes; dots are means, bars their intervals."""
    has_memory = any(policy.kept is not None for policy in policies)
    figure = new_figure("What the cache keeps, and what the videos are worth", height=1.2 + 0.34 * len(policies))
    panels = figure.subplots(1, 2 if has_memory else 1, squeeze=False, sharey=True)[0]
    _panel(panels[0], policies, [policy.world for policy in policies])
    panels[0].set_title("Free scenes: attributes that are right, per cent", color=PALE)
    panels[0].set_yticks(
        range(len(policies)), [f"{policy.name}   {policy.cache_bytes / 1e6:.2f} MB" for policy in policies]
    )
    panels[0].invert_yaxis()
    if has_memory:
        _panel(panels[1], policies, [policy.kept for policy in policies])
        panels[1].set_title("Memory scenes: the same came back, per cent", color=PALE)
        panels[1].set_xlim(left=0)
    return figure


def _panel(axes: "Axes", policies: list[Policy], scores: Sequence[Score | None]) -> None:
    for row, (policy, score) in enumerate(zip(policies, scores, strict=True)):
        if score is None:
            continue
        errors = [[max(0.0, score.mean - score.low)], [max(0.0, score.high - score.mean)]]
        colour = {"full": INK, OURS: COLOURS[1]}.get(policy.name, COLOURS[0])
        axes.errorbar(score.mean, row, xerr=errors, fmt="o", color=colour, capsize=3)
    reference = scores[0]
    if reference is not None:
        axes.axvline(reference.mean, color=PALE, linewidth=1, linestyle="--", zorder=0)
    axes.grid(axis="x", color=SHADE)


def _score(mean: float, interval: list[float]) -> Score:
    return Score(mean=mean, low=interval[0], high=interval[1])


if __name__ == "__main__":
    main()
