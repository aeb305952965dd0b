"""Relative positions, against keys that are rotated from scratch for where each frame should stand."""

from dataclasses import dataclass
from functools import cache as memoised
from typing import ClassVar

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from forcing_kv import (
    ConfigurationError,
    FrameGeometry,
    Full,
    HeadMap,
    SnapshotError,
    StreamCache,
    Window,
    parse_policy,
)
from forcing_kv.cache import check_relative_positions
from forcing_kv.policies import CachePlan, CachePolicy, HeadGroup
from forcing_kv.wan import RotaryTable, TemporalShift
from reference import NaiveCache, textbook_attention
from strategies import random_qkv, setups

HEAD_DIM = 16  # 8 values for time, 4 for rows, 4 for columns
TRAINED_FRAMES = 21


@memoised
def table(geometry, first_position, num_frames):
    positions = range(first_position, first_position + num_frames)
    return RotaryTable.build(positions, rows=geometry.frame_rows, cols=geometry.frame_cols, head_dim=geometry.head_dim)


def rotated(geometry, x, first_position):
    """x [batch, frames * frame_tokens, heads, head_dim], its frames from `first_position` on."""
    return table(geometry, first_position, x.shape[1] // geometry.frame_tokens).rotate(x)


class PlacedNaiveCache(NaiveCache):
    """Holds keys that are not rotated; whoever reads them rotates each frame to the place it should have then."""

    def __init__(self, *args):
        super().__init__(*args)
        self.raw = {}  # (layer, frame) -> keys [batch, frame_tokens, heads, head_dim]

    def line(self, layer, head):
        """Sink, candidates and recent frames of a head, as they should stand, one position each."""
        sink, recent = self.whole_frames(layer, head)
        candidates = self.candidates if self.sizes(layer, head)[2] and self.selected[0] else []
        return sink, candidates, recent

    @property
    def first_position(self):
        heads = [(layer, head) for layer in range(self.geometry.num_layers) for head in self.place]
        return max(sum(map(len, self.line(*each))) for each in heads)

    def parts(self, layer, head, item):
        """Rotated keys and values of the sink, the recent frames and the selected segments of a head."""
        sink, candidates, recent = self.line(layer, head)
        line = [*sink, *candidates, *recent]
        position = {frame: self.first_position - len(line) + index for index, frame in enumerate(line)}

        def pair(frame):
            keys = rotated(self.geometry, self.raw[layer, frame], position[frame])
            return self.slice_of((keys, self.kv[layer, frame][1]), item, head)

        def segment_of(frame, segment):
            size = self.geometry.frame_tokens // self.policy.segments_per_frame
            return tuple(x[segment * size : (segment + 1) * size] for x in pair(frame))

        selected = self.selected[item] if candidates else []
        return [pair(f) for f in sink], [pair(f) for f in recent], [segment_of(*each) for each in selected]

    def history(self, layer, head, item):
        return [part for parts in self.parts(layer, head, item) for part in parts]

    def attend(self, layer, q, k, v):
        q, k = (rotated(self.geometry, x, self.first_position) for x in (q, k))
        return super().attend(layer, q, k, v)

    def attend_in_recache(self, layer, q, k, v, *, keep_sink):
        """Full attention of a span to itself and to the kept sink, which stand consecutively from 0 on."""
        first, out = len(self.sink) if keep_sink else 0, torch.empty_like(q)
        for head, place in self.place.items():
            sink = self.sink[: self.sizes(layer, head)[0]] if keep_sink else []
            sink_keys = [rotated(self.geometry, self.raw[layer, frame], at) for at, frame in enumerate(sink)]
            keys = torch.cat([*sink_keys, rotated(self.geometry, k, first)], dim=1)
            values = torch.cat([self.kv[layer, frame][1] for frame in sink] + [v], dim=1)
            queries = rotated(self.geometry, q, first)
            for item in range(len(q)):
                out[item, :, place] = textbook_attention(*(x[item, :, place] for x in (queries, keys, values)))
        return out

    def look(self, chunk_kv):
        chunk = range(self.num_frames, self.num_frames + self.geometry.chunk_frames)
        raw = [torch.cat([self.raw[layer, frame] for frame in chunk], dim=1) for layer in range(len(chunk_kv))]
        super().look([(rotated(self.geometry, k, self.first_position), None) for k in raw])

    def commit(self, chunk_kv):
        first = self.num_frames
        super().commit(self.remember(range(first, first + self.geometry.chunk_frames), chunk_kv))

    def recache(self, frames, span_kv, *, keep_sink):
        super().recache(frames, self.remember(frames, span_kv), keep_sink=keep_sink)

    def remember(self, frames, kv):
        """Keeps the keys as they are, and gives them rotated by frame index: selection compares those."""
        for layer, (k, _) in enumerate(kv):
            for frame, keys in zip(frames, k.split(self.geometry.frame_tokens, 1), strict=True):
                self.raw[layer, frame] = keys
        return [(rotated(self.geometry, k, frames[0]), v) for k, v in kv]


def relative_cache(geometry, policy, **changes):
    return StreamCache(geometry, policy, rotation=TemporalShift(geometry.head_dim), **changes)


def assert_same_keys(cache, naive):
    """Every stored key and value, in the order of the memory: [selected | recent | sink], filled from the right."""
    for layer, buffers in enumerate(cache._layers):
        for buffer in buffers:
            for head in buffer.group.heads:
                index = buffer.places.index(naive.place[head])
                for item in range(cache.batch_size):
                    sink, recent, selected = naive.parts(layer, head, item)
                    expected = [*selected, *reversed(recent), *reversed(sink)]
                    stored = buffer.history()[0][:, item, :, index]
                    assert stored.shape[1] == sum(len(k) for k, _ in expected)
                    if expected:
                        for held, wanted in zip(stored, map(torch.cat, zip(*expected, strict=True)), strict=True):
                            torch.testing.assert_close(held, wanted, rtol=1e-5, atol=1e-5)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    setup=setups(head_dim=HEAD_DIM),
    batch_size=st.integers(1, 2),
    shuffle=st.booleans(),
    seed=st.integers(0, 2**20),
    recaches=st.lists(st.tuples(st.integers(1, 6), st.integers(1, 9), st.booleans()), max_size=2),
)
def test_keys_stand_where_they_should(setup, batch_size, shuffle, seed, recaches):
    geometry, policy = setup
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(geometry.num_heads, generator=generator).tolist() if shuffle else None
    head_orders = [order] * geometry.num_layers if shuffle else None
    cache = relative_cache(geometry, policy, batch_size=batch_size, dtype=torch.float64, head_order=head_orders)
    naive = PlacedNaiveCache(geometry, policy, batch_size, order)
    due = {chunk: (max_frames, keep_sink) for chunk, max_frames, keep_sink in recaches}

    def assert_close(actual, expected):
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)

    def run(memory, first_position, num_frames, attend):
        """One pass; its keys, not rotated, and its values."""
        kv = []
        for layer in range(geometry.num_layers):
            q, k, v = random_qkv(geometry, batch_size, num_frames, generator)
            out = memory.attend(layer, *(rotated(geometry, x, first_position) for x in (q, k)), v)
            assert_close(out, attend(layer, q, k, v))
            kv.append((k, v))
        return kv

    for chunk in range(7):
        if chunk in due:
            max_frames, keep_sink = due[chunk]
            memory = cache.recache(max_frames, keep_sink=keep_sink)
            assert memory.positions.start == (len(naive.sink) if keep_sink else 0)
            assert len(memory.positions) == len(memory.frames)
            span_kv = []
            if memory.frames:
                span_kv = run(
                    memory,
                    memory.positions.start,
                    len(memory.frames),
                    lambda *layer_qkv, keep_sink=keep_sink: naive.attend_in_recache(*layer_qkv, keep_sink=keep_sink),
                )
            naive.recache(memory.frames, span_kv, keep_sink=keep_sink)
        assert cache.first_position == naive.first_position
        assert_same_keys(cache, naive)
        chunk_kv = run(cache, cache.first_position, geometry.chunk_frames, naive.attend)
        cache.commit()
        naive.commit(chunk_kv)


