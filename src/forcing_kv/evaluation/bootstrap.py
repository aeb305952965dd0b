"""Means over prompts with 95 % intervals, by the percentile bootstrap.

Prompts are what is drawn at random, so whole prompts are resampled: the same resamples for every policy and metric, and
for a difference of two policies the differences prompt by prompt. Nothing is assumed about how values are distributed;
with very few prompts the intervals are too narrow, with one there is none.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from forcing_kv.errors import ConfigurationError

DEFAULT_RESAMPLES = 2000
LEVEL = 0.95
MIN_TOLD_APART = 6
"""Prompts from which on a difference may be called one: were there none, so many would all lie on one side once in 32
times; of fewer a bootstrap interval is too narrow to rely on."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A mean over prompts.

    Attributes:
        mean: Over those that have a value.
        interval_95: Of the mean; None with fewer than two values.
        num_prompts: That have a value.
    """

    mean: float
    interval_95: tuple[float, float] | None
    num_prompts: int

    @property
    def is_told_from_zero(self) -> bool:
        """Whether the interval lies on one side of 0, and rests on enough prompts to say so."""
        if self.interval_95 is None or self.num_prompts < MIN_TOLD_APART:
            return False
        return self.interval_95[0] > 0 or self.interval_95[1] < 0

    def to_json(self) -> dict[str, Any]:
        """Rounded to six significant digits."""
        interval = None if self.interval_95 is None else [shortened(bound) for bound in self.interval_95]
        return {"mean": shortened(self.mean), "interval_95": interval, "num_prompts": self.num_prompts}


@dataclass(frozen=True, kw_only=True)
class Bootstrap:
    """How intervals are made.

    Attributes:
        num_resamples: Sets of prompts that are drawn.
        seed: Of the drawing.

    Raises:
        ConfigurationError: Too few resamples for a 95 % interval.
    """

    num_resamples: int = DEFAULT_RESAMPLES
    seed: int = 0

    def __post_init__(self) -> None:
        if self.num_resamples < 100:
            raise ConfigurationError(f"num_resamples={self.num_resamples} is too few for an interval; use at least 100")

    def estimate(self, values: Sequence[float | None]) -> Estimate | None:
        """The mean of one value per prompt; None where no prompt has one."""
        known = np.array([value for value in values if value is not None], dtype=np.float64)
        if not len(known):
            return None
        # From the first value on, so that equal values have exactly themselves as mean and interval.
        from_first = known - known[0]
        mean = float(known[0] + from_first.mean())
        if len(known) < 2:
            return Estimate(mean=mean, interval_95=None, num_prompts=1)
        means = known[0] + _weights(len(known), self.num_resamples, self.seed) @ from_first
        low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        return Estimate(mean=mean, interval_95=(float(low), float(high)), num_prompts=len(known))

    def difference(self, values: Sequence[float | None], others: Sequence[float | None]) -> Estimate | None:
        """The mean of the differences, prompt by prompt, over prompts that have both values."""
        pairs = zip(values, others, strict=True)
        return self.estimate([None if a is None or b is None else a - b for a, b in pairs])

    def to_json(self) -> dict[str, Any]:
        """What a report says of it."""
        return {"method": "percentile", "over": "prompts", "resamples": self.num_resamples, "seed": self.seed}


def shortened(value: float) -> float:
    """A number with six significant digits."""
    return float(f"{value:.6g}")


@lru_cache(maxsize=8)
def _weights(num_values: int, num_resamples: int, seed: int) -> npt.NDArray[np.float64]:
    """How often each value is in each resample, over their number: [resamples, values]."""
    generator = np.random.default_rng(seed)
    counts = generator.multinomial(num_values, np.full(num_values, 1 / num_values), size=num_resamples)
    return counts / num_values
