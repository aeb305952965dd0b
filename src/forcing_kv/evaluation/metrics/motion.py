"""How much a video moves, and whether compression has slowed it down or stirred it up."""

from forcing_kv.evaluation.metrics.base import Better, Curve, Measured, Metric, chunk_means
from forcing_kv.evaluation.metrics.flow import FLOW

STILL_PIXELS = 1e-3
"""Mean flow magnitude per pair of frames under which a video stands still."""


def motion_amplitude(video: Measured) -> float:
    """Mean flow magnitude over all pairs of frames, in pixels."""
    return float(video.series[FLOW.name].mean())


def motion_ratio(video: Measured, reference: Measured) -> float | None:
    """Motion amplitude over the reference's; None where the reference stands still."""
    amplitude = motion_amplitude(reference)
    return motion_amplitude(video) / amplitude if amplitude >= STILL_PIXELS else None


MOTION = Metric(
    name="motion",
    title="Motion amplitude",
    group="Motion",
    unit="px per frame",
    better=Better.NEITHER,
    about="Mean magnitude of the optical flow between neighbouring frames. A policy that freezes a video lowers it, "
    "one that makes it flicker raises it; the reference's own figure is the measure.",
    series=(FLOW,),
    compute=lambda video, reference: motion_amplitude(video),
    curve=Curve(
        title="flow of the chunk, px per frame", of=lambda video, reference: chunk_means(video, FLOW.name, "pair")
    ),
    digits=3,
)

MOTION_RATIO = Metric(
    name="motion-ratio",
    title="Motion ratio",
    group="Motion",
    better=Better.NEAR_ONE,
    about="Motion amplitude over that of the reference's video of the same prompt: below 1 the video has slowed down, "
    "above 1 something moves that should not, or moves more.",
    series=(FLOW,),
    against_reference=True,
    compute=motion_ratio,
    digits=3,
)
