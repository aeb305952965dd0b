"""The fast cache against the naive one, over odd sizes; and what it promises about memory."""

import json

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from forcing_kv import (
    ConfigurationError,
    ForcingKV,
    FrameGeometry,
    Full,
    HeadMap,
    SnapshotError,
    StreamCache,
    UnknownNameError,
    Window,
)
from forcing_kv.cache import KV_DTYPES, cache_bytes
from reference import NaiveCache, textbook_attention
from strategies import random_qkv, setups


def stored(cache, x):
    """What is left of keys or values that the cache has stored."""
    if cache.kv_dtype is None:
        return x
    numbers, scales = KV_DTYPES[cache.kv_dtype].quantise(x)
    return numbers.to(x.dtype) * scales.to(x.dtype)


def run_chunk(geometry, cache, naive, generator, passes=2):
    """Two passes that write different keys; only those of the last may remain."""
    for _ in range(passes):
        chunk_kv = []
        for layer in range(geometry.num_layers):
            q, k, v = random_qkv(geometry, cache.batch_size, geometry.chunk_frames, generator)
            torch.testing.assert_close(cache.attend(layer, q, k, v), naive.attend(layer, q, k, v))
            chunk_kv.append((stored(cache, k), stored(cache, v)))
    cache.commit()
    naive.commit(chunk_kv)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    setup=setups(),
    batch_size=st.integers(1, 2),
    shuffle=st.booleans(),
    seed=st.integers(0, 2**20),
    kv_dtype=st.sampled_from([None, None, "int8", "fp8"]),
    recaches=st.lists(st.tuples(st.integers(1, 7), st.integers(1, 9), st.booleans()), max_size=2),
)
def test_reads_what_the_method_says(*, setup, batch_size, shuffle, seed, kv_dtype, recaches):
    geometry, policy = setup
    generator = torch.Generator().manual_seed(seed)
    head_order = torch.arange(geometry.num_heads).tolist()
    if shuffle:
        head_order = torch.randperm(geometry.num_heads, generator=generator).tolist()
    cache = StreamCache(
        geometry,
        policy,
        batch_size=batch_size,
        dtype=torch.float64,
        kv_dtype=kv_dtype,
        head_order=[head_order] * geometry.num_layers,
    )
    naive = NaiveCache(geometry, policy, batch_size, head_order)
    due = {chunk: (max_frames, keep_sink) for chunk, max_frames, keep_sink in recaches}
    for chunk in range(8):
        if chunk in due:
            max_frames, keep_sink = due[chunk]
            memory = cache.recache(max_frames, keep_sink=keep_sink)
            newest = set(range(max(0, cache.num_frames - max_frames), cache.num_frames))
            if keep_sink and naive.sink:
                newest = {frame for frame in newest if frame > naive.sink[-1]}
            assert set(memory.frames) == newest
            span_kv = []
            for layer in range(geometry.num_layers if memory.frames else 0):
                q, k, v = random_qkv(geometry, batch_size, len(memory.frames), generator)
                memory.attend(layer, q, k, v)
                span_kv.append((stored(cache, k), stored(cache, v)))
            naive.recache(memory.frames, span_kv, keep_sink=keep_sink)
        run_chunk(geometry, cache, naive, generator)


def tiny_geometry(**changes):
    settings = {"num_layers": 2, "num_heads": 3, "head_dim": 4, "frame_rows": 2, "frame_cols": 3, "chunk_frames": 3}
    return FrameGeometry(**(settings | changes))


def forcing_kv(geometry, **changes):
    head_map = HeadMap(model="test", roles=("sdd",) * geometry.num_layers)
    return ForcingKV(**({"head_map": head_map} | changes))


