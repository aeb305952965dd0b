"""The metrics of a comparison, by name. A new one is a `Metric` in a file here and a place in `METRICS`."""

from collections.abc import Sequence

from forcing_kv.errors import ConfigurationError, UnknownNameError
from forcing_kv.evaluation.metrics.base import (
    Better,
    ChunkPair,
    Curve,
    Floats,
    Measured,
    Meter,
    Metric,
    Series,
    Tools,
)
from forcing_kv.evaluation.metrics.boundaries import BOUNDARY_JUMP, DISCONTINUITY
from forcing_kv.evaluation.metrics.drift import DRIFT_COLOUR, DRIFT_CONTRAST, DRIFT_SHARPNESS
from forcing_kv.evaluation.metrics.fidelity import PSNR, SSIM
from forcing_kv.evaluation.metrics.flow import FLOWS, open_flow
from forcing_kv.evaluation.metrics.latents import COSINE
from forcing_kv.evaluation.metrics.motion import MOTION, MOTION_RATIO
from forcing_kv.evaluation.metrics.perceptual import LPIPS
from forcing_kv.evaluation.metrics.world import WORLD

METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        WORLD,
        PSNR,
        SSIM,
        LPIPS,
        COSINE,
        MOTION,
        MOTION_RATIO,
        DISCONTINUITY,
        BOUNDARY_JUMP,
        DRIFT_COLOUR,
        DRIFT_CONTRAST,
        DRIFT_SHARPNESS,
    )
}
"""In the order of tables; the first that is measured decides which prompts are shown as best and worst."""

ALL = "all"


def split_metrics(names: str) -> list[str]:
    """The names in a comma-separated list, each standing for itself and those that begin with it and a dash.

    Args:
        names: For example `psnr,drift,world`, where `drift` gives all three; or `all`.

    Returns:
        Names of `METRICS`, in their order.

    Raises:
        UnknownNameError: A name that is none and begins none.
        ConfigurationError: An empty list.
    """
    if names.strip() == ALL:
        return list(METRICS)
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    if not wanted:
        raise ConfigurationError(f"metrics {names!r} name none; write {ALL}, or psnr,ssim,world")
    for name in wanted:
        if not any(_is_meant(metric, name) for metric in METRICS):
            groups = sorted({metric.partition("-")[0] for metric in METRICS if "-" in metric} - METRICS.keys())
            raise UnknownNameError("metric", name, [ALL, *METRICS, *groups])
    return [metric for metric in METRICS if any(_is_meant(metric, name) for name in wanted)]


def series_of(metrics: Sequence[Metric]) -> list[Series]:
    """What has to be measured for some metrics, each series once."""
    return list({series.name: series for metric in metrics for series in metric.series}.values())


def _is_meant(metric: str, name: str) -> bool:
    return metric == name or metric.startswith(f"{name}-")


__all__ = [
    "ALL",
    "FLOWS",
    "METRICS",
    "Better",
    "ChunkPair",
    "Curve",
    "Floats",
    "Measured",
    "Meter",
    "Metric",
    "Series",
    "Tools",
    "open_flow",
    "series_of",
    "split_metrics",
]
