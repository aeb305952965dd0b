"""One table of what was wanted, what was predicted and what was measured, from the folder of a GPU run.

A goal is met, not met, or not measured; what a dry run timed is never a measurement. Beside the goals stand the rows of
every stage, and what is missing.

    python benchmarks/gpu/summary.py OUT         # prints the page, and writes OUT/summary.md and OUT/summary.json
"""

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from predictions import predict
from rows import ALONE, OURS, OVERLAPPED, Way, made_with, stages

from forcing_kv.output_files import atomic_write

MET, NOT_MET, NOT_MEASURED = "goal met", "goal not met", "not measured"
Figures = dict[str, Any]
Lookup = Callable[[str, str, str], Figures]
"""(stage, run, policy) -> what is predicted, or measured, of that row; KeyError where nothing is."""


OTHER_STAGES = {"attention", "memory", "calibration"}
"""Those that are scripts of their own, which run on any device."""
ALL_STAGES = (*stages(Way()), "parity", "breakdown", *sorted(OTHER_STAGES))


@dataclass(frozen=True, kw_only=True)
class Goal:
    """A number to reach.

    Attributes:
        name: What it is, in words.
        limit: The number.
        unit: Behind it.
        at_most: Whether less is better.
        of: The figure, from rows.
    """

    name: str
    limit: float
    unit: str
    at_most: bool = False
    of: Callable[[Lookup], float]

    def is_met(self, value: float) -> bool:
        """Whether a figure reaches it."""
        return value <= self.limit if self.at_most else value >= self.limit

    def wanted(self) -> str:
        """In words."""
        return f"{'at most' if self.at_most else 'at least'} {shown(self.limit, self.unit)}"


def figure(stage: str, name: str, *, run: str = ALONE, policy: str = OURS) -> Callable[[Lookup], float]:
    """A figure of one row."""
    return lambda rows: float(rows(stage, run, policy)[name])


def best(*figures: Callable[[Lookup], float]) -> Callable[[Lookup], float]:
    """The greatest of several, all of which are needed."""
    return lambda rows: max(one(rows) for one in figures)


def faster_than(policy: str, stage: str) -> Callable[[Lookup], float]:
    """How many times quicker a steady chunk of ours is than that of another policy."""
    return lambda rows: rows(stage, ALONE, policy)["chunk_ms"] / rows(stage, ALONE, OURS)["chunk_ms"]


def smaller_than(policy: str, stage: str) -> Callable[[Lookup], float]:
    """Our cache's bytes as a share of another policy's."""
    return lambda rows: rows(stage, ALONE, OURS)["cache_bytes"] / rows(stage, ALONE, policy)["cache_bytes"]


def large(run: str, name: str) -> Callable[[Lookup], float]:
    """A figure of the 14B model under its own setting of our policy."""
    (ours,) = (policy for one in stages(Way())["14b"][:1] for policy in one.policies if policy.startswith(OURS))
    return figure("14b", name, run=run, policy=ours)


def end_to_end(stage: str) -> Callable[[Lookup], float]:
    """With the VAE: one after the other or beside each other, whichever is quicker."""
    return best(figure(stage, "fps_end_to_end"), figure(stage, "fps_end_to_end", run=OVERLAPPED))


GOALS = (
    Goal(name="1.3B, 480p, passes alone, bf16", limit=65, unit="FPS", of=figure("480p-bf16", "fps")),
    Goal(name="1.3B, 480p, passes alone, fp8 linear layers", limit=85, unit="FPS", of=figure("480p-fp8", "fps")),
    Goal(name="1.3B, 480p, with the Wan VAE, bf16", limit=40, unit="FPS", of=end_to_end("480p-bf16")),
    Goal(name="Wan VAE, 480p, a chunk", limit=115, unit="ms", at_most=True, of=figure("480p-bf16", "vae_ms")),
    Goal(name="over window-12, 480p", limit=1.35, unit="x", of=faster_than("window", "480p-bf16")),
    Goal(name="over full-21, 480p", limit=2.0, unit="x", of=faster_than("full", "480p-bf16")),
    Goal(name="over window-12, 1080p", limit=1.7, unit="x", of=faster_than("window", "1080p-bf16")),
    Goal(name="over full-21, 1080p", limit=3.0, unit="x", of=faster_than("full", "1080p-bf16")),
    Goal(name="14B, 480p, passes alone, bf16", limit=10, unit="FPS", of=large("bf16", "fps")),
    Goal(name="first frame, 480p, warm", limit=1000, unit="ms", at_most=True, of=figure("480p-bf16", "first_frame_ms")),
    Goal(
        name="cache over window-12's, 480p", limit=0.5, unit="x", at_most=True, of=smaller_than("window", "480p-bf16")
    ),
)