def test_full_cache_is_dense_causal_attention():
    geometry = tiny_geometry(chunk_frames=2)
    cache = StreamCache(geometry, Full(), dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    keys, values = [], []
    for _ in range(15):  # past one block of growth
        q, k, v = random_qkv(geometry, 1, 2, generator)
        out = [cache.attend(layer, q, k, v) for layer in range(2)][1]
        cache.commit()
        keys.append(k)
        values.append(v)
        for head in range(3):
            k_all, v_all = torch.cat(keys, 1)[0, :, head], torch.cat(values, 1)[0, :, head]
            torch.testing.assert_close(out[0, :, head], textbook_attention(q[0, :, head], k_all, v_all))


def test_recache_pass_is_full_attention_over_span_and_kept_sink():
    geometry = tiny_geometry()
    generator = torch.Generator().manual_seed(1)
    cache = StreamCache(geometry, forcing_kv(geometry, sink_frames=2), dtype=torch.float64)
    sink = []
    for _ in range(4):
        for layer in range(2):
            q, k, v = random_qkv(geometry, 1, 3, generator)
            cache.attend(layer, q, k, v)
            sink.append((k, v))
        cache.commit()
    memory = cache.recache(5, keep_sink=True)
    assert memory.frames == range(7, 12)
    q, k, v = random_qkv(geometry, 1, 5, generator)
    out = memory.attend(1, q, k, v)
    sink_tokens = geometry.tokens(2)
    first_k, first_v = sink[1]
    for head in range(3):
        k_all = torch.cat([first_k[0, :sink_tokens, head], k[0, :, head]])
        v_all = torch.cat([first_v[0, :sink_tokens, head], v[0, :, head]])
        torch.testing.assert_close(out[0, :, head], textbook_attention(q[0, :, head], k_all, v_all))


@settings(max_examples=60, deadline=None)
@given(
    setup=setups(),
    batch_size=st.integers(1, 2),
    kv_dtype=st.sampled_from([None, "int8", "fp8"]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    chunks=st.integers(0, 6),
)
def test_nbytes_is_what_is_allocated_and_never_more_than_was_said(setup, batch_size, kv_dtype, dtype, chunks):
    geometry, policy = setup
    cache = StreamCache(geometry, policy, batch_size=batch_size, dtype=dtype, kv_dtype=kv_dtype)
    said = cache_bytes(policy, geometry, num_chunks=chunks, batch_size=batch_size, dtype=dtype, kv_dtype=kv_dtype)
    for _ in range(chunks):
        assert allocated_bytes(cache) == cache.nbytes <= said
        for layer in range(geometry.num_layers):
            cache.attend(
                layer,
                *(x.to(dtype) for x in random_qkv(geometry, batch_size, geometry.chunk_frames, torch.Generator())),
            )
        cache.commit()
    assert allocated_bytes(cache) == cache.nbytes <= said


def allocated_bytes(cache):
    planes = [plane for buffers in cache._layers for buffer in buffers for plane in buffer.store.planes]
    planes.append(cache._storage._workspace.values)
    storages = [plane.untyped_storage() for plane in planes]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages if storage.nbytes()}.values())


@pytest.mark.parametrize(("kv_dtype", "most"), [("int8", 0.01), ("fp8", 0.04)])
def test_quantised_history_is_near_what_it_was(kv_dtype, most):
    geometry = FrameGeometry(num_layers=1, num_heads=2, head_dim=64, frame_rows=2, frame_cols=3, chunk_frames=3)
    plain, quantised = (StreamCache(geometry, Full(), dtype=torch.float32, kv_dtype=name) for name in (None, kv_dtype))
    generator = torch.Generator().manual_seed(0)
    for chunk in range(4):
        q, k, v = (x.float() for x in random_qkv(geometry, 1, 3, generator))
        v[:, 0] *= 1000  # a token with large values costs the others nothing
        expected, out = plain.attend(0, q, k, v), quantised.attend(0, q, k, v)
        error = float((out - expected).norm() / expected.norm())
        assert error == 0 if chunk == 0 else 0 < error < most, (chunk, error)
        plain.commit()
        quantised.commit()
    assert quantised.nbytes < plain.nbytes * 1.3  # one layer: its workspace is as large as the plain cache


def test_quantised_cache_of_a_deep_model_takes_half_the_bytes_of_bfloat16():
    geometry = FrameGeometry(num_layers=30, num_heads=12, head_dim=128, frame_rows=3, frame_cols=5, chunk_frames=3)
    plain, quantised = (
        cache_bytes(Full(), geometry, num_chunks=7, dtype=torch.bfloat16, kv_dtype=name) for name in (None, "int8")
    )
    assert quantised == pytest.approx(plain * (0.5 + 1 / 128 + 1 / 30))  # numbers, scales, workspace


def test_relative_positions_and_unknown_formats_are_refused():
    geometry = tiny_geometry()
    with pytest.raises(UnknownNameError, match="int8"):
        StreamCache(geometry, Full(), kv_dtype="int4")
    with pytest.raises(ConfigurationError, match="does not go with relative positions"):
        StreamCache(geometry, Window(), kv_dtype="int8", rotation=object())


