"""From observations to a head map: where the threshold lies, and how the map came about."""

import math
from collections.abc import Sequence

from forcing_kv.calibration.observations import Observations
from forcing_kv.calibration.observer import least_read_frames
from forcing_kv.errors import ConfigurationError
from forcing_kv.heads import DEFAULT_THRESHOLD, HeadMap

METHOD = "mass on the newest key frames over that on all but the first; mean over queries, steps, chunks and prompts"

_DECIMALS = 6
"""Of the scores in the file; the roles are taken from what the file says."""


def measured_head_map(
    observations: Observations, *, threshold: float | None = None, target_static_fraction: float | None = None
) -> HeadMap:
    """Tells static heads from dynamic ones.

    Args:
        observations: What was seen.
        threshold: Score from which a head is static; None for 0.8.
        target_static_fraction: Share of heads that shall be static, in place of a threshold: it is set where it comes
            as near as equal scores allow, and to fewer where two are as near.

    Raises:
        ConfigurationError: Both are given, or one is out of range.
    """
    check_role_settings(threshold=threshold, target_static_fraction=target_static_fraction)
    scores = [[round(score, _DECIMALS) for score in row] for row in observations.head_scores().tolist()]
    if target_static_fraction is not None:
        threshold = threshold_for(scores, target_static_fraction)
    settings = dict(observations.settings)
    model = settings.pop("model", "unknown")
    sink_frames, recent_frames, chunk_frames = (
        settings.pop(name) for name in ("sink_frames", "recent_frames", "chunk_frames")
    )
    return HeadMap.from_scores(
        scores,
        model=model,
        threshold=DEFAULT_THRESHOLD if threshold is None else threshold,
        provenance={
            "method": METHOD,
            "target_static_fraction": target_static_fraction,
            "last_frames": recent_frames + chunk_frames,
            "skipped_sink_frames": sink_frames,
            "min_read_frames": least_read_frames(
                chunk_frames=chunk_frames, sink_frames=sink_frames, recent_frames=recent_frames
            ),
            "prompts": list(observations.prompts),
            "seeds": list(observations.seeds),
            "chunks": list(observations.chunks),
            "steps": list(observations.steps),
            "largest_standard_error": round(float(observations.head_standard_errors().max()), _DECIMALS),
            **settings,
        },
    )


def check_role_settings(*, threshold: float | None, target_static_fraction: float | None) -> None:
    """Raises `ConfigurationError` unless at most one is given, and lies in 0 .. 1."""
    if threshold is not None and target_static_fraction is not None:
        raise ConfigurationError("give either a threshold or a target_static_fraction, not both")
    for name, value in (("threshold", threshold), ("target_static_fraction", target_static_fraction)):
        if value is not None and not 0 <= value <= 1:
            raise ConfigurationError(f"{name}={value} must lie between 0 and 1")


def threshold_for(scores: Sequence[Sequence[float]], static_fraction: float) -> float:
    """The lowest score of the heads that are static when their share comes nearest to `static_fraction`."""
    falling = sorted((score for row in scores for score in row), reverse=True)
    # Heads of the same score have the same role: only where the scores fall can the line be drawn.
    counts = [num for num in range(1, len(falling)) if falling[num - 1] > falling[num]]
    num_static = min((0, *counts, len(falling)), key=lambda num: abs(num - static_fraction * len(falling)))
    return falling[num_static - 1] if num_static else math.nextafter(falling[0], math.inf)
