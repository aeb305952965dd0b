"""What a cache policy is: a plan of how much each head keeps, and a rule for what a commit keeps.

A policy is a frozen, keyword-only dataclass of settings. It holds no tensors and no state, so one object serves any
number of streams; `StreamCache` asks it for a plan, allocates what the plan says, and moves the data.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields
from typing import ClassVar

from torch import Tensor

from forcing_kv.errors import ConfigurationError
from forcing_kv.geometry import FrameGeometry
from forcing_kv.heads import HeadMap


@dataclass(frozen=True, kw_only=True)
class HeadGroup:
    """Heads of one layer that keep the same.

    Attributes:
        heads: Head numbers, as in the released checkpoint.
        sink_frames: First frames of the stream, kept for ever.
        recent_frames: Newest history frames kept whole; None keeps them all.
        selected_segments: Segments of older frames, chosen by the policy's rule at each commit.
    """

    heads: tuple[int, ...]
    sink_frames: int = 0
    recent_frames: int | None = None
    selected_segments: int = 0


@dataclass(frozen=True, kw_only=True)
class CachePlan:
    """How much every head keeps.

    Attributes:
        layers: The head groups of each layer; together they hold every head once.
        segments_per_frame: Into how many runs a frame is cut for selection.
        leader_layer: The layer whose selecting group chooses for all layers; None where nothing is ever selected.
    """

    layers: tuple[tuple[HeadGroup, ...], ...]
    segments_per_frame: int = 1
    leader_layer: int | None = None

    def head_order(self) -> tuple[tuple[int, ...], ...]:
        """An order of heads, per layer, in which the heads of a group lie side by side."""
        return tuple(tuple(head for group in groups for head in group.heads) for groups in self.layers)


@dataclass(frozen=True, kw_only=True)
class Selection:
    """The segments a commit keeps.

    Attributes:
        segments: [batch, kept], int64, rising: frame x segments_per_frame + segment, over the candidate frames in
            temporal order.
        scores: [batch, candidate_frames, segments_per_frame], float32; low scores changed most.
    """

    segments: Tensor
    scores: Tensor


@dataclass(frozen=True, kw_only=True)
class HeadAttention:
    """Where each head looks: the mass of its softmax weights by part, averaged over queries and batch.

    Attributes:
        first: On the first frame, [layer][head].
        middle: On the history after it.
        last: On the current chunk.
    """

    first: tuple[tuple[float, ...], ...]
    middle: tuple[tuple[float, ...], ...]
    last: tuple[tuple[float, ...], ...]


class CachePolicy(ABC):
    """Base of all policies. A new one is a subclass in a file of its own and one line in the registry."""

    name: ClassVar[str]
    """The name on the command line and in reports."""
    needs_head_map: ClassVar[bool] = False
    """Whether the policy can only be built with a `head_map`."""

    @abstractmethod
    def plan(self, geometry: FrameGeometry, *, grouped: bool) -> CachePlan:
        """What is kept before (`grouped` False) and after the heads are told apart.

        Raises:
            ConfigurationError: The settings cannot work at this geometry.
            HeadMapError: The head map does not fit the model.
        """

    def check(self, geometry: FrameGeometry) -> None:
        """Raises what `plan` would raise, so that a bad setting is told before any work."""
        self.plan(geometry, grouped=False)
        self.plan(geometry, grouped=True)

    def is_grouped(self, num_chunks: int) -> bool:
        """Whether grouping is on after `num_chunks` commits."""
        return True

    def looking_tokens(self, geometry: FrameGeometry) -> tuple[int, ...]:
        """Tokens of a chunk whose attention decides the groups (`plan_from`); none where it does not."""
        return ()

    def plan_from(self, geometry: FrameGeometry, attention: HeadAttention) -> CachePlan:
        """What is kept once the heads are told apart by where they look.

        `plan` with `grouped` gives, for such a policy, the largest plan that may come of it.

        Args:
            geometry: As in `plan`.
            attention: Of the commit pass before, from the queries of `looking_tokens`.
        """
        raise ConfigurationError(f"policy {self.name!r} does not look where heads look")

    def select(self, keys: Tensor, num_segments: int, *, commit: int) -> Selection:
        """Chooses the segments to keep, at a commit.

        Args:
            keys: Of the leader layer's selecting heads, [batch, candidate_frames + 1, frame_tokens, heads, head_dim],
                in temporal order; the successor of each candidate is the frame after it.
            num_segments: How many to keep; fewer if there are fewer candidates.
            commit: Number of the chunk that is committed.
        """
        raise ConfigurationError(f"policy {self.name!r} selects nothing")

    def spec(self) -> str:
        """The policy as it is written on a command line, settings that differ from their defaults included."""
        changed = [
            f"{field.name}={spell(getattr(self, field.name))}"
            for field in fields(self)  # type: ignore[arg-type]  # every subclass is a dataclass
            if field.name != "head_map" and getattr(self, field.name) != field.default
        ]
        return self.name + (":" + ",".join(changed) if changed else "")


def head_map_of(policy: CachePolicy) -> HeadMap | None:
    """The head map a policy was built with, if it has one."""
    return getattr(policy, "head_map", None)


def all_heads(geometry: FrameGeometry) -> tuple[int, ...]:
    """The numbers of all heads of a layer."""
    return tuple(range(geometry.num_heads))


def check_at_least(policy: CachePolicy, minimum: int, *names: str) -> None:
    """Raises `ConfigurationError` for the first setting in `names` that is smaller than `minimum`."""
    for name in names:
        value = getattr(policy, name)
        if value is not None and value < minimum:
            raise ConfigurationError(f"policy {policy.name!r}: {name}={value} must be at least {minimum}")


def spell(value: object) -> str:
    """A setting as it is written on a command line."""
    if isinstance(value, frozenset | tuple):
        return "+".join(str(item) for item in sorted(value)) or "none"
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)