@pytest.mark.parametrize("batch_size", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nbytes_is_what_the_plan_allows_and_what_is_allocated(batch_size, dtype):
    geometry = tiny_geometry()
    policy = forcing_kv(geometry, sink_frames=0, dynamic_recent_frames=3, similarity_pruning=False)
    cache = StreamCache(geometry, policy, batch_size=batch_size, dtype=dtype)

    def head_tokens(layer):
        return [geometry.tokens(3 + (3 if layer == 0 or head else recent)) for head in range(3)]

    def expected():
        tokens = sum(sum(head_tokens(layer)) for layer in range(2))
        return tokens * 2 * batch_size * geometry.head_dim * dtype.itemsize

    recent = 3  # warm-up: every head keeps max(R_s, R_d)
    assert cache.nbytes == expected()
    for chunk in range(5):
        for layer in range(2):
            cache.attend(layer, *(x.to(dtype) for x in random_qkv(geometry, batch_size, 3, torch.Generator())))
        cache.commit()
        if chunk == 1:
            recent = 1  # grouping: the buffer of the static head shrinks
        assert cache.nbytes == expected(), chunk
    storages = {
        plane.untyped_storage().data_ptr(): plane.untyped_storage().nbytes()
        for buffers in cache._layers
        for buffer in buffers
        for plane in buffer.store.planes
    }
    assert sum(storages.values()) == cache.nbytes
    assert cache.full_nbytes == 15 * geometry.kv_bytes(1, bytes_per_value=dtype.itemsize, batch_size=batch_size)


def test_bounded_policies_do_not_allocate_after_warmup():
    geometry = tiny_geometry()
    for policy in (Window(window_frames=9, sink_frames=1), forcing_kv(geometry)):
        cache = StreamCache(geometry, policy)
        addresses = []
        for _ in range(8):
            for layer in range(2):
                cache.attend(layer, *(x.float() for x in random_qkv(geometry, 1, 3, torch.Generator())))
            cache.commit()
            addresses.append(
                [plane.data_ptr() for buffers in cache._layers for buffer in buffers for plane in buffer.store.planes]
            )
        assert all(row == addresses[2] for row in addresses[2:])


def test_reading_changes_nothing():
    geometry = tiny_geometry()
    cache = StreamCache(geometry, forcing_kv(geometry), dtype=torch.float64)
    generator = torch.Generator().manual_seed(3)
    naive = NaiveCache(geometry, cache.policy, 1)
    for _ in range(4):
        run_chunk(geometry, cache, naive, generator)
    before = [history.clone() for history in cache.state()[0].values()]
    for _ in range(3):
        for layer in range(2):
            cache.attend(layer, *random_qkv(geometry, 1, 3, generator))
    for old, new in zip(before, cache.state()[0].values(), strict=True):
        assert torch.equal(old, new)


@settings(max_examples=30, deadline=None)
@given(
    setup=setups(), chunks=st.integers(0, 6), seed=st.integers(0, 1000), kv_dtype=st.sampled_from([None, "int8", "fp8"])
)
def test_state_round_trip_goes_on_bit_for_bit(setup, chunks, seed, kv_dtype):
    geometry, policy = setup
    generator = torch.Generator().manual_seed(seed)
    first, second = (StreamCache(geometry, policy, dtype=torch.float64, kv_dtype=kv_dtype) for _ in range(2))

    def step(caches):
        for layer in range(geometry.num_layers):
            qkv = random_qkv(geometry, 1, geometry.chunk_frames, generator)
            outputs = [cache.attend(layer, *qkv) for cache in caches]
            assert all(torch.equal(outputs[0], output) for output in outputs)
        for cache in caches:
            cache.commit()

    for _ in range(chunks):
        step([first])
    tensors, meta = first.state()
    second.load_state(tensors, json.loads(json.dumps(meta)))
    for _ in range(3):
        step([first, second])


def test_state_of_another_policy_is_refused_and_changes_nothing():
    geometry = tiny_geometry()
    cache = StreamCache(geometry, forcing_kv(geometry))
    other = StreamCache(geometry, Window())
    for layer in range(2):
        other.attend(layer, *(x.float() for x in random_qkv(geometry, 1, 3, torch.Generator())))
    other.commit()
    with pytest.raises(SnapshotError, match="does not fit this cache"):
        cache.load_state(*other.state())
    assert cache.num_frames == 0


def test_recache_of_nothing_is_an_error():
    geometry = tiny_geometry()
    with pytest.raises(ConfigurationError, match="at least 1"):
        StreamCache(geometry, Full()).recache(0)
