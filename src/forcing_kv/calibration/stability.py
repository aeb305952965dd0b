"""How far head roles hold: a claim of the method's paper (arXiv 2605.09681) that every calibration puts to the test.

A head has one role if its score stays on one side of the threshold, whatever the prompt, the denoising step and the
place in the video. So the scores are averaged down to one of these axes at a time and looked at along it; the prompts
are cut into halves whose maps are compared; and it is said how many heads the threshold separates only just.
"""

import math
import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from forcing_kv.calibration.observations import Observations
from forcing_kv.heads import STATIC, HeadMap

NEAR_THRESHOLD = 0.05
MIDDLE_BAND = 0.1
"""Scores this far from the threshold on either side are the middle: heads of two clear kinds leave it empty."""

NUM_SPLITS = 20
MIN_SIDE_SHARE = 0.05
"""Least share of the heads on either side of the widest gap: a single outlier makes a wide gap that splits nothing."""

AXES = {"prompts": "prompts", "steps": "denoising steps", "chunks": "chunk positions"}
"""What roles should not depend on: the name in files, and in words."""


@dataclass(frozen=True, kw_only=True)
class AxisStability:
    """How scores and roles move along one axis, the other axes averaged first.

    Attributes:
        name: A key of `AXES`.
        means: [values, layers, heads] float64: score of every head at each value of the axis.
        deviations: [layers, heads] float64: standard deviation (n - 1) over the values; 0 where there is only one.
        flips: [layers, heads] bool: the role at some value is not the head's role.
    """

    name: str
    means: Tensor
    deviations: Tensor
    flips: Tensor

    @property
    def num_values(self) -> int:
        """Prompts, steps or chunks observed."""
        return self.means.shape[0]

    @property
    def has_one_value(self) -> bool:
        """Nothing to compare: neither deviations nor flips mean anything."""
        return self.num_values == 1

    @property
    def num_flips(self) -> int:
        """Heads whose role changes at some value."""
        return int(self.flips.sum())

    def to_json(self) -> dict[str, Any]:
        """The summary, without what is said per head."""
        if self.has_one_value:
            return {"num_values": 1}
        return {
            "num_values": self.num_values,
            "mean_deviation": float(self.deviations.mean()),
            "largest_deviation": float(self.deviations.max()),
            "num_flips": self.num_flips,
            "flip_share": self.num_flips / self.flips.numel(),
        }


@dataclass(frozen=True, kw_only=True)
class Range:
    """Mean and extremes of a number over several splits."""

    mean: float
    lowest: float
    highest: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Range":
        """Of at least one value."""
        return cls(mean=statistics.fmean(values), lowest=min(values), highest=max(values))

    def to_json(self) -> dict[str, float]:
        """As named."""
        return {"mean": self.mean, "lowest": self.lowest, "highest": self.highest}


@dataclass(frozen=True, kw_only=True)
class HalvesAgreement:
    """Maps from disjoint halves of the prompts, compared head by head over random splits.

    Attributes:
        num_splits: Different splits that were drawn.
        num_undefined: Those in which kappa is undefined, as both maps give all heads the same one role.
        equal_share: Share of the heads with the same role in both maps.
        kappa: Cohen's kappa of the roles, over the splits that have one; None where none has.
    """

    num_splits: int
    num_undefined: int
    equal_share: Range
    kappa: Range | None

    def to_json(self) -> dict[str, Any]:
        """As named; kappa is null where it is undefined."""
        return {
            "num_splits": self.num_splits,
            "num_undefined": self.num_undefined,
            "equal_share": self.equal_share.to_json(),
            "kappa": self.kappa.to_json() if self.kappa else None,
        }


@dataclass(frozen=True, kw_only=True)
class ScoreGap:
    """The widest stretch without scores: a threshold in it would split the heads most clearly."""

    low: float
    high: float
    num_below: int
    num_above: int

    @property
    def middle(self) -> float:
        """The threshold that is farthest from both sides."""
        return (self.low + self.high) / 2

    def to_json(self) -> dict[str, float]:
        """As named, with the threshold it suggests."""
        return {
            "low": self.low,
            "high": self.high,
            "num_below": self.num_below,
            "num_above": self.num_above,
            "suggested_threshold": self.middle,
        }


@dataclass(frozen=True, kw_only=True)
class Stability:
    """How far the roles of a model hold.

    Attributes:
        threshold: A head is static if its score is at least this.
        scores: [layers, heads] float64, over everything observed.
        is_static: [layers, heads] bool, as the head map has it.
        sampling_errors: [layers, heads] float64: standard error of the score from taking a sample of the queries.
        axes: Prompts, steps, chunks.
        halves: Maps from halves of the prompts; None for a single prompt.
        gap: None where all scores are equal, or there are too few to have a gap.
    """

    threshold: float
    scores: Tensor
    is_static: Tensor
    sampling_errors: Tensor
    axes: tuple[AxisStability, ...]
    halves: HalvesAgreement | None
    gap: ScoreGap | None

    @property
    def num_heads(self) -> int:
        """Heads, over all layers."""
        return self.scores.numel()

    @property
    def num_static(self) -> int:
        """Static heads, over all layers."""
        return int(self.is_static.sum())

    def num_within(self, distance: float) -> int:
        """Heads whose score is at most `distance` from the threshold."""
        return int(((self.scores - self.threshold).abs() <= distance).sum())

    def to_json(self) -> dict[str, Any]:
        """The summary, without what is said per head."""
        return {
            "num_heads": self.num_heads,
            "num_static": self.num_static,
            "static_share": self.num_static / self.num_heads,
            **{axis.name: axis.to_json() for axis in self.axes},
            "halves_of_prompts": self.halves.to_json() if self.halves else None,
            "near_threshold": {
                "within": NEAR_THRESHOLD,
                "num_heads": self.num_within(NEAR_THRESHOLD),
                "share": self.num_within(NEAR_THRESHOLD) / self.num_heads,
            },
            "middle_band": {
                "within": MIDDLE_BAND,
                "num_heads": self.num_within(MIDDLE_BAND),
                "share": self.num_within(MIDDLE_BAND) / self.num_heads,
            },
            "widest_gap": self.gap.to_json() if self.gap else None,
            "largest_sampling_error": float(self.sampling_errors.max()),
        }