def geometry_of(chunk_frames=3, **changes):
    sizes = {"num_layers": 2, "num_heads": 3, "head_dim": HEAD_DIM, "frame_rows": 2, "frame_cols": 3}
    return FrameGeometry(**(sizes | changes), chunk_frames=chunk_frames)


def policy_of(spec, geometry):
    return parse_policy(spec, head_map=HeadMap(model="test", roles=("sdd",) * geometry.num_layers))


POLICIES = [
    "window:window_frames=21,sink_frames=3",
    "window:window_frames=6,sink_frames=0",
    "forcing-kv",
    "forcing-kv:sink_frames=4,warmup_chunks=5",
    "forcing-kv:sink_frames=0,dynamic_recent_frames=3,warmup_chunks=3,similarity_pruning=false",
]


def run_ones(cache, memory, first_position, num_frames):
    """A pass whose keys are ones, rotated."""
    geometry = cache.geometry
    ones = torch.ones((1, geometry.tokens(num_frames), geometry.num_heads, HEAD_DIM), dtype=torch.float64)
    for layer in range(geometry.num_layers):
        memory.attend(layer, ones, rotated(geometry, ones, first_position), ones)


def positions_held(buffer):
    """The temporal positions of keys that were ones, read off them."""
    even, odd = buffer.history()[0][0, 0, :, 0, 4:6].unbind(-1)  # the third pair turns by 0.01 per frame
    angles = torch.atan2(odd, even) - torch.pi / 4
    return sorted(set((angles / 0.01).round().int().tolist()))


