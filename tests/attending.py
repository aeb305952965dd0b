"""What the tests of attention back ends share: the device, the formula, and tensors as a cache hands them over."""

import pytest
import torch

from forcing_kv.attention import BACKENDS, GroupKV, Placement

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
ERRORS = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}
COMPILED = "flex"
"""The back end that takes long to get ready for a new kind of size: it gets few."""


def backend_here(name, dtype, head_dim):
    backend = BACKENDS[name]
    missing = backend.lacks(Placement(device=DEVICE, dtype=dtype, head_dim=head_dim))
    if missing:
        pytest.skip(f"{name}: {missing}")
    return backend


def textbook(q, k, v):
    """In float64."""
    scores = torch.einsum("bqhd,bkhd->bhqk", q.double(), k.double()) / q.shape[-1] ** 0.5
    return torch.einsum("bhqk,bkhd->bqhd", scores.softmax(dim=-1), v.double())


def assert_near(out, expected):
    error = ERRORS[out.dtype]
    torch.testing.assert_close(out.double(), expected, atol=error, rtol=error)


def random_groups(places, lengths, *, batch, head_dim, dtype, seed=0):
    """What groups of heads read: the newest tokens of buffers that have room for more, as a cache hands them over."""
    generator = torch.Generator().manual_seed(seed)
    groups = []
    for number, (group_places, length) in enumerate(zip(places, lengths, strict=True)):
        room = length + number
        kv = torch.randn(2, batch, room, len(group_places), head_dim, generator=generator).to(DEVICE, dtype)
        groups.append(GroupKV(places=tuple(group_places), keys=kv[0, :, number:], values=kv[1, :, number:]))
    return groups


def random_q(batch, queries, heads, head_dim, *, dtype, seed=1):
    """A view of the heads of a wider tensor, as a fused projection gives it."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, queries, 3, heads, head_dim, generator=generator).to(DEVICE, dtype)[:, :, 1]


def assert_groups_are_read(out, q, groups):
    assert out.shape == q.shape
    assert out.dtype == q.dtype
    for group in groups:
        places = list(group.places)
        assert_near(out[:, :, places], textbook(q[:, :, places], group.keys, group.values))
