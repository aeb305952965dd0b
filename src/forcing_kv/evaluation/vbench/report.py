"""The report of a benchmark run: scores, totals, what made the videos, what scored them, and what to know of it."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from forcing_kv.evaluation.vbench.evaluator import read_about
from forcing_kv.evaluation.vbench.folder import BenchmarkFolder, FolderSettings
from forcing_kv.evaluation.vbench.plan import FLICKERING_SAMPLES, SAMPLES
from forcing_kv.evaluation.vbench.results import DimensionResult, read_results
from forcing_kv.evaluation.vbench.scores import DIMENSIONS, FLICKERING, totals
from forcing_kv.evaluation.vbench.suite import PromptSuite
from forcing_kv.output_files import atomic_write

FORMAT = "forcing-kv-vbench-report"
VERSION = 1
LONG_VIDEO_SECONDS = 5.0
"""From this length on VBench's leaderboard scores videos with VBench-Long, which cuts them into clips."""


def write_report(folder: BenchmarkFolder) -> dict[str, Any]:
    """Gathers the results that are there into `report.json`, replacing it.

    A total for which a dimension is missing is null, and the missing ones are named.

    Returns:
        What was written.

    Raises:
        OutputError: The folder's settings or a result cannot be read, or the report cannot be written.
    """
    settings, suite = folder.settings(), folder.suite()
    results = read_results(folder.results)
    scores = totals({name: result.score for name, result in results.items()})
    about = {name: read_about(folder, name) for name in results}
    document = {
        "format": FORMAT,
        "version": VERSION,
        "totals": asdict(scores),
        "missing": [name for name in DIMENSIONS if name not in results],
        "dimensions": {name: _dimension(name, result, settings, suite) for name, result in results.items()},
        "caveats": _caveats(settings, suite, results, about),
        "config": {
            **settings.made_with,
            **settings.plan.to_json(),
            "seeds": [settings.made_with["seed"] + index for index in range(settings.plan.samples)],
        },
        "evaluated_on": about,
        "environment": settings.environment,
    }
    with atomic_write(folder.report_path) as temporary:
        temporary.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return document


def format_report(document: Mapping[str, Any]) -> str:
    """The table for the terminal, in per cent as leaderboards have it, and what keeps it from being compared."""
    rows = [("", "score", "normalised", "videos")]
    for name, entry in document["dimensions"].items():
        rows.append((name, _percent(entry["score"]), _percent(entry["normalised"]), str(entry["videos"])))
    lines = ["  ".join([row[0].ljust(22), *(cell.rjust(10) for cell in row[1:])]).rstrip() for row in rows]
    lines.append("")
    for name, value in document["totals"].items():
        lines.append(f"{name.ljust(22)}  {('-' if value is None else _percent(value)).rjust(10)}")
    if document["missing"]:
        lines.append(f"\nmissing, and so are the totals that need them: {', '.join(document['missing'])}")
    if document["caveats"]:
        lines += [
            "\nto know before comparing with published scores:",
            *(f"  {caveat}" for caveat in document["caveats"]),
        ]
    return "\n".join(lines)


def _dimension(name: str, result: DimensionResult, settings: FolderSettings, suite: PromptSuite) -> dict[str, Any]:
    prompts = len(suite.chosen([name])) if name in suite.dimensions else 0
    return {
        "score": result.score,
        "normalised": DIMENSIONS[name].normalised(result.score),
        "group": DIMENSIONS[name].group,
        "weight": DIMENSIONS[name].weight,
        "prompts": prompts,
        "videos": result.num_videos,
        "videos_made": prompts * settings.plan.samples_for(name),
    }


def _caveats(
    settings: FolderSettings,
    suite: PromptSuite,
    results: Mapping[str, DimensionResult],
    about: Mapping[str, Mapping[str, Any] | None],
) -> list[str]:
    """What sets these scores apart from those that VBench's instructions lead to, in words."""
    made_with, plan = settings.made_with, settings.plan
    found = []
    if not suite.is_official:
        found.append(f"the prompt suite is not that of vbench 0.1.5: it has {len(suite.prompts)} prompts")
    if plan.samples != SAMPLES and set(results) - {FLICKERING}:
        found.append(f"{_samples(plan.samples)}, not {SAMPLES}")
    if FLICKERING in results:
        filtered = (about[FLICKERING] or {}).get("static_filter")
        if filtered is None:
            found.append(f"whether the videos for {FLICKERING} were filtered for static ones is not known")
        elif not filtered:
            found.append(f"{FLICKERING} was scored on all videos, without the filter for static ones")
        elif plan.flickering_samples < FLICKERING_SAMPLES:
            found.append(f"{_samples(plan.flickering_samples)} of {FLICKERING}, not {FLICKERING_SAMPLES}")
    for name, ran_on in about.items():
        if ran_on is not None and ran_on.get("samples") != plan.samples_for(name):
            found.append(
                f"{name} was scored on {_samples(ran_on.get('samples'))}, and there are now {plan.samples_for(name)}: "
                "evaluate it again"
            )
    if made_with.get("prompts") is not None:
        found.append(
            f"the prompts given to the model were those of {made_with['prompts']['name']}, not the suite's own"
        )
    seconds = made_with["frames"] / made_with["fps"]
    if seconds >= LONG_VIDEO_SECONDS:
        found.append(
            f"videos of {seconds:.1f} s: the leaderboard scores those of {LONG_VIDEO_SECONDS:g} s and more with "
            "VBench-Long"
        )
    versions = sorted({str(ran_on["vbench"]) for ran_on in about.values() if ran_on is not None and "vbench" in ran_on})
    if len(versions) > 1:
        found.append(f"dimensions were scored by different versions of VBench: {', '.join(versions)}")
    return found


def _samples(number: int | None) -> str:
    return f"{number} sample{'s' * (number != 1)} per prompt"


def _percent(value: float) -> str:
    return f"{100 * value:.2f}"