@pytest.mark.parametrize("chunk_frames", [1, 3])
@pytest.mark.parametrize("spec", POLICIES)
def test_no_distance_exceeds_the_trained_range(spec, chunk_frames):
    geometry = geometry_of(chunk_frames)
    policy = policy_of(spec, geometry)
    settings = {"num_frames": None, "recache_frames": 12, "keep_sink": True}
    check_relative_positions(policy, geometry, trained_frames=TRAINED_FRAMES, **settings)
    cache = relative_cache(geometry, policy, dtype=torch.float64)

    def first_positions(num_chunks):
        for _ in range(num_chunks):
            run_ones(cache, cache, cache.first_position, chunk_frames)
            cache.commit()
            for buffer in cache._buffers:
                held = positions_held(buffer)
                newest_query = cache.first_position + chunk_frames - 1
                assert newest_query - min(held) <= TRAINED_FRAMES - 1
                assert min(held) >= 0
                assert max(held) == cache.first_position - 1
            yield cache.first_position

    steady = list(first_positions(60))[-20:]
    assert len(set(steady)) == 1
    assert steady[0] + chunk_frames <= TRAINED_FRAMES
    for keep_sink in (False, True):
        memory = cache.recache(12, keep_sink=keep_sink)
        run_ones(cache, memory, memory.positions.start, len(memory.frames))
        assert list(first_positions(60))[-20:] == steady


@dataclass(frozen=True, kw_only=True)
class DeeperLayers(CachePolicy):
    """Each layer keeps more than the one below it, before grouping as after."""

    name: ClassVar[str] = "deeper-layers"

    def plan(self, geometry, *, grouped):
        heads = tuple(range(geometry.num_heads))
        extra = 2 if grouped else 0
        groups = [HeadGroup(heads=heads, sink_frames=1, recent_frames=1 + layer + extra) for layer in range(2)]
        return CachePlan(layers=tuple((group,) for group in groups))

    def is_grouped(self, num_chunks):
        return num_chunks >= 3


def test_groups_that_differ_from_the_start_stay_consecutive():
    """The sinks of the two layers then stand at different positions when grouping begins."""
    geometry = geometry_of()
    cache = relative_cache(geometry, DeeperLayers(), dtype=torch.float64)
    for expected in ([[1, 2], [0, 1, 2]], [[1, 2], [0, 1, 2]], [[1, 2], [0, 1, 2]], [[1, 2, 3, 4], [0, 1, 2, 3, 4]]):
        run_ones(cache, cache, cache.first_position, 3)
        cache.commit()
        assert [positions_held(buffer) for buffer in cache._buffers] == expected


def test_a_limit_of_one_frame_less_would_be_exceeded():
    """The bound is tight: the policy that just fits does reach from one end of the trained range to the other."""
    geometry = geometry_of()
    settings = {"num_frames": None, "recache_frames": 12, "keep_sink": False}
    policy = Window(window_frames=TRAINED_FRAMES)
    check_relative_positions(policy, geometry, trained_frames=TRAINED_FRAMES, **settings)
    with pytest.raises(ConfigurationError, match="reads 21 latent frames"):
        check_relative_positions(policy, geometry, trained_frames=TRAINED_FRAMES - 1, **settings)


