"""Drift: how far colour, contrast and sharpness of the last quarter of a video are from those of the first.

Long streams fail slowly, by growing paler, flatter or harder. Each of the three is a statistic per frame; its drift is
the change between the means of the two quarters, whichever way. A scene that changes by itself drifts too, so the
reference's own drift stands beside it.
"""

from collections.abc import Callable
from functools import partial

import numpy as np

from forcing_kv.evaluation.metrics.base import (
    Better,
    Curve,
    Floats,
    Measured,
    Meter,
    Metric,
    Pixels,
    Series,
    Tools,
    chunk_means,
)
from forcing_kv.evaluation.metrics.fidelity import luminance

_CHANNELS = ("red", "green", "blue")


def channel_levels(frames: Pixels, channel: int) -> Floats:
    """Mean level of one channel, 0 to 255: uint8 [frames, H, W, 3] -> [frames]."""
    return np.asarray(frames[..., channel].mean(axis=(1, 2), dtype=np.float64))


def contrasts(frames: Pixels) -> Floats:
    """Standard deviation of the luminance, in grey levels: uint8 [frames, H, W, 3] -> [frames]."""
    return np.asarray(luminance(frames).std(axis=(1, 2)))


def sharpnesses(frames: Pixels) -> Floats:
    """Mean magnitude of the luminance's gradient, in grey levels per pixel: uint8 [frames, H, W, 3] -> [frames]."""
    grey = luminance(frames)
    across = grey[:, :-1, 1:] - grey[:, :-1, :-1]
    down = grey[:, 1:, :-1] - grey[:, :-1, :-1]
    return np.asarray(np.hypot(across, down).mean(axis=(1, 2)))


def colour_drift(video: Measured) -> float:
    """Distance between the mean colours of the first and the last quarter, in RGB levels (0 to 441)."""
    quarters = [video.quarters(name) for name in _CHANNELS]
    return float(np.linalg.norm([last.mean() - first.mean() for first, last in quarters]))


def relative_drift(video: Measured, series: str) -> float | None:
    """Change of a statistic from the first quarter to the last, in per cent of their mean; None where both are 0."""
    first, last = (float(quarter.mean()) for quarter in video.quarters(series))
    return 200 * abs(last - first) / (first + last) if first + last else None


def _colour_course(video: Measured, reference: Measured) -> Floats:
    """Distance of each chunk's mean colour from that of the first quarter."""
    changes = [chunk_means(video, name, "frame") - video.quarters(name)[0].mean() for name in _CHANNELS]
    return np.asarray(np.linalg.norm(np.stack(changes), axis=0))


def _relative_course(video: Measured, reference: Measured, *, series: str) -> Floats:
    """How far each chunk is from the first quarter, in per cent of the latter."""
    start = float(video.quarters(series)[0].mean())
    means = chunk_means(video, series, "frame")
    return 100 * np.abs(means / start - 1) if start else np.full(len(means), np.nan)


def _per_frame(name: str, statistic: Callable[[Pixels], Floats]) -> Series:
    def open_meter(tools: Tools) -> Meter:
        return lambda pair: statistic(pair.frames)

    return Series(name=name, per="frame", open=open_meter)


_COLOURS = tuple(_per_frame(name, partial(channel_levels, channel=index)) for index, name in enumerate(_CHANNELS))
_CONTRAST = _per_frame("contrast", contrasts)
_SHARPNESS = _per_frame("sharpness", sharpnesses)

DRIFT_COLOUR = Metric(
    name="drift-colour",
    title="Colour drift",
    group="Drift, first quarter to last",
    unit="RGB levels",
    better=Better.LOWER,
    about="Distance between the mean colours of the first and of the last quarter of the video. The reference's own "
    "says how much of it the scene itself brings.",
    series=_COLOURS,
    compute=lambda video, reference: colour_drift(video),
    curve=Curve(title="mean colour, distance from the first quarter", of=_colour_course),
)


def _drift(statistic: Series, *, meaning: str) -> Metric:
    return Metric(
        name=f"drift-{statistic.name}",
        title=f"{statistic.name.capitalize()} drift",
        group="Drift, first quarter to last",
        unit="%",
        better=Better.LOWER,
        about=f"Change of {meaning} from the first quarter of the video to the last, up or down, in per cent of the "
        "mean of the two.",
        series=(statistic,),
        compute=lambda video, reference: relative_drift(video, statistic.name),
        curve=Curve(
            title=f"{statistic.name}, % from the first quarter",
            of=partial(_relative_course, series=statistic.name),
        ),
    )


DRIFT_CONTRAST = _drift(_CONTRAST, meaning="the standard deviation of the luminance")
DRIFT_SHARPNESS = _drift(_SHARPNESS, meaning="the mean gradient of the luminance")
