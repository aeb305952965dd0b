"""Scores a clip of a memory scene: whether the object that comes back is the one that went.

What an object is comes from the video itself, for the prompt need not say: its colour, shape and size before it goes
behind the pillar or leaves the picture, or before two objects meet, are compared with those after. It should come back
about as long after it went as the world says; how fast it went there does not matter.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise

import torch
from torch import Tensor

from forcing_kv.errors import UnknownNameError
from forcing_kv.tiny.scoring.blobs import MIN_AREA, Blobs, find_blobs
from forcing_kv.tiny.scoring.free_scenes import MAX_REST, is_compact, nearest, runs
from forcing_kv.tiny.scoring.outlines import Fit, Outlines
from forcing_kv.tiny.world import (
    COLOURS,
    FRAMES_PER_SECOND,
    MEMORY_MOTIONS,
    PILLAR,
    WIDTH,
    Clip,
    Scene,
    Thing,
    coverage,
    pillar_share,
)

MEMORY_SECONDS = 12.0
"""Long enough for the first return of every memory scene, at the slowest speed and late, to be seen whole."""

Names = tuple[str, str, str]

_MAX_LATE_FRAMES = 24  # 1.5 s; or early
_MIN_RUN_FRAMES = 4  # what is seen, or not seen, for a shorter time is a flicker
_MIN_WHOLE_FRAMES = 3
_WHOLE = 0.92  # of the largest area of a visit, for the outline to be read
_MAX_SIZE_RATIO = 1.2  # the two sizes are 1.43 apart
_GAP = 2.0  # pixels to the pillar, or half the gap between two objects, for the outline to be read


@dataclass(frozen=True, kw_only=True)
class MemoryScore:
    """What is the same after as before, every time the object, or each of two, has come back within the clip.

    Attributes:
        kept: everything: it was seen, came back, and its colour, shape and size were kept.
        seen: an object, or two, of a clear shape was seen before.
        came_back: it was hidden, out, or met the other one, and was seen again where and about when it should be.
        colour, shape, size: kept; false if it did not come back.
        swapped: at some return each of two objects had the colour of the other.
        num_returns: how often it came back.
        before: what was seen before, as (colour, shape, size), from left to right.
        after: the same after each return.
    """

    kept: bool = False
    seen: bool = False
    came_back: bool = False
    colour: bool = False
    shape: bool = False
    size: bool = False
    swapped: bool = False
    num_returns: int = 0
    before: tuple[Names, ...] = ()
    after: tuple[tuple[Names, ...], ...] = ()

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class _Look:
    """What an object looks like over some frames."""

    colour: str
    fit: Fit

    @property
    def names(self) -> Names:
        return (self.colour, self.fit.shape if self.fit.is_clear else "unclear", self.fit.size)


@dataclass(frozen=True, kw_only=True)
class _Visit:
    """A time in which an object, or two apart, can be seen.

    Attributes:
        span: of the frames.
        x: where it is at first and at last, in pixels.
        looks: of each object, from left to right; empty if it was never seen whole.
    """

    span: slice
    x: tuple[float, float]
    looks: tuple[_Look, ...]


def score_memory(frames: Tensor, motion: str) -> MemoryScore:
    """Score one clip of a memory scene.

    Args:
        frames: uint8 [frames, HEIGHT, WIDTH, 3], from the start of a stream; `MEMORY_SECONDS` of them or more.
        motion: one of `MEMORY_MOTIONS`.

    Raises:
        UnknownNameError: for another motion.
        ConfigurationError: if the clip is shorter than a second or of another type.
    """
    if motion not in MEMORY_MOTIONS:
        raise UnknownNameError("memory motion", motion, MEMORY_MOTIONS)
    blobs = find_blobs(frames)
    visits = _visits_of_two(frames, blobs) if motion == "crossing" else _visits_of_one(frames, blobs, motion)
    if not visits or visits[0].span.start > _MAX_LATE_FRAMES or not _are_clear(visits[0].looks):
        return MemoryScore()
    first = visits[0]
    returns, came_back = _returns(visits, motion, len(frames))
    expected = [_after_returns(first.looks, index + 1) for index in range(len(returns))]
    pairs = [
        (old, new)
        for looks, visit in zip(expected, returns, strict=True)
        for old, new in zip(looks, visit.looks, strict=True)
    ]
    colour = came_back and all(old.colour == new.colour for old, new in pairs)
    shape = came_back and all(old.names[1] == new.names[1] for old, new in pairs)
    size = came_back and all(_same_size(old.fit, new.fit) for old, new in pairs)
    return MemoryScore(
        kept=colour and shape and size,
        seen=True,
        came_back=came_back,
        colour=colour,
        shape=shape,
        size=size,
        swapped=any(_are_swapped(looks, visit.looks) for looks, visit in zip(expected, returns, strict=True)),
        num_returns=len(returns),
        before=tuple(look.names for look in first.looks),
        after=tuple(tuple(look.names for look in visit.looks) for visit in returns),
    )


def _returns(visits: Sequence[_Visit], motion: str, num_frames: int) -> tuple[list[_Visit], bool]:
    """The visits after the first that are where and when they should be, and whether none is missing."""
    hidden_frames = _hidden_frames(motion, visits[0].looks)
    returns: list[_Visit] = []
    for previous, visit in pairwise(visits):
        was_left, is_left = previous.x[1] < WIDTH / 2, visit.x[0] < WIDTH / 2
        goes_through = motion == "passing behind a pillar"
        is_there = motion == "crossing" or (was_left != is_left) == goes_through
        in_time = abs(visit.span.start - previous.span.stop - hidden_frames) <= _MAX_LATE_FRAMES
        if not is_there or not in_time:
            return returns, False
        if not visit.looks:  # not whole yet where the clip ends, or never
            return returns, bool(returns) and visit.span.stop == num_frames
        returns.append(visit)
    is_waited_for = num_frames - visits[-1].span.stop <= hidden_frames + _MAX_LATE_FRAMES
    return returns, bool(returns) and is_waited_for


def _hidden_frames(motion: str, looks: Sequence[_Look]) -> int:
    """For how many frames the world hides such an object, or keeps two such from being apart."""
    things = tuple(Thing(colour=look.colour, shape=look.fit.shape, size=look.fit.size) for look in looks)
    shares = coverage(Clip(scene=Scene(things=things, motion=motion)), round(MEMORY_SECONDS * FRAMES_PER_SECOND))
    if motion == "crossing":
        hidden = (shares > 0).any(dim=2).all(dim=0).any(dim=-1)
    else:
        behind = pillar_share() if motion == "passing behind a pillar" else torch.zeros(1, WIDTH)
        hidden = (shares[0] * (1 - behind)).sum(dim=(1, 2)) < MIN_AREA
    first = runs(hidden)[0]
    return int(first.stop - first.start)


def _visits_of_one(frames: Tensor, blobs: Blobs, motion: str) -> list[_Visit]:
    """When one object can be seen, and what it looks like while neither the pillar nor the edge covers any of it."""
    box = blobs.box[:, 0]
    is_one = is_compact(blobs, 0) & (blobs.total_area - blobs.area[:, 0] <= MAX_REST * blobs.area[:, 0])
    if motion == "passing behind a pillar":
        is_whole = is_one & ((box[:, 2] <= PILLAR[0] - _GAP) | (box[:, 0] >= PILLAR[1] + _GAP))
    else:
        is_whole = is_one & ~blobs.is_cut[:, 0]
    which = torch.zeros(len(frames), dtype=torch.long)
    outlines = Outlines(frames, blobs)
    visits = []
    for span in _steady_runs(blobs.total_area >= MIN_AREA):
        chosen = _within(span, is_whole)
        chosen &= blobs.area[:, 0] >= _WHOLE * (blobs.area[:, 0] * chosen).amax()
        visits.append(_visit(span, chosen, blobs, [(outlines, which)]))
    return visits


def _visits_of_two(frames: Tensor, blobs: Blobs) -> list[_Visit]:
    """When two objects are apart, and what they look like then."""
    second_is_left = blobs.centre[:, 1, 0] < blobs.centre[:, 0, 0]
    left, right = second_is_left.long(), (~second_is_left).long()
    every = torch.arange(len(frames))
    are_apart = blobs.box[every, right, 0] - blobs.box[every, left, 2] > 2 * _GAP
    rest = blobs.total_area - blobs.area.sum(dim=1)
    are_two = is_compact(blobs, 0) & is_compact(blobs, 1) & (rest <= MAX_REST * blobs.area[:, 0]) & are_apart
    objects = [(Outlines(frames, blobs, which), which) for which in (left, right)]
    return [_visit(span, _within(span, are_two), blobs, objects) for span in _steady_runs(are_two)]


def _visit(span: slice, is_whole: Tensor, blobs: Blobs, objects: Sequence[tuple[Outlines, Tensor]]) -> _Visit:
    """A visit, and what each object looks like in the frames [frames] that show it whole."""
    looks = []
    for outlines, which in objects:
        fit = outlines.fit(is_whole) if int(is_whole.sum()) >= _MIN_WHOLE_FRAMES else None
        if fit is not None:
            colours = blobs.colour[torch.arange(len(which)), which][is_whole]
            looks.append(_Look(colour=list(COLOURS)[int(nearest(colours, COLOURS).mode().values)], fit=fit))
    return _Visit(
        span=span,
        x=(float(blobs.centre[span.start, 0, 0]), float(blobs.centre[span.stop - 1, 0, 0])),
        looks=tuple(looks),
    )


def _steady_runs(flags: Tensor) -> list[slice]:
    """Where flags [frames] are set, gaps and runs too short to mean anything passed over."""
    joined: list[slice] = []
    for run in runs(flags):
        if joined and run.start - joined[-1].stop < _MIN_RUN_FRAMES:
            joined[-1] = slice(joined[-1].start, run.stop)
        else:
            joined.append(run)
    return [run for run in joined if run.stop - run.start >= _MIN_RUN_FRAMES]


def _within(span: slice, flags: Tensor) -> Tensor:
    """Flags [frames] of a span, all others unset."""
    inside = torch.zeros_like(flags)
    inside[span] = flags[span]
    return inside


def _after_returns(looks: Sequence[_Look], num_returns: int) -> tuple[_Look, ...]:
    """What should be seen after so many returns, from left to right: two objects change sides each time."""
    return tuple(reversed(looks)) if num_returns % 2 else tuple(looks)


def _are_clear(looks: Sequence[_Look]) -> bool:
    return bool(looks) and all(look.fit.is_clear for look in looks)


def _are_swapped(expected: Sequence[_Look], seen: Sequence[_Look]) -> bool:
    colours = [look.colour for look in expected]
    return len(set(colours)) == 2 and [look.colour for look in seen] == colours[::-1]


def _same_size(old: Fit, new: Fit) -> bool:
    return max(old.radius / new.radius, new.radius / old.radius) <= _MAX_SIZE_RATIO
