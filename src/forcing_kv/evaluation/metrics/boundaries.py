"""Whether the places show where one chunk ends and the next begins.

Two metrics of the flow magnitudes m(1), m(2), ... of neighbouring frames. The field's takes the k largest, k being the
number of chunk boundaries, wherever they are: a video that starts and stops of its own accord scores as badly as one
that jumps at every chunk. Ours looks at the true boundaries only, at how far m jumps there from its two neighbours, and
takes the same jump everywhere else as the measure.
"""

from itertools import pairwise

import numpy as np

from forcing_kv.evaluation.metrics.base import Better, Curve, Floats, Measured, Metric
from forcing_kv.evaluation.metrics.flow import FLOW

JUMP_FLOOR_PIXELS = 1e-3
"""Added to both means of jumps, so that a video that hardly moves has a ratio near 1 and not one of rounding errors."""


def boundary_pairs(chunk_starts: tuple[int, ...]) -> list[int]:
    """Indices of the frame pairs that reach over a chunk boundary; pair 0 is that of frames 0 and 1."""
    return [start - 1 for start in chunk_starts[1:]]


def chunk_discontinuity(magnitudes: Floats, num_boundaries: int) -> float | None:
    """Mean of the largest `num_boundaries` flow magnitudes over the mean of all: the field's metric.

    Returns:
        At least 1; None without a boundary, or where nothing moves at all.
    """
    if not num_boundaries or not magnitudes.any():
        return None
    return float(np.sort(magnitudes)[-num_boundaries:].mean() / magnitudes.mean())


def boundary_jump(magnitudes: Floats, boundaries: list[int]) -> float | None:
    """Mean jump of the flow magnitude at the true boundaries over its mean elsewhere.

    The jump of a pair is how far its magnitude lies from the mean of the two beside it. Those beside a boundary count
    neither here nor there, because the boundary is in their own jump.

    Args:
        magnitudes: Of each pair of neighbouring frames, in pixels.
        boundaries: Indices of the pairs that reach over a boundary.

    Returns:
        About 1 where boundaries cannot be told from other places; None where there is no boundary, or nothing else.
    """
    jumps = np.abs(magnitudes[1:-1] - (magnitudes[:-2] + magnitudes[2:]) / 2)  # of pairs 1 to the last but one
    at_boundary = np.zeros(len(magnitudes), dtype=bool)
    at_boundary[boundaries] = True
    is_beside = np.zeros_like(at_boundary)
    is_beside[1:] |= at_boundary[:-1]
    is_beside[:-1] |= at_boundary[1:]
    here, elsewhere = jumps[at_boundary[1:-1]], jumps[~(at_boundary | is_beside)[1:-1]]
    if not len(here) or not len(elsewhere):
        return None
    return float((here.mean() + JUMP_FLOOR_PIXELS) / (elsewhere.mean() + JUMP_FLOOR_PIXELS))


def flow_by_place(video: Measured) -> Floats:
    """Mean flow magnitude into each pixel frame of a chunk, over all chunks but the first, relative to their mean.

    Returns:
        [frames of a chunk]; the first value is that over the boundary. All NaN with a single chunk, or without motion.
    """
    starts = (*video.chunk_starts, video.num_frames)
    if len(starts) < 3:  # the first chunk is the only one
        return np.full(video.num_frames, np.nan)
    magnitudes = video.series[FLOW.name]
    chunks = np.stack([magnitudes[start - 1 : stop - 1] for start, stop in pairwise(starts[1:])])
    mean = chunks.mean()
    by_place = chunks.mean(axis=0)
    return np.asarray(by_place / mean if mean else np.full_like(by_place, np.nan), dtype=np.float64)


DISCONTINUITY = Metric(
    name="discontinuity",
    title="Discontinuity",
    group="Chunk boundaries",
    better=Better.LOWER,
    about="The field's chunk discontinuity: mean of the k largest flow magnitudes over the mean of all, where k is the "
    "number of chunk boundaries. At least 1. It does not look where the largest ones are, so uneven motion raises it.",
    series=(FLOW,),
    compute=lambda video, reference: chunk_discontinuity(video.series[FLOW.name], len(video.chunk_starts) - 1),
    digits=3,
)

BOUNDARY_JUMP = Metric(
    name="boundary-jump",
    title="Boundary jump",
    group="Chunk boundaries",
    better=Better.LOWER,
    about="How far the flow magnitude jumps at the true chunk boundaries, over how far it jumps elsewhere (the places "
    "beside a boundary left out). 1 where boundaries cannot be told from other places; more where they show.",
    series=(FLOW,),
    compute=lambda video, reference: boundary_jump(video.series[FLOW.name], boundary_pairs(video.chunk_starts)),
    curve=Curve(
        title="flow into each frame of a chunk, over their mean",
        of=lambda video, reference: flow_by_place(video),
        over="place",
    ),
)