def test_selection_does_not_depend_on_the_positions():
    geometry = geometry_of()
    generator = torch.Generator().manual_seed(0)
    policy = policy_of("forcing-kv", geometry)
    absolute, relative = StreamCache(geometry, policy, batch_size=2), relative_cache(geometry, policy, batch_size=2)
    for chunk in range(8):
        for layer in range(geometry.num_layers):
            q, k, v = (x.float() for x in random_qkv(geometry, 2, 3, generator))
            for cache in (absolute, relative):
                cache.attend(layer, *(rotated(geometry, x, cache.first_position) for x in (q, k)), v)
        for cache in (absolute, relative):
            cache.commit()
        assert absolute.first_position == absolute.num_frames
        if chunk >= 2:
            assert torch.equal(absolute.last_selection.segments, relative.last_selection.segments)
            torch.testing.assert_close(absolute.last_selection.scores, relative.last_selection.scores)


@settings(max_examples=30, deadline=None)
@given(setup=setups(head_dim=HEAD_DIM), chunks=st.integers(0, 6), seed=st.integers(0, 1000))
def test_state_round_trip_goes_on_bit_for_bit(setup, chunks, seed):
    geometry, policy = setup
    generator = torch.Generator().manual_seed(seed)
    first, second = (relative_cache(geometry, policy, dtype=torch.float64) for _ in range(2))

    def step(caches):
        for layer in range(geometry.num_layers):
            qkv = random_qkv(geometry, 1, geometry.chunk_frames, generator)
            outputs = [cache.attend(layer, *qkv) for cache in caches]
            assert all(torch.equal(outputs[0], output) for output in outputs)
        for cache in caches:
            cache.commit()

    for _ in range(chunks):
        step([first])
    second.load_state(*first.state())
    for _ in range(3):
        step([first, second])
        assert first.first_position == second.first_position


def test_a_state_with_other_positions_is_refused():
    geometry = geometry_of()
    with pytest.raises(SnapshotError, match="taken with absolute positions, not relative"):
        relative_cache(geometry, Window()).load_state(*StreamCache(geometry, Window()).state())


@pytest.mark.parametrize(
    ("policy", "changes", "message"),
    [
        (Window(window_frames=30), {}, r"reads 30 .* \(27 of history, a chunk of 3\): the model was trained at 21"),
        (Window(window_frames=22), {"num_frames": 3}, "reads 22 "),  # at once, however short the stream
        ("forcing-kv:sink_frames=15,warmup_chunks=9", {}, "reads 22 .*19 of history"),  # sink, candidates, recent
        (Full(), {}, "keeps every frame, .* cannot hold an endless stream: the model was trained at 21"),
        (Full(), {"num_frames": 24}, "a stream of 24 latent frames.*forcing-kv, window.*--positions absolute"),
        (Window(), {"recache_frames": 22}, "recache_frames=22 cannot be encoded.*use at most 21"),
        (Window(), {"recache_frames": 19, "keep_sink": True}, "recache_frames=19 behind a kept sink of 3.*at most 18"),
    ],
)
def test_what_would_reach_too_far_is_refused(policy, changes, message):
    geometry = geometry_of()
    policy = policy_of(policy, geometry) if isinstance(policy, str) else policy
    settings = {"trained_frames": TRAINED_FRAMES, "num_frames": None, "recache_frames": 12, "keep_sink": False}
    with pytest.raises(ConfigurationError, match=message):
        check_relative_positions(policy, geometry, **(settings | changes))


@pytest.mark.parametrize(
    ("policy", "changes"),
    [
        (Full(), {"num_frames": 21}),
        (Window(window_frames=21), {}),
        (Window(), {"recache_frames": 18, "keep_sink": True}),
        ("forcing-kv:sink_frames=14,warmup_chunks=9", {}),
    ],
)
def test_what_just_fits_is_allowed(policy, changes):
    geometry = geometry_of()
    policy = policy_of(policy, geometry) if isinstance(policy, str) else policy
    settings = {"trained_frames": TRAINED_FRAMES, "num_frames": None, "recache_frames": 12, "keep_sink": False}
    check_relative_positions(policy, geometry, **(settings | changes))
