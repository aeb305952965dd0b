"""Forcing-KV (arXiv 2605.09681): a short fixed structure for static heads, that and what changed for dynamic heads.

Every head keeps the sink and the newest frames. Dynamic heads keep besides it the segments of older frames that differ
most from the frame after them: there is motion, and the rest can be seen in the newer frames as well.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from forcing_kv.errors import ConfigurationError, UnknownNameError
from forcing_kv.geometry import FrameGeometry
from forcing_kv.heads import DYNAMIC, STATIC, HeadMap
from forcing_kv.policies.base import (
    CachePlan,
    CachePolicy,
    HeadGroup,
    Selection,
    all_heads,
    check_at_least,
)
from forcing_kv.policies.segment_scores import SEGMENT_SCORES

ROLES = ("measured", "static", "dynamic", "shuffled")
"""Where the roles come from: the head map, one role for all, or the map's roles dealt out to other heads."""


@dataclass(frozen=True, kw_only=True)
class ForcingKV(CachePolicy):
    """The published method with all of its settings. Krea's static-only variant turns `similarity_pruning` off.

    Attributes:
        head_map: Roles of the model's heads.
        sink_frames: First frames of the stream, kept by every head.
        static_recent_frames: Newest history frames of static heads.
        dynamic_recent_frames: Newest history frames of dynamic heads.
        segments_per_frame: Into how many runs of tokens a frame is cut.
        selected_segments: Segments dynamic heads keep; None keeps a third of the candidates, one frame's worth.
        similarity_pruning: Whether dynamic heads keep segments at all.
        segments: Which segments: the `changed` ones or, to compare, `unchanged`, `random` or `uniform` ones.
        roles: Whose roles: the `measured` ones of the head map or, to compare, `static` or `dynamic` for all heads, or
            the map's `shuffled` over all heads that have one.
        seed: Of what is drawn at random.
        warmup_chunks: Chunks before the heads are told apart.
        dense_layers: Layers whose heads are never told apart.
    """

    head_map: HeadMap
    sink_frames: int = 1
    static_recent_frames: int = 1
    dynamic_recent_frames: int = 1
    segments_per_frame: int = 6
    selected_segments: int | None = None
    similarity_pruning: bool = True
    segments: str = "changed"
    roles: str = "measured"
    seed: int = 0
    warmup_chunks: int = 2
    dense_layers: frozenset[int] = frozenset({0})

    name: ClassVar[str] = "forcing-kv"
    needs_head_map: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_at_least(self, 0, "sink_frames", "static_recent_frames", "dynamic_recent_frames", "selected_segments")
        check_at_least(self, 1, "segments_per_frame", "warmup_chunks")
        if self.segments not in SEGMENT_SCORES:
            raise UnknownNameError("choice of segments", self.segments, SEGMENT_SCORES)
        if self.roles not in ROLES:
            raise UnknownNameError("choice of roles", self.roles, ROLES)
        for layer in sorted(self.dense_layers):
            if not 0 <= layer < self.head_map.num_layers:
                raise ConfigurationError(
                    f"policy 'forcing-kv': dense layer {layer} does not exist; the head map has layers 0 to "
                    f"{self.head_map.num_layers - 1}"
                )

    @property
    def warmup_recent_frames(self) -> int:
        """Newest history frames that every head keeps during warm-up, and heads of dense layers always."""
        return max(self.static_recent_frames, self.dynamic_recent_frames)

    @property
    def roles_in_force(self) -> HeadMap:
        """The head map that is followed."""
        if self.roles == "measured":
            return self.head_map
        layers = [layer for layer in range(self.head_map.num_layers) if layer not in self.dense_layers]
        if self.roles == "shuffled":
            return self.head_map.shuffled(layers, seed=self.seed)
        role = STATIC if self.roles == "static" else DYNAMIC
        return HeadMap.uniform(role, num_layers=self.head_map.num_layers, num_heads=self.head_map.num_heads)

    def is_grouped(self, num_chunks: int) -> bool:
        """After the commit of chunk `warmup_chunks` - 1."""
        return num_chunks >= self.warmup_chunks

    def plan(self, geometry: FrameGeometry, *, grouped: bool) -> CachePlan:
        """A static and a dynamic group per layer; one group in dense layers."""
        self.head_map.check_fits(num_layers=geometry.num_layers, num_heads=geometry.num_heads)
        self._check_warmup(geometry)
        selected = self._selected_segments(geometry)
        dense = HeadGroup(
            heads=all_heads(geometry), sink_frames=self.sink_frames, recent_frames=self.warmup_recent_frames
        )

        head_map = self.roles_in_force

        def groups(layer: int) -> tuple[HeadGroup, ...]:
            if layer in self.dense_layers:
                return (dense,)
            static = HeadGroup(
                heads=head_map.heads(layer, STATIC),
                sink_frames=self.sink_frames,
                recent_frames=self.static_recent_frames if grouped else self.warmup_recent_frames,
            )
            dynamic = HeadGroup(
                heads=head_map.heads(layer, DYNAMIC),
                sink_frames=self.sink_frames,
                recent_frames=self.dynamic_recent_frames if grouped else self.warmup_recent_frames,
                selected_segments=selected,
            )
            return tuple(group for group in (static, dynamic) if group.heads)

        layers = tuple(groups(layer) for layer in range(geometry.num_layers))
        selecting = [layer for layer, groups in enumerate(layers) if any(group.selected_segments for group in groups)]
        return CachePlan(
            layers=layers,
            segments_per_frame=self.segments_per_frame,
            leader_layer=selecting[0] if selecting else None,
        )

    def select(self, keys: Tensor, num_segments: int, *, commit: int) -> Selection:
        """The segments with the lowest scores, per batch item."""
        num_segments = min(num_segments, (keys.shape[1] - 1) * self.segments_per_frame)
        draw = self.seed * 1_000_003 + commit
        scores = SEGMENT_SCORES[self.segments](keys, self.segments_per_frame, num_segments, draw)
        rising = scores.flatten(1).sort(dim=1, stable=True).indices
        return Selection(segments=rising[:, :num_segments].sort(dim=1).values, scores=scores)

    def _check_warmup(self, geometry: FrameGeometry) -> None:
        warmup_frames = self.warmup_chunks * geometry.chunk_frames
        needed_frames = self.sink_frames + self.warmup_recent_frames
        if warmup_frames < needed_frames:
            raise ConfigurationError(
                f"warmup_chunks={self.warmup_chunks} gives {warmup_frames} frames, too few to fill sink and recent "
                f"({self.sink_frames} + {self.warmup_recent_frames}); use at least "
                f"{-(-needed_frames // geometry.chunk_frames)}"
            )

    def _selected_segments(self, geometry: FrameGeometry) -> int:
        if not self.similarity_pruning:
            return 0
        if not 1 <= self.dynamic_recent_frames <= geometry.chunk_frames:
            raise ConfigurationError(
                f"similarity pruning compares each frame with the next, so dynamic_recent_frames must be 1 to "
                f"{geometry.chunk_frames} (the chunk), not {self.dynamic_recent_frames}; change it, or set "
                f"similarity_pruning=false"
            )
        geometry.segment_tokens(self.segments_per_frame)
        candidates = geometry.chunk_frames * self.segments_per_frame
        selected = round(candidates / 3) if self.selected_segments is None else self.selected_segments
        if selected > candidates:
            raise ConfigurationError(
                f"selected_segments={selected} exceeds the {candidates} candidates of a commit "
                f"({geometry.chunk_frames} frames x {self.segments_per_frame} segments); lower it"
            )
        return selected
