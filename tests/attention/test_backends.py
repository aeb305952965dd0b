"""Every back end that is here against softmax attention in float64, over odd sizes; on a GPU if there is one."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from attending import (
    COMPILED,
    DEVICE,
    assert_groups_are_read,
    assert_near,
    backend_here,
    random_groups,
    random_q,
    textbook,
)
from forcing_kv import ConfigurationError, ForcingKV, FrameGeometry, Full, HeadMap, StreamCache, attend
from forcing_kv.attention import BACKENDS, GroupKV, Placement, heads_at
from forcing_kv.attention.triton_backend import Tiles, attend_by_triton, attend_together, launch_order


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_every_back_end_is_the_textbook_formula(name, dtype):
    backend = backend_here(name, dtype, 32)
    sizes = [(2, 7, 3, 5), (2, 33, 3, 21)] if name == COMPILED else [(1, 1, 1, 2), (2, 7, 3, 5), (1, 65, 2, 67)]
    for batch, queries, heads, keys in sizes:
        (group,) = random_groups([range(heads)], [keys], batch=batch, head_dim=32, dtype=dtype)
        q = random_q(batch, queries, heads, 32, dtype=dtype)
        out = backend.attend(q, group.keys, group.values)
        assert out.dtype == dtype
        assert_near(out, textbook(q, group.keys, group.values))


def test_one_by_one_no_group_is_taken_before_the_one_before_it_is_done():
    """What a quantised cache needs, whose groups are expanded into the same memory one after the other."""
    room = torch.empty(2, 1, 9, 2, 16, device=DEVICE)
    groups = random_groups([[0, 1], [2, 3]], [9, 9], batch=1, head_dim=16, dtype=torch.float32)

    def expanded():
        for group in groups:
            room[0], room[1] = group.keys, group.values
            yield GroupKV(places=group.places, keys=room[0], values=room[1])

    q = random_q(1, 5, 4, 16, dtype=torch.float32)
    for name, backend in BACKENDS.items():
        if name != COMPILED and not backend.lacks(Placement(device=DEVICE, dtype=torch.float32, head_dim=16)):
            assert_groups_are_read(backend.attend_groups(q, expanded(), one_by_one=True), q, groups)


@pytest.mark.parametrize(
    ("dtype", "head_dim", "queries", "lengths"),
    [
        (torch.float32, 16, 37, (16, 17)),
        (torch.float32, 112, 16, (47, 48)),
        (torch.bfloat16, 128, 33, (5, 33)),
        (torch.float16, 256, 17, (31, 1)),
    ],
)
def test_triton_tiles_that_do_not_fit_are_masked(dtype, head_dim, queries, lengths):
    backend_here("triton", dtype, head_dim)
    groups = random_groups([[0, 2], [1]], lengths, batch=2, head_dim=head_dim, dtype=dtype)
    q = random_q(2, queries, 3, head_dim, dtype=dtype)
    out = attend_together(q, groups, tiles=Tiles(queries=16, keys=16, num_warps=4, num_stages=1))
    assert_groups_are_read(out, q, groups)


def test_triton_starts_the_longest_heads_first_and_knows_where_each_lies():
    short, long = random_groups([[0, 1, 3], [2]], [5, 8], batch=2, head_dim=16, dtype=torch.float32)
    first, second, third = launch_order([short, long])
    assert [part.places for part in (first, second, third)] == [(2,), (0, 1), (3,)]
    assert (first.keys.data_ptr(), first.values.data_ptr()) == (long.keys.data_ptr(), long.values.data_ptr())
    assert third.keys.data_ptr() == short.keys[:, :, 2:].data_ptr()
    assert torch.equal(second.values, short.values[:, :, :2])


def test_triton_takes_addresses_of_any_alignment():
    backend_here("triton", torch.float32, 16)
    kv = torch.randn(2, 1, 9, 2, 19, generator=torch.Generator().manual_seed(0)).to(DEVICE)[..., 2:18]
    q = random_q(1, 3, 2, 16, dtype=torch.float32)
    assert_near(attend_by_triton(q, kv[0], kv[1]), textbook(q, kv[0], kv[1]))


def test_compilers_see_one_triton_operator():
    with FakeTensorMode():
        q, k = torch.empty(2, 7, 3, 16), torch.empty(2, 5, 3, 16)
        out = attend_by_triton(q, k, k)
    assert out.shape == q.shape
    assert out.dtype == q.dtype


def test_mixed_dtypes_are_refused_by_triton():
    q, k = torch.zeros(1, 2, 1, 16, dtype=torch.bfloat16), torch.zeros(1, 3, 1, 16)
    with pytest.raises(ConfigurationError, match=r"queries are torch\.bfloat16, keys torch\.float32"):
        attend_by_triton(q, k, k)


@pytest.mark.parametrize("name", ["fa3", "flex", "triton"])
def test_gradients_are_refused_where_there_are_none(name):
    q, k = torch.zeros(1, 2, 1, 16, requires_grad=True), torch.zeros(1, 3, 1, 16)
    with pytest.raises(ConfigurationError, match=f"{name!r} computes no gradients; use 'sdpa'"):
        BACKENDS[name].attend(q, k, k)


def steady_geometry(num_heads=3):
    return FrameGeometry(num_layers=2, num_heads=num_heads, head_dim=16, frame_rows=2, frame_cols=3, chunk_frames=3)


def random_chunk(geometry, generator):
    shape = (3, 1, geometry.chunk_tokens, geometry.num_heads, geometry.head_dim)
    return torch.randn(shape, generator=generator).to(DEVICE).unbind(0)


def cache_here(geometry, policy, name, **settings):
    backend_here(name, torch.float32, geometry.head_dim)
    return StreamCache(geometry, policy, dtype=torch.float32, device=DEVICE, attention=name, **settings)


@pytest.mark.parametrize("name", [name for name in BACKENDS if name != "sdpa"])
@pytest.mark.parametrize("kv_dtype", [None, "int8"])
def test_a_cache_reads_the_same_by_every_back_end(name, kv_dtype):
    """Heads of both roles, some not side by side, through warm-up, selection and a re-cache."""
    if name == COMPILED and kv_dtype:
        pytest.skip(f"{name} takes long to get ready, and knows nothing of how a cache stores")
    geometry = steady_geometry()
    policy = ForcingKV(head_map=HeadMap(model="test", roles=("sds", "dsd")), warmup_chunks=1)
    caches = [cache_here(geometry, policy, backend, kv_dtype=kv_dtype) for backend in ("sdpa", name)]
    generator = torch.Generator().manual_seed(0)
    memories = caches
    for chunk in range(5):
        for layer in range(geometry.num_layers):
            q, k, v = random_chunk(geometry, generator)
            expected, out = (memory.attend(layer, q, k, v) for memory in memories)
            torch.testing.assert_close(out, expected, atol=2e-5, rtol=2e-5)
        if memories is caches:
            for cache in caches:
                cache.commit()
        memories = [cache.recache(3) for cache in caches] if chunk == 3 else caches


@pytest.mark.parametrize("name", BACKENDS)
def test_a_full_cache_is_dense_attention(name):
    geometry = steady_geometry(num_heads=2)
    cache = cache_here(geometry, Full(), name)
    generator = torch.Generator().manual_seed(0)
    history = []
    for _ in range(3):
        for layer in range(geometry.num_layers):
            q, k, v = random_chunk(geometry, generator)
            out = cache.attend(layer, q, k, v)
            if layer == 0:
                history.append((k, v))
                keys, values = (torch.cat(parts, dim=1) for parts in zip(*history, strict=True))
                assert_near(out, textbook(q, keys, values))
        cache.commit()


def test_heads_of_a_group_are_a_view_where_they_lie_side_by_side():
    q = random_q(1, 2, 4, 16, dtype=torch.float32)
    assert heads_at(q, (1, 2)).data_ptr() == q[:, :, 1:].data_ptr()
    torch.testing.assert_close(heads_at(q, (0, 3)), q[:, :, [0, 3]])


def test_attend_is_torchs_kernel_unless_asked_otherwise():
    q, k = random_q(1, 3, 2, 16, dtype=torch.float32), random_q(1, 5, 2, 16, dtype=torch.float32, seed=2)
    assert torch.equal(attend(q, k, k), BACKENDS["sdpa"].attend(q, k, k))
