"""What a cache allocates, from its plan alone: the arithmetic by which the buffers size themselves.

Nothing here holds a tensor, so the bytes of a cache are known before there is one.
"""

import torch

from forcing_kv.cache.store import head_token_bytes
from forcing_kv.geometry import FrameGeometry
from forcing_kv.policies import CachePlan, CachePolicy, HeadGroup

GROWTH_CHUNKS = 4
"""Chunks by which an unbounded recent part grows."""

TRAINED_FRAMES = 21
"""Latent frames of the videos the released models were trained on; where an unbounded cache needs a length."""


def cache_bytes(
    policy: CachePolicy,
    geometry: FrameGeometry,
    *,
    num_chunks: int | None = None,
    batch_size: int = 1,
    dtype: torch.dtype = torch.float32,
    kv_dtype: str | None = None,
) -> int:
    """The most a `StreamCache` holds in the course of a stream.

    Args:
        policy: What each head keeps.
        geometry: Shape of the model and of a frame.
        num_chunks: Length of the stream. None is endless: a cache without bound is then taken at 21 frames.
        batch_size: Streams in step.
        dtype: Of the model's keys and values.
        kv_dtype: How they are stored, as in `StreamCache`.
    """
    if num_chunks is None:
        num_chunks = -(-TRAINED_FRAMES // geometry.chunk_frames)
    return max(
        plan_bytes(
            policy.plan(geometry, grouped=grouped),
            geometry,
            num_chunks=num_chunks,
            batch_size=batch_size,
            dtype=dtype,
            kv_dtype=kv_dtype,
        )
        for grouped in ((False, True) if policy.is_grouped(num_chunks) else (False,))
    )


def plan_bytes(
    plan: CachePlan,
    geometry: FrameGeometry,
    *,
    num_chunks: int,
    batch_size: int,
    dtype: torch.dtype,
    kv_dtype: str | None = None,
) -> int:
    """What a `StreamCache` of this plan holds after `num_chunks` commits: the current chunk and any workspace too."""
    head_tokens = [
        len(group.heads) * group_tokens(group, geometry, plan.segments_per_frame, num_chunks)
        for groups in plan.layers
        for group in groups
    ]
    workspace_bytes = 0 if kv_dtype is None else max(head_tokens) * 2 * geometry.head_dim * dtype.itemsize
    return batch_size * (sum(head_tokens) * head_token_bytes(geometry.head_dim, dtype, kv_dtype) + workspace_bytes)


def is_unbounded(policy: CachePolicy, geometry: FrameGeometry) -> bool:
    """Whether the cache grows for as long as the stream goes on."""
    plan = policy.plan(geometry, grouped=True)
    return any(group.recent_frames is None for groups in plan.layers for group in groups)


def group_tokens(group: HeadGroup, geometry: FrameGeometry, segments_per_frame: int, num_chunks: int) -> int:
    """Tokens that the buffer of a group has room for after `num_chunks` commits."""
    # A commit makes room for the whole chunk before the sink takes its share.
    before = max(0, num_chunks - 1) * geometry.chunk_frames
    held_frames = max(0, before - group.sink_frames) + (geometry.chunk_frames if num_chunks else 0)
    capacity = recent_capacity(group, geometry, held_frames)
    return history_capacity(group, geometry, segments_per_frame, capacity) + geometry.chunk_tokens


def history_capacity(group: HeadGroup, geometry: FrameGeometry, segments_per_frame: int, recent_frames: int) -> int:
    """Tokens of selected, recent and sink part together, where the recent part has room for `recent_frames`."""
    selected_tokens = selected_capacity(group, geometry, segments_per_frame)
    return selected_tokens + geometry.tokens(recent_frames + group.sink_frames)


def selected_capacity(group: HeadGroup, geometry: FrameGeometry, segments_per_frame: int) -> int:
    """Tokens the selected part has room for."""
    if not group.selected_segments:
        return 0
    return group.selected_segments * geometry.segment_tokens(segments_per_frame)


def recent_capacity(group: HeadGroup, geometry: FrameGeometry, num_frames: int) -> int:
    """Frames that the recent part has room for: what the group keeps or, unbounded, `num_frames` in whole blocks."""
    if group.recent_frames is not None:
        return group.recent_frames
    block = GROWTH_CHUNKS * geometry.chunk_frames
    return -(-num_frames // block) * block
