"""`report.html`: a comparison to look at, in one file that needs nothing else: no network, no other file."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from forcing_kv.evaluation import charts
from forcing_kv.evaluation.bootstrap import Estimate
from forcing_kv.evaluation.libraries import library
from forcing_kv.evaluation.metrics import Better, Metric
from forcing_kv.evaluation.preview import data_uri, preview
from forcing_kv.evaluation.report import report_document, video_seconds
from forcing_kv.evaluation.summary import MetricSummary, PolicySummary, ShownPrompt, Summary
from forcing_kv.evaluation.table import arrow, megabytes, savings
from forcing_kv.output_files import atomic_write
from forcing_kv.tiny.scoring.shares import Share

HTML_FILE = "report.html"

_TEMPLATES = Path(__file__).parent / "templates"
_MARKS = {"better": "▲ better", "worse": "▼ worse", "differs": "◆ different", "": ""}


def check_page_available() -> None:
    """Refuses to start work whose report could not be written.

    Raises:
        ConfigurationError: Jinja2 is missing.
    """
    library("jinja2", what="the report")


def write_page(summary: Summary, folder: Path) -> Path:
    """Writes `report.html` into a folder that exists, replacing what is there.

    Raises:
        ConfigurationError: Jinja2 is missing.
        OutputError: It cannot be written, or a video cannot be read.
    """
    jinja2 = library("jinja2", what="the report")
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    markup = library("markupsafe", what="the report")
    environment.filters["svg"] = markup.Markup  # charts escape what they show
    environment.filters["breakable"] = lambda spec: _breakable(markup.escape(spec))
    content = environment.get_template("report.html.j2").render(**_content(summary))
    path = folder / HTML_FILE
    with atomic_write(path) as temporary:
        temporary.write_text(content, encoding="utf-8")
    return path


def _content(summary: Summary) -> dict[str, Any]:
    """What the template shows."""
    document = report_document(summary)
    compared = summary.compared
    groups: dict[str, list[dict[str, Any]]] = {}
    for metric in summary.metrics:
        groups.setdefault(metric.group, []).append(_card(metric, summary))
    reference = compared.reference
    return {
        "model": compared.settings["model"],
        "reference": reference,
        "num_prompts": len(compared.prompts),
        "seconds": f"{video_seconds(summary):.1f}",
        "resolution": "×".join(str(side) for side in compared.settings["resolution"]),
        "savings": savings(summary),
        "settings": document["config"],
        "environment": document["environment"],
        "flow": compared.chosen.flow,
        "policies": [_policy(number, policy) for number, policy in enumerate(summary.policies)],
        "columns": [_column(metric) for metric in summary.metrics],
        "rows": [_row(number, policy, summary) for number, policy in enumerate(summary.policies)],
        "glance": _glance(summary),
        "groups": groups,
        "attributes": _attributes(summary),
        "shown": [_shown(shown, summary) for shown in summary.shown],
        "shown_by": summary.shown_by,
        "left_out": document["left_out"],
        "not_judged": document["not_judged"],
        "bootstrap": document["config"]["intervals"],
    }


def _policy(number: int, policy: PolicySummary) -> dict[str, Any]:
    return {"number": number, "spec": policy.spec, "is_reference": policy.is_reference}


def _breakable(spec: Any) -> Any:
    """A spelling, as markup, that a narrow column may break before each setting."""
    for sign in ":,":
        spec = spec.replace(sign, type(spec)(f"{sign}<wbr>"))
    return spec


def _column(metric: Metric) -> dict[str, Any]:
    sign = arrow(metric) if metric.better in (Better.HIGHER, Better.LOWER) else ""
    way = " · ".join(filter(None, [metric.unit, f"{sign} {metric.better.value}".strip()]))
    return {
        "title": metric.title,
        "unit": metric.unit,
        "arrow": arrow(metric),
        "better": metric.better.value,
        "way": way,
    }


def _row(number: int, policy: PolicySummary, summary: Summary) -> dict[str, Any]:
    share = policy.cache_bytes / summary.policies[0].cache_bytes
    return {
        **_policy(number, policy),
        "cache": megabytes(policy.cache_bytes),
        "cache_share": "" if policy.is_reference else f"{100 * share:.1f} % of the reference's",
        "cells": [_cell(metric, policy.metrics.get(metric.name)) for metric in summary.metrics],
    }


def _cell(metric: Metric, figures: MetricSummary | None) -> dict[str, str] | None:
    if figures is None or figures.estimate is None:
        return None
    return {
        "mean": f"{figures.estimate.mean:.{metric.digits}f}",
        "interval": _interval(figures.estimate, metric.digits),
        "difference": "" if figures.difference is None else f"{figures.difference.mean:+.{metric.digits}f}",
        "difference_interval": "" if figures.difference is None else _interval(figures.difference, metric.digits, "+"),
        "verdict": figures.verdict,
        "mark": _MARKS[figures.verdict],
    }


def _interval(estimate: Estimate, digits: int, sign: str = "") -> str:
    if estimate.interval_95 is None:
        return ""
    return " to ".join(f"{bound:{sign}.{digits}f}" for bound in estimate.interval_95)


def _card(metric: Metric, summary: Summary) -> dict[str, Any]:
    """A metric with its pictures."""
    numbered = list(enumerate(summary.policies))
    rows = [
        charts.Row(number=number, policy=policy.spec, estimate=figures.estimate)
        for number, policy in numbered
        if (figures := policy.metrics.get(metric.name)) is not None and figures.estimate is not None
    ]
    return {
        **_column(metric),
        "about": metric.about,
        "flow": summary.compared.chosen.flow if metric.uses_flow else None,
        "against_reference": metric.against_reference,
        "intervals": charts.interval_chart(
            rows,
            digits=metric.digits,
            about=f"{metric.title}: mean and 95 % interval of each policy",
            reference=rows[0].estimate.mean if rows and not metric.against_reference else None,
            mark=1.0 if metric.better is Better.NEAR_ONE else None,
        ),
        "curve_title": "" if metric.curve is None else metric.curve.title,
        "curve": _curve(metric, summary),
    }


def _curve(metric: Metric, summary: Summary) -> str:
    if metric.curve is None:
        return ""
    lines = [
        charts.Line(number=number, policy=policy.spec, values=policy.curves[metric.name].tolist())
        for number, policy in enumerate(summary.policies)
        if metric.name in policy.curves
    ]
    num_places = len(lines[0].values)
    if metric.curve.over == "place":
        places = [float(place) for place in range(1, num_places + 1)]
        title = "frame of the chunk; 1 follows the boundary"
    else:
        places = _chunk_seconds(summary, num_places)
        title = "seconds of video"
    return charts.line_chart(lines, places, x_title=title, about=f"{metric.title}: {metric.curve.title}")


def _chunk_seconds(summary: Summary, num_chunks: int) -> list[float]:
    """The middle of each chunk."""
    measured = summary.compared.videos[summary.compared.reference][0].measured
    bounds = [*measured.chunk_starts, measured.num_frames]
    fps = float(summary.compared.settings["fps"])
    return [(start + stop) / 2 / fps for start, stop in pairwise(bounds)][:num_chunks]


def _glance(summary: Summary) -> dict[str, Any] | None:
    """The first metric over the size of the cache."""
    metric = summary.metrics[0]
    points = [
        charts.Point(number=number, policy=policy.spec, size=policy.cache_bytes, estimate=figures.estimate)
        for number, policy in enumerate(summary.policies)
        if (figures := policy.metrics.get(metric.name)) is not None and figures.estimate is not None
    ]
    if not points:
        return None
    return {
        **_column(metric),
        "flow": summary.compared.chosen.flow if metric.uses_flow else None,
        "chart": charts.size_chart(
            points,
            x_title="cache at the end of a video, MB, logarithmic",
            about=f"{metric.title} of each policy over the size of its cache",
        ),
    }


def _attributes(summary: Summary) -> dict[str, Any] | None:
    """Shares of videos that are right: a row per attribute, a column per policy."""
    names = dict.fromkeys(name for policy in summary.policies for name in policy.shares)
    if not names or "world" not in {metric.name for metric in summary.metrics}:
        return None
    return {
        "names": list(names),
        "policies": [
            {
                **_policy(number, policy),
                "cells": [_share(name, policy) for name in names],
            }
            for number, policy in enumerate(summary.policies)
        ],
    }


def _share(name: str, policy: PolicySummary) -> dict[str, str] | None:
    share: Share | None = policy.shares.get(name)
    if share is None:
        return None
    low, high = (100 * bound for bound in share["interval_95"])
    difference = policy.share_differences.get(name)
    verdict = ""
    if difference is not None:
        lowest, highest = difference["interval_95"]
        verdict = "better" if lowest > 0 else "worse" if highest < 0 else ""
    return {
        "mean": f"{100 * share['share']:.0f}",
        "interval": f"{low:.0f} to {high:.0f}",
        "difference": "" if difference is None else f"{100 * difference['difference']:+.0f}",
        "verdict": verdict,
        "mark": _MARKS[verdict],
    }


def _shown(shown: ShownPrompt, summary: Summary) -> dict[str, Any]:
    compared = summary.compared
    return {
        "role": shown.role,
        "prompt": compared.prompts[shown.index],
        "seed": compared.asked.seed + shown.index,
        "videos": [
            {
                **_policy(number, policy),
                "figures": _figures(summary.metrics, policy, shown.index),
                "source": data_uri(preview(compared.paths[policy.spec][shown.index]), "video/mp4"),
            }
            for number, policy in enumerate(summary.policies)
        ],
    }


def _figures(metrics: Sequence[Metric], policy: PolicySummary, index: int) -> str:
    """The first few figures of one video."""
    figures: list[str] = []
    for metric in metrics:
        values = policy.metrics.get(metric.name)
        if values is not None and (value := values.values[index]) is not None and len(figures) < 3:
            figures.append(f"{metric.title} {value:.{metric.digits}f} {metric.unit}".strip())
    return ", ".join(figures)
