"""When a stream is in its steady state, and how much its chunks read then, from the policy's plan alone.

A cache with bounds is steady once every part of it is full: from then on all chunks read the same. One without bounds
never is; the chunk that reads 21 latent frames stands for it, the length the released models were trained at.
"""

from dataclasses import dataclass
from itertools import count

from forcing_kv.cache import is_unbounded
from forcing_kv.cache.size import TRAINED_FRAMES, history_capacity
from forcing_kv.geometry import FrameGeometry
from forcing_kv.policies import CachePlan, CachePolicy, HeadGroup


@dataclass(frozen=True, kw_only=True)
class SteadyState:
    """The chunks of a stream that count as steady.

    Attributes:
        first_chunk: The first of them, from 0.
        last_chunk: The last; None where all that follow are steady too.
        history_tokens: Tokens of history that a pass reads then, summed over all heads of all layers.
    """

    first_chunk: int
    last_chunk: int | None
    history_tokens: int

    @classmethod
    def of(cls, policy: CachePolicy, geometry: FrameGeometry) -> "SteadyState":
        """Works it out.

        Raises:
            ConfigurationError: The policy cannot work at this geometry.
            HeadMapError: The policy's head map does not fit.
        """
        plan = policy.plan(geometry, grouped=True)
        unbounded = is_unbounded(policy, geometry)
        first_chunk = -(-TRAINED_FRAMES // geometry.chunk_frames) - 1 if unbounded else _filled_after(policy, geometry)
        tokens = sum(
            len(group.heads) * _group_tokens(group, plan, geometry, first_chunk)
            for groups in plan.layers
            for group in groups
        )
        return cls(
            first_chunk=first_chunk,
            last_chunk=first_chunk if unbounded else None,
            history_tokens=tokens,
        )

    def __contains__(self, chunk: int) -> bool:
        return self.first_chunk <= chunk and (self.last_chunk is None or chunk <= self.last_chunk)


def frames_read(history_tokens: int, geometry: FrameGeometry) -> float:
    """Latent frames' worth of keys that a head reads on average, the current chunk included.

    Args:
        history_tokens: Of history, summed over all heads of all layers.
        geometry: Of the stream.
    """
    mean_tokens = history_tokens / (geometry.num_layers * geometry.num_heads)
    return mean_tokens / geometry.frame_tokens + geometry.chunk_frames


def _filled_after(policy: CachePolicy, geometry: FrameGeometry) -> int:
    """Commits after which every part of every group is full."""
    plan = policy.plan(geometry, grouped=True)
    grouped_after = next(number for number in count() if policy.is_grouped(number))
    filled_after = grouped_after
    for group in (group for groups in plan.layers for group in groups):
        whole_frames = group.sink_frames + (group.recent_frames or 0)
        num_chunks = max(grouped_after, -(-whole_frames // geometry.chunk_frames))
        # The first commit at which a whole chunk of frames leaves is the first to fill the selected part.
        filled_after = max(filled_after, num_chunks + 1 if group.selected_segments else num_chunks)
    return filled_after


def _group_tokens(group: HeadGroup, plan: CachePlan, geometry: FrameGeometry, num_chunks: int) -> int:
    """History that a head of the group reads after so many commits, every part with a bound being full."""
    recent_frames = group.recent_frames
    if recent_frames is None:
        recent_frames = num_chunks * geometry.chunk_frames - group.sink_frames
    return history_capacity(group, geometry, plan.segments_per_frame, recent_frames)
