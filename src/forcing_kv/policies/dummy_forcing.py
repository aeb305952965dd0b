"""Dummy Forcing (arXiv 2601.20499): heads told apart online, once, by where they look. A competing method, to compare.

Half of the heads look at little but the current chunk: dummy heads keep one frame of history. Of the others some look
at the first frame and keep that, and some at the frames between and keep the newest of those.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from forcing_kv.errors import ConfigurationError
from forcing_kv.geometry import FrameGeometry
from forcing_kv.policies.base import CachePlan, CachePolicy, HeadAttention, HeadGroup, all_heads, check_at_least

LOCAL_FRAMES = 3
"""History frames that middle heads keep, times `local_context`, and every head keeps until they are told apart."""

_FIRST, _MIDDLE, _DUMMY = "f", "m", "d"


@dataclass(frozen=True, kw_only=True)
class DummyForcing(CachePolicy):
    """The method as published, from one look at the attention of one commit pass.

    Attributes:
        num_dummy: Dummy heads, over all layers; None is half of all heads.
        ar_start: The chunk whose commit pass is looked at; published are 1 and, for LongLive, 2.
        local_context: How often three frames middle heads keep.
        seed: Of the draw of the queries that are looked at, a third of a frame's tokens.
    """

    num_dummy: int | None = None
    ar_start: int = 1
    local_context: int = 1
    seed: int = 0

    name: ClassVar[str] = "dummy-forcing"

    def __post_init__(self) -> None:
        check_at_least(self, 0, "num_dummy")
        check_at_least(self, 1, "ar_start", "local_context")

    def is_grouped(self, num_chunks: int) -> bool:
        """After the commit of chunk `ar_start`."""
        return num_chunks > self.ar_start

    def looking_tokens(self, geometry: FrameGeometry) -> tuple[int, ...]:
        """A third of a frame's tokens, drawn from the whole chunk."""
        num_drawn = max(1, geometry.frame_tokens // 3)
        return tuple(sorted(random.Random(self.seed).sample(range(geometry.chunk_tokens), num_drawn)))

    def plan(self, geometry: FrameGeometry, *, grouped: bool) -> CachePlan:
        """One group; told apart, as if none of the heads that are no dummies looked at the first frame."""
        num_heads, num_dummy = geometry.num_heads, self._num_dummy(geometry)
        if not grouped:
            group = HeadGroup(heads=all_heads(geometry), sink_frames=1, recent_frames=LOCAL_FRAMES)
            return CachePlan(layers=((group,),) * geometry.num_layers)
        letters = _DUMMY * num_dummy + _MIDDLE * (geometry.num_layers * num_heads - num_dummy)
        return self._plan_of([letters[layer * num_heads :][:num_heads] for layer in range(geometry.num_layers)])

    def plan_from(self, geometry: FrameGeometry, attention: HeadAttention) -> CachePlan:
        """The heads that look least at first and middle frames are dummies; the others keep what they look at more."""
        first, middle = _shares(attention.first), _shares(attention.middle)
        by_cost = sorted(range(len(first)), key=lambda head: max(first[head], middle[head]))
        dummies = set(by_cost[: self._num_dummy(geometry)])
        letters = [
            _DUMMY if head in dummies else _MIDDLE if middle[head] > first[head] else _FIRST
            for head in range(len(first))
        ]
        num_heads = geometry.num_heads
        return self._plan_of(
            ["".join(letters[layer * num_heads :][:num_heads]) for layer in range(geometry.num_layers)]
        )

    def _plan_of(self, letters: Sequence[str]) -> CachePlan:
        def groups(layer: str) -> tuple[HeadGroup, ...]:
            def heads(letter: str) -> tuple[int, ...]:
                return tuple(head for head, own in enumerate(layer) if own == letter)

            first = HeadGroup(heads=heads(_FIRST), sink_frames=1, recent_frames=0)
            middle = HeadGroup(heads=heads(_MIDDLE), recent_frames=LOCAL_FRAMES * self.local_context)
            dummy = HeadGroup(heads=heads(_DUMMY), recent_frames=1)
            return tuple(group for group in (first, middle, dummy) if group.heads)

        return CachePlan(layers=tuple(groups(layer) for layer in letters))

    def _num_dummy(self, geometry: FrameGeometry) -> int:
        num_heads = geometry.num_layers * geometry.num_heads
        if self.num_dummy is None:
            return num_heads // 2
        if self.num_dummy > num_heads:
            raise ConfigurationError(
                f"policy 'dummy-forcing': num_dummy={self.num_dummy} exceeds the {num_heads} heads of the model "
                f"({geometry.num_layers} layers x {geometry.num_heads})"
            )
        return self.num_dummy


def _shares(masses: Sequence[Sequence[float]]) -> list[float]:
    """Of all heads, layer by layer, made to add up to 1."""
    flat = [mass for layer in masses for mass in layer]
    total = sum(flat)
    return [mass / total for mass in flat] if total else flat
