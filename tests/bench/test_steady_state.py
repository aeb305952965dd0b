"""When a stream is steady, worked out from the plan, against caches that are really filled."""

import pytest
import torch

from forcing_kv import CachePolicy, ForcingKV, FrameGeometry, Full, HeadMap, StreamCache, Window
from forcing_kv.bench.arithmetic import history_tokens
from forcing_kv.bench.steady_state import SteadyState, frames_read

MAP = HeadMap(model="test", roles=("sdd", "dds"))
STATIC = HeadMap.uniform("s", num_layers=2, num_heads=3)
LATE = ForcingKV(head_map=MAP, sink_frames=2, dynamic_recent_frames=2, warmup_chunks=4)
STATIC_ONLY = ForcingKV(head_map=MAP, sink_frames=0, dynamic_recent_frames=3, similarity_pruning=False)

BOUNDED = [
    (Window(), 3, 3),
    (Window(), 1, 11),
    (Window(window_frames=6, sink_frames=0), 2, 2),
    (Window(window_frames=13, sink_frames=3), 3, 4),
    (Window(window_frames=40, sink_frames=1), 3, 13),
    (ForcingKV(head_map=MAP), 3, 3),
    (ForcingKV(head_map=MAP), 1, 3),
    (ForcingKV(head_map=MAP, dense_layers=frozenset({0, 1})), 3, 2),
    (ForcingKV(head_map=STATIC), 3, 2),
    (LATE, 3, 5),
    (STATIC_ONLY, 3, 2),
]


def geometry_of(chunk_frames):
    return FrameGeometry(num_layers=2, num_heads=3, head_dim=4, frame_rows=2, frame_cols=3, chunk_frames=chunk_frames)


def tokens_read(policy, geometry, num_chunks):
    """Of every chunk of a stream of random keys."""
    cache = StreamCache(geometry, policy)
    torch.manual_seed(0)
    read = []
    for _ in range(num_chunks):
        read.append(history_tokens(cache))
        for layer in range(geometry.num_layers):
            cache.attend(layer, *torch.randn(3, 1, geometry.chunk_tokens, geometry.num_heads, geometry.head_dim))
        cache.commit()
    return read


@pytest.mark.parametrize(
    ("policy", "chunk_frames", "first_chunk"),
    BOUNDED,
    ids=lambda value: value.spec() if isinstance(value, CachePolicy) else None,
)
def test_a_bounded_cache_reads_the_same_from_then_on(policy, chunk_frames, first_chunk):
    geometry = geometry_of(chunk_frames)
    steady = SteadyState.of(policy, geometry)
    assert (steady.first_chunk, steady.last_chunk) == (first_chunk, None)
    read = tokens_read(policy, geometry, first_chunk + 4)
    assert set(read[first_chunk:]) == {steady.history_tokens}
    grouping_begins = policy.is_grouped(first_chunk) and not policy.is_grouped(first_chunk - 1)
    assert read[first_chunk - 1] < steady.history_tokens or grouping_begins
    assert first_chunk - 1 not in steady
    assert first_chunk in steady
    assert 1000 in steady


@pytest.mark.parametrize(("chunk_frames", "chunk", "frames"), [(3, 6, 21), (1, 20, 21), (2, 10, 22)])
def test_a_full_cache_is_taken_at_21_frames(chunk_frames, chunk, frames):
    geometry = geometry_of(chunk_frames)
    steady = SteadyState.of(Full(), geometry)
    assert (steady.first_chunk, steady.last_chunk) == (chunk, chunk)
    assert [index for index in range(40) if index in steady] == [chunk]
    assert frames_read(steady.history_tokens, geometry) == frames
    assert tokens_read(Full(), geometry, chunk + 1)[chunk] == steady.history_tokens


def test_frames_read_is_the_mean_over_heads():
    geometry = geometry_of(3)
    assert frames_read(SteadyState.of(Window(), geometry).history_tokens, geometry) == 12
    steady = SteadyState.of(ForcingKV(head_map=MAP), geometry)
    assert frames_read(steady.history_tokens, geometry) == pytest.approx((5 + 5 + 5 + 6 + 6 + 5) / 6)
