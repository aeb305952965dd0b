"""Shares of videos that are right, and what can be said of them: intervals, paired differences, chances."""

import math
from collections.abc import Mapping, Sequence
from typing import TypedDict

Rights = Mapping[str, bool | None]
"""What is right in one video, by attribute; None where an attribute does not apply."""


class Share(TypedDict):
    """A share of videos, its 95 % interval (Wilson's), and of how many videos."""

    share: float
    interval_95: list[float]
    num_videos: int


class Difference(TypedDict):
    """A difference of two shares of the same videos.

    `interval_95` is Agresti and Min's (2005, "Wald+2"), which is sound where few or no videos change. `p_value` is that
    of McNemar's exact test, two-sided: how probable it is that the videos that changed are split at least so unevenly
    if both shares are the same.
    """

    difference: float
    interval_95: list[float]
    p_value: float
    num_videos: int


def shares_of(videos: Sequence[Rights]) -> dict[str, Share]:
    """The share of each attribute, over the videos to which it applies; attributes that apply to none are left out."""
    names = dict.fromkeys(name for video in videos for name, right in video.items() if right is not None)
    return {name: share_of([right for video in videos if (right := video.get(name)) is not None]) for name in names}


def share_of(rights: Sequence[bool]) -> Share:
    """The share of videos that are right; there is at least one."""
    count, total = sum(rights), len(rights)
    return {
        "share": round(count / total, 4),
        "interval_95": [round(bound, 4) for bound in wilson(count, total)],
        "num_videos": total,
    }


def differences_of(minuend: Sequence[Rights], subtrahend: Sequence[Rights]) -> dict[str, Difference]:
    """How much higher each share of some videos is than that of others, paired in order, as long as both apply."""
    names = dict.fromkeys(name for video in minuend for name in video)
    differences = {}
    for name in names:
        pairs = [(first.get(name), second.get(name)) for first, second in zip(minuend, subtrahend, strict=True)]
        known = [(first, second) for first, second in pairs if first is not None and second is not None]
        if known:
            differences[name] = difference_of(known)
    return differences


def difference_of(pairs: Sequence[tuple[bool, bool]]) -> Difference:
    """The share of first ones that are right, less that of second ones."""
    num_gained = sum(first and not second for first, second in pairs)
    num_lost = sum(second and not first for first, second in pairs)
    return {
        "difference": round((num_gained - num_lost) / len(pairs), 4),
        "interval_95": [round(bound, 4) for bound in _paired_interval(num_gained, num_lost, len(pairs))],
        "p_value": mcnemar(num_gained, num_lost),
        "num_videos": len(pairs),
    }


def mcnemar(num_gained: int, num_lost: int) -> float:
    """Two-sided p value of the exact test, from the numbers of pairs of which only one is right."""
    total = num_gained + num_lost
    tail = sum(math.comb(total, index) for index in range(min(num_gained, num_lost) + 1)) * 0.5**total
    return min(1.0, 2 * tail)


def wilson(count: int, total: int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson's score interval of a share."""
    share = count / total
    middle = share + z * z / (2 * total)
    half = z * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    scale = 1 + z * z / total
    return max(0.0, (middle - half) / scale), min(1.0, (middle + half) / scale)


def _paired_interval(num_gained: int, num_lost: int, total: int, z: float = 1.959964) -> tuple[float, float]:
    """Wald's interval of a paired difference, after half a pair more of each of the four kinds."""
    changed, change = num_gained + num_lost + 1, num_gained - num_lost
    middle = change / (total + 2)
    half = z * math.sqrt(changed - change * change / (total + 2)) / (total + 2)
    return max(-1.0, middle - half), min(1.0, middle + half)


def chance_of_at_most(count: int, total: int, share: float) -> float:
    """How probable it is that so few of some videos, or fewer, are right, when each is with the same chance."""
    terms = (math.comb(total, k) * share**k * (1.0 - share) ** (total - k) for k in range(count + 1))
    return float(sum(terms))
