"""`report.json`: every figure of a comparison, with what it was made on and from."""

import json
import math
from importlib import metadata
from pathlib import Path
from typing import Any

from forcing_kv.bench.environment import environment
from forcing_kv.evaluation.bootstrap import shortened
from forcing_kv.evaluation.metrics import Floats, Metric
from forcing_kv.evaluation.run import Compared
from forcing_kv.evaluation.summary import MetricSummary, PolicySummary, Summary
from forcing_kv.geometry import pixel_frames
from forcing_kv.output_files import atomic_write
from forcing_kv.policies.base import head_map_of

FORMAT = "forcing-kv-comparison"
VERSION = 1
JSON_FILE = "report.json"

_LIBRARIES = ("numpy", "scikit-image", "opencv-python-headless", "torchvision", "lpips")


def write_json(summary: Summary, folder: Path) -> Path:
    """Writes `report.json` into a folder that exists, replacing what is there.

    Raises:
        OutputError: It cannot be written.
    """
    path = folder / JSON_FILE
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(report_document(summary), indent=1, allow_nan=False) + "\n", encoding="utf-8")
    return path


def report_document(summary: Summary) -> dict[str, Any]:
    """What `report.json` holds; all but `environment` and the `seconds` of policies follows from the settings."""
    compared = summary.compared
    return {
        "format": FORMAT,
        "version": VERSION,
        "environment": _environment(),
        "config": {
            **compared.settings,
            "num_prompts": len(compared.prompts),
            "frames": pixel_frames(compared.settings["num_chunks"] * compared.settings["chunk_frames"]),
            "seconds": round(video_seconds(summary), 4),
            "seed": compared.asked.seed,
            "policies": [contestant.name for contestant in compared.contestants],
            "head_map": _head_map_model(compared),
            "metrics": [metric.name for metric in summary.metrics],
            "intervals": {"level": 0.95, **summary.bootstrap.to_json()},
        },
        "metrics": {metric.name: _metric_document(metric, summary) for metric in summary.metrics},
        "left_out": dict(compared.chosen.left_out),
        "not_judged": [
            {"prompt": compared.prompts[index], "reason": reason} for index, reason in compared.not_judged.items()
        ],
        "prompts": [
            {"prompt": prompt, "seed": compared.asked.seed + index} for index, prompt in enumerate(compared.prompts)
        ],
        "shown": {
            "chosen": summary.shown_by,
            **{shown.role: compared.prompts[shown.index] for shown in summary.shown},
        },
        "policies": [_policy_document(policy) for policy in summary.policies],
        "differences": {
            metric: {
                policy: {other: estimate.to_json() for other, estimate in others.items()}
                for policy, others in policies.items()
            }
            for metric, policies in summary.pairs.items()
        },
    }


def video_seconds(summary: Summary) -> float:
    """Length of each video."""
    settings = summary.compared.settings
    return pixel_frames(settings["num_chunks"] * settings["chunk_frames"]) / float(settings["fps"])


def _head_map_model(compared: Compared) -> str | None:
    """What the head map of the policies is of; None where no policy has one."""
    head_maps = (head_map_of(contestant.policy) for contestant in compared.contestants)
    return next((head_map.model for head_map in head_maps if head_map is not None), None)


def _environment() -> dict[str, Any]:
    document = environment()
    versions = dict(document["versions"])
    for name in _LIBRARIES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {**document, "versions": versions}


def _metric_document(metric: Metric, summary: Summary) -> dict[str, Any]:
    flow = {"flow": summary.compared.chosen.flow} if metric.uses_flow else {}
    curve = {} if metric.curve is None else {"curve": {"title": metric.curve.title, "over": metric.curve.over}}
    return {**metric.to_json(), **flow, **curve}


def _policy_document(policy: PolicySummary) -> dict[str, Any]:
    return {
        "name": policy.spec,
        "is_reference": policy.is_reference,
        "cache_bytes": policy.cache_bytes,
        "full_cache_bytes": policy.full_cache_bytes,
        "seconds": {"diffusion": round(policy.seconds_diffusion, 2), "decode": round(policy.seconds_decode, 2)},
        "metrics": {name: _figures(metric) for name, metric in policy.metrics.items()},
        "curves": {name: _numbers(curve) for name, curve in policy.curves.items()},
        "world": {
            "shares": dict(policy.shares),
            "differences": dict(policy.share_differences),
            "rights": [None if rights is None else dict(rights) for rights in policy.rights],
        },
    }


def _figures(metric: MetricSummary) -> dict[str, Any]:
    difference = metric.difference
    return {
        **({} if metric.estimate is None else metric.estimate.to_json()),
        "values": [None if value is None else shortened(value) for value in metric.values],
        "difference": None if difference is None else {**difference.to_json(), "verdict": metric.verdict},
    }


def _numbers(values: Floats) -> list[float | None]:
    return [shortened(value) if math.isfinite(value) else None for value in values.tolist()]