def measure_stability(observations: Observations, head_map: HeadMap) -> Stability:
    """Put the roles of `head_map` to the test on what its calibration saw.

    Raises:
        HeadMapError: The map has other layers or heads than the observations.
    """
    scores = observations.scores.double()  # [prompts, chunks, steps, layers, heads]
    head_map.check_fits(num_layers=scores.shape[3], num_heads=scores.shape[4])
    is_static = torch.tensor([[letter == STATIC for letter in roles] for roles in head_map.roles])
    means = {"prompts": scores.mean(dim=(1, 2)), "steps": scores.mean(dim=(0, 1)), "chunks": scores.mean(dim=(0, 2))}
    # In an order of their own, so that the order in which the prompts were given changes nothing.
    prompts = sorted(range(scores.shape[0]), key=lambda i: (observations.prompts[i], observations.seeds[i]))
    return Stability(
        threshold=head_map.threshold,
        scores=scores.mean(dim=(0, 1, 2)),
        is_static=is_static,
        # Every pass draws its own queries: the errors of a mean are independent and add up in squares.
        sampling_errors=observations.standard_errors.double().square().sum(dim=(0, 1, 2)).sqrt()
        / math.prod(scores.shape[:3]),
        axes=tuple(axis_stability(name, means[name], is_static, threshold=head_map.threshold) for name in AXES),
        halves=halves_agreement(means["prompts"][prompts], threshold=head_map.threshold),
        gap=widest_gap(scores.mean(dim=(0, 1, 2)).flatten().tolist()),
    )


def axis_stability(name: str, means: Tensor, is_static: Tensor, *, threshold: float) -> AxisStability:
    """Deviations and flips along one axis.

    Args:
        name: A key of `AXES`.
        means: [values, layers, heads]: score of every head at each value of the axis.
        is_static: [layers, heads] bool: the roles they should have.
        threshold: Score from which a head is static.
    """
    if means.shape[0] == 1:
        return AxisStability(
            name=name, means=means, deviations=torch.zeros_like(means[0]), flips=torch.zeros_like(is_static)
        )
    flips = ((means >= threshold) != is_static).any(dim=0)
    return AxisStability(name=name, means=means, deviations=means.std(dim=0, correction=1), flips=flips)


def halves_agreement(
    means: Tensor, *, threshold: float, num_splits: int = NUM_SPLITS, seed: int = 0
) -> HalvesAgreement | None:
    """Cut the prompts into two halves at random, several times, and compare the maps that each half alone gives.

    Args:
        means: [prompts, layers, heads]: scores at each prompt; of an odd number of prompts one stays out.
        threshold: Score from which a head is static.
        num_splits: Splits to draw; few prompts have fewer different ones.
        seed: Of the splits.

    Returns:
        The agreement, or None for a single prompt.
    """
    num_prompts = means.shape[0]
    half = num_prompts // 2
    if half == 0:
        return None
    generator = random.Random(seed)
    splits = set()
    for _ in range(num_splits):
        order = generator.sample(range(num_prompts), 2 * half)
        splits.add(frozenset((frozenset(order[:half]), frozenset(order[half:]))))
    shares, kappas = [], []
    for split in splits:
        first, second = (means[sorted(prompts)].mean(dim=0) >= threshold for prompts in split)
        shares.append((first == second).double().mean().item())
        kappas.append(cohens_kappa(first, second))
    defined = [kappa for kappa in kappas if kappa is not None]
    return HalvesAgreement(
        num_splits=len(splits),
        num_undefined=len(kappas) - len(defined),
        equal_share=Range.of(shares),
        kappa=Range.of(defined) if defined else None,
    )


def cohens_kappa(first: Tensor, second: Tensor) -> float | None:
    """Agreement of two maps beyond what chance would give: 1 for equal maps, 0 for chance, negative for less.

    Args:
        first: Whether each head is static, bool, any shape.
        second: The same by the other map.

    Returns:
        Kappa, or None where both maps give all heads the same one role: then chance explains everything.
    """
    observed = (first == second).double().mean().item()
    first_share, second_share = first.double().mean().item(), second.double().mean().item()
    expected = first_share * second_share + (1 - first_share) * (1 - second_share)
    return None if expected == 1 else (observed - expected) / (1 - expected)


def widest_gap(scores: Sequence[float]) -> ScoreGap | None:
    """The widest stretch between neighbouring scores that leaves at least a twentieth of the heads on either side."""
    ordered = sorted(scores)
    margin = max(1, math.ceil(MIN_SIDE_SHARE * len(ordered)))
    places = range(margin, len(ordered) - margin + 1)
    place = max(places, key=lambda place: ordered[place] - ordered[place - 1], default=0)
    if place == 0 or ordered[place] == ordered[place - 1]:
        return None
    return ScoreGap(low=ordered[place - 1], high=ordered[place], num_below=place, num_above=len(ordered) - place)
