"""VBench's sixteen dimensions, and how their scores become a quality, a semantic and a total score.

Every dimension is stretched so that the range VBench has set for it becomes 0 to 1; quality and semantic score are
weighted means of their dimensions, and the total counts quality four times. Ranges and weights are those of
`scripts/constant.py` and `scripts/cal_final_score.py` in github.com/Vchitect/VBench, by which its leaderboard ranks.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from forcing_kv.errors import UnknownNameError

QUALITY_WEIGHT = 4.0
SEMANTIC_WEIGHT = 1.0


@dataclass(frozen=True, kw_only=True)
class Dimension:
    """What VBench calls a dimension: one thing that it measures, on prompts of its own.

    Attributes:
        group: The score it counts towards.
        lowest: Raw score that counts as 0.
        highest: Raw score that counts as 1.
        weight: Within its group.
    """

    group: Literal["quality", "semantic"]
    lowest: float = 0.0
    highest: float = 1.0
    weight: float = 1.0

    def normalised(self, score: float) -> float:
        """The raw score within its range; below 0 or above 1 where it lies outside."""
        return (score - self.lowest) / (self.highest - self.lowest)


DIMENSIONS = {
    "subject_consistency": Dimension(group="quality", lowest=0.1462),
    "background_consistency": Dimension(group="quality", lowest=0.2615),
    "temporal_flickering": Dimension(group="quality", lowest=0.6293),
    "motion_smoothness": Dimension(group="quality", lowest=0.706, highest=0.9975),
    "dynamic_degree": Dimension(group="quality", weight=0.5),
    "aesthetic_quality": Dimension(group="quality"),
    "imaging_quality": Dimension(group="quality"),
    "object_class": Dimension(group="semantic"),
    "multiple_objects": Dimension(group="semantic"),
    "human_action": Dimension(group="semantic"),
    "color": Dimension(group="semantic"),
    "spatial_relationship": Dimension(group="semantic"),
    "scene": Dimension(group="semantic", highest=0.8222),
    "appearance_style": Dimension(group="semantic", lowest=0.0009, highest=0.2855),
    "temporal_style": Dimension(group="semantic", highest=0.364),
    "overall_consistency": Dimension(group="semantic", highest=0.364),
}
"""By VBench's own names, in its order."""

FLICKERING = "temporal_flickering"
"""The one dimension that is measured on videos without motion, which VBench picks out of more samples."""


@dataclass(frozen=True, kw_only=True)
class Totals:
    """The three scores of a leaderboard, 0 to 1; None where a dimension they need is missing."""

    quality: float | None
    semantic: float | None
    total: float | None


def totals(scores: Mapping[str, float]) -> Totals:
    """The three scores, of raw scores by dimension.

    VBench's own script counts a missing dimension as 0; here the score that needs it is left out.

    Raises:
        UnknownNameError: A name that is no dimension.
    """
    check_dimensions(list(scores))
    quality, semantic = (_group_score(scores, group) for group in ("quality", "semantic"))
    total = None
    if quality is not None and semantic is not None:
        weights = QUALITY_WEIGHT + SEMANTIC_WEIGHT
        total = (QUALITY_WEIGHT * quality + SEMANTIC_WEIGHT * semantic) / weights
    return Totals(quality=quality, semantic=semantic, total=total)


def parse_dimensions(names: str) -> tuple[str, ...]:
    """The dimensions of a comma-separated list, in VBench's order.

    Raises:
        UnknownNameError: A name that is no dimension.
    """
    chosen = [name.strip() for name in names.split(",")]
    check_dimensions(chosen)
    return tuple(name for name in DIMENSIONS if name in chosen)


def check_dimensions(names: Sequence[str]) -> None:
    """Raises `UnknownNameError` for a name that is no dimension."""
    for name in names:
        if name not in DIMENSIONS:
            raise UnknownNameError("dimension of VBench", name, DIMENSIONS)


def _group_score(scores: Mapping[str, float], group: str) -> float | None:
    """Weighted mean of the normalised scores of a group."""
    members = {name: dimension for name, dimension in DIMENSIONS.items() if dimension.group == group}
    if not members.keys() <= scores.keys():
        return None
    weighted = sum(dimension.weight * dimension.normalised(scores[name]) for name, dimension in members.items())
    return weighted / sum(dimension.weight for dimension in members.values())