def main() -> None:
    """Prints the page and writes it, and its JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder of the results")
    args = parser.parse_args()
    documents = read_documents(args.out)
    goals = judged_goals(documents)
    tables = (goal_table(goals), row_table(documents), breakdown_table(documents), missing(documents))
    page = "\n\n".join("\n".join(table) for table in tables if table)
    print(page)
    with atomic_write(args.out / "summary.md") as temporary:
        temporary.write_text(page + "\n", encoding="utf-8")
    with atomic_write(args.out / "summary.json") as temporary:
        document = {"benchmark": "gpu-summary", "goals": goals, "environment": made_with()}
        temporary.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def read_documents(out: Path) -> dict[str, dict[str, Any]]:
    """The stages that are there, by name."""
    paths = {stage: out / f"{stage}.json" for stage in ALL_STAGES}
    found = {stage: json.loads(path.read_text(encoding="utf-8")) for stage, path in paths.items() if path.exists()}
    for stage in OTHER_STAGES & found.keys():  # of scripts that run on any device, and say on which
        found[stage]["dry_run"] = str(found[stage]["config"]["device"]).startswith("cpu")
    return found


def judged_goals(documents: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Every goal with what is predicted and what was measured; nothing counts where parity has failed."""
    parity = documents.get("parity", {"dry_run": True})
    wrong = not parity["dry_run"] and not parity["passed"]

    def measured(stage: str, run: str, policy: str) -> Figures:
        counts = not wrong and not documents[stage]["dry_run"]
        found: Figures | None = row_of(stage, run, policy)["measured"] if counts else None
        if found is None:
            raise KeyError(stage)
        return found

    def predicted(stage: str, run: str, policy: str) -> Figures:
        if stage in documents:
            found: Figures = row_of(stage, run, policy)["prediction"]
            return found
        return predict(next(one for one in stages(Way())[stage] if one.name == run), policy)

    def row_of(stage: str, run: str, policy: str) -> dict[str, Any]:
        rows: Sequence[dict[str, Any]] = documents[stage]["rows"]
        return next(row for row in rows if (row["run"], row["policy"]) == (run, policy))

    judged = []
    for goal in GOALS:
        value = value_of(goal, measured)
        verdict = NOT_MEASURED if value is None else MET if goal.is_met(value) else NOT_MET
        judged.append(
            {
                "goal": goal.name,
                "wanted": goal.wanted(),
                "predicted": value_of(goal, predicted),
                "measured": value,
                "unit": goal.unit,
                "verdict": verdict,
            }
        )
    return judged


def value_of(goal: Goal, rows: Lookup) -> float | None:
    """What a goal is about; None where a row of it is not there, or has not that figure."""
    try:
        return goal.of(rows)
    except (KeyError, StopIteration, TypeError):
        return None


def goal_table(goals: Sequence[dict[str, Any]]) -> list[str]:
    """In markdown."""
    lines = ["| goal | wanted | predicted | measured | |", "|---|---|---|---|---|"]
    for goal in goals:
        predicted, measured = (shown(goal[name], goal["unit"]) for name in ("predicted", "measured"))
        lines.append(f"| {goal['goal']} | {goal['wanted']} | {predicted} | {measured} | {goal['verdict']} |")
    return lines


def row_table(documents: dict[str, dict[str, Any]]) -> list[str]:
    """In markdown, a line for every row of every stage that is there; a dry run's times stay out of it."""
    lines = [
        "| stage | run | policy | figure | predicted | measured | ratio of times | FPS | VAE, ms | with the VAE, FPS "
        "| of the ceiling | |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for stage, document in documents.items():
        for row in document["rows"] if document["benchmark"] == "gpu-stage" else []:
            told = None if document["dry_run"] else row["measured"]
            compared = row["compared"]
            cells = [stage, row["run"], row["policy"].partition(":")[0], compared, number(row["prediction"][compared])]
            if told is None:
                cells += [""] * 6
            else:
                cells += [number(told[compared]), number(row["measured_over_predicted"], digits=2)]
                cells += [number(told[name]) for name in ("fps", "vae_ms", "fps_end_to_end")]
                cells += [f"{100 * told['share_of_ceiling']:.0f} %"]
            status = f"dry run: {row['status']}" if document["dry_run"] else row["status"]
            lines.append(f"| {' | '.join([*cells, ': '.join(filter(None, (status, row['reason'])))])} |")
    return lines


def breakdown_table(documents: dict[str, dict[str, Any]]) -> list[str]:
    """Where the time of a steady pass goes, in markdown; nothing of a dry run."""
    document = documents.get("breakdown", {"dry_run": True})
    rows = [] if document["dry_run"] else [row for row in document["rows"] if row["status"] == "measured"]
    if not rows:
        return []
    kinds = list(rows[0]["kinds"])
    lines = [
        f"| a steady pass, ms | all | {' | '.join(kinds)} | launches | of the ceiling |",
        f"|{'---|' * (len(kinds) + 4)}",
    ]
    for row in rows:
        options = row["options"]
        name = f"{row['policy']}, {options['resolution']}, {options['precision'] or 'bf16'}"
        parts = [number(row["kinds"][kind]["ms"], digits=2) for kind in kinds]
        cells = [name, number(row["pass_ms"], digits=2), *parts, str(row["launches"])]
        lines.append(f"| {' | '.join(cells)} | {100 * row['share_of_ceiling']:.0f} % |")
    return lines


def missing(documents: dict[str, dict[str, Any]]) -> list[str]:
    """What is not there, or does not count, in words."""
    lines = []
    for stage in ALL_STAGES:
        document = documents.get(stage)
        if document is None:
            lines.append(f"- {stage}: not run")
        elif document["dry_run"]:
            lines.append(f"- {stage}: a dry run, which measures nothing")
        elif stage == "parity" and not document["passed"]:
            lines.append("- parity: failed; no row counts until it passes")
        elif not document.get("complete", True):
            lines.append(f"- {stage}: stopped before its end")
    return lines or ["Nothing is missing."]


def number(value: float | None, *, digits: int = 1) -> str:
    """For a cell; empty where there is none."""
    return "" if value is None else f"{value:,.{digits}f}"


def shown(value: float | None, unit: str) -> str:
    """A figure with its unit."""
    if value is None:
        return "-"
    if unit == "x":
        return f"{value:.2f}x"
    return f"{value:,.0f} {unit}" if unit == "ms" else f"{value:.1f} {unit}"


if __name__ == "__main__":
    main()
