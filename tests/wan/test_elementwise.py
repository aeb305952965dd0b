"""What lies between the products, against the formulas as they are written."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from forcing_kv.wan import RotaryTable, elementwise
from forcing_kv.wan.elementwise import gated_sum, modulated_norm, normed_heads

EPS = 1e-6
CLOSE = {torch.float32: 1e-6, torch.bfloat16: 6e-3, torch.float64: 1e-6}  # rotation is float32 at most


def drawn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def relative_error(actual, expected):
    return float((actual.double() - expected.double()).norm() / expected.double().norm())


@pytest.fixture(params=[None, 1, 700], ids=["one-block", "a-token-each", "a-block-that-does-not-divide"])
def block_bytes(request, monkeypatch):
    if request.param is not None:
        monkeypatch.setattr(elementwise, "CACHE_BYTES", request.param)


@pytest.mark.usefixtures("block_bytes")
@pytest.mark.parametrize("dtype", CLOSE)
@pytest.mark.parametrize("rotates", [True, False])
def test_heads_are_normalised_and_rotated(dtype, rotates):
    batch, num_heads, head_dim, rows, cols = 2, 3, 12, 3, 5
    dim = num_heads * head_dim
    wide = drawn(batch, 2 * rows * cols, 3 * dim, dtype=dtype)
    x = wide[..., dim : 2 * dim]  # as it comes out of a joined product
    norm = nn.RMSNorm(dim, eps=EPS).to(dtype).requires_grad_(False)
    norm.weight.copy_(drawn(dim, seed=1))
    table = RotaryTable.build([4, 9], rows=rows, cols=cols, head_dim=head_dim)

    exact = x.double() / (x.double().square().mean(-1, keepdim=True) + EPS).sqrt() * norm.weight.double()
    exact = exact.view(batch, -1, num_heads, head_dim)
    if rotates:
        even, odd, cos, sin = exact[..., ::2], exact[..., 1::2], table.cos.double(), table.sin.double()
        exact = torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2)
    norm.requires_grad_(True)
    plain = normed_heads(x, norm, num_heads, table if rotates else None)
    assert plain.requires_grad
    assert relative_error(plain.detach(), exact) < 2 * CLOSE[dtype]

    norm.requires_grad_(False)
    beside = wide[..., :dim].clone(), wide[..., 2 * dim :].clone()
    out = normed_heads(x, norm, num_heads, table if rotates else None)
    assert out.dtype == dtype
    assert out.data_ptr() == x.data_ptr() or dtype == torch.float64
    assert relative_error(out, exact) < CLOSE[dtype]
    assert torch.equal(wide[..., :dim], beside[0])
    assert torch.equal(wide[..., 2 * dim :], beside[1])


def test_without_a_norm_heads_are_rotated_only():
    table = RotaryTable.build([3], rows=1, cols=2, head_dim=12)
    x = drawn(1, 2, 24)
    assert torch.equal(normed_heads(x, nn.Identity(), 2, table), table.rotate(x.view(1, 2, 2, 12)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_level_of_all_tokens_is_one_of_every_frame(dtype):
    batch, frames, frame_tokens, dim = 2, 3, 7, 20
    x, y = (drawn(batch, frames * frame_tokens, dim, seed=seed, dtype=dtype) for seed in (0, 1))
    shift, scale, gate = (drawn(dim, seed=seed, dtype=dtype) for seed in (2, 3, 4))
    exact = F.layer_norm(x.double(), (dim,), eps=EPS) * scale.double() + shift.double()
    each = [vector.expand(batch, frames, 1, dim) for vector in (shift, scale, gate)]
    for vectors in ((shift, scale, gate), each):
        assert relative_error(modulated_norm(x, *vectors[:2], EPS), exact) < CLOSE[dtype]
        assert relative_error(gated_sum(x, y, vectors[2]), x.double() + gate.double() * y.double()) < CLOSE[dtype]


def test_frames_have_their_own_level():
    x, y = drawn(1, 6, 4), drawn(1, 6, 4, seed=1)
    shift, scale, gate = (drawn(1, 2, 1, 4, seed=seed) for seed in (2, 3, 4))
    for frame, tokens in enumerate((slice(0, 3), slice(3, 6))):
        own = [vectors[0, frame, 0] for vectors in (shift, scale, gate)]
        norm = modulated_norm(x, shift, scale, EPS)[:, tokens]
        torch.testing.assert_close(norm, modulated_norm(x[:, tokens], *own[:2], EPS))
        torch.testing.assert_close(gated_sum(x, y, gate)[:, tokens], gated_sum(x[:, tokens], y[:, tokens], own[2]))
