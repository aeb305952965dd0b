"""`attend`: one result on every path, with or without gradients."""

import pytest
import torch
import torch.nn.functional as F

from forcing_kv import attend

SIZES = [(1, 1, 1, 1, 2), (2, 7, 5, 3, 6), (3, 4, 40, 1, 16)]
"""Batch, query tokens, key tokens, heads, head_dim."""


def random_qkv(batch, queries, keys, heads, head_dim, *, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(batch, queries, heads, head_dim, generator=generator, dtype=torch.float64)
    k, v = torch.randn(2, batch, keys, heads, head_dim, generator=generator, dtype=torch.float64)
    return [x.to(dtype) for x in (q, k, v)]


def textbook(q, k, v):
    scores = torch.einsum("bqhd,bkhd->bhqk", q, k) / q.shape[-1] ** 0.5
    return torch.einsum("bhqk,bkhd->bqhd", scores.softmax(dim=-1), v)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("with_gradients", [False, True])
def test_it_is_the_textbook_formula(size, with_gradients):
    q, k, v = random_qkv(*size)
    out = attend(q.requires_grad_(with_gradients), k, v)
    assert out.shape == q.shape
    assert out.requires_grad == with_gradients
    torch.testing.assert_close(out, textbook(q, k, v))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("dtype", "error"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 0.03)])
def test_its_gradients_are_the_formulas(size, dtype, error):
    ours = [x.requires_grad_() for x in random_qkv(*size, dtype=dtype)]
    exact = [x.detach().double().requires_grad_() for x in ours]
    weight = torch.randn(ours[0].shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    out, expected = attend(*ours), textbook(*exact)
    assert out.dtype == dtype
    torch.testing.assert_close(out.double(), expected, atol=error, rtol=error)
    for gradient, expected_gradient in zip(
        torch.autograd.grad((out * weight).sum(), ours),
        torch.autograd.grad((expected * weight).sum(), exact),
        strict=True,
    ):
        torch.testing.assert_close(gradient.double(), expected_gradient, atol=error, rtol=error)


@pytest.mark.parametrize(
    ("dtype", "with_gradients", "is_fused"),
    [(torch.bfloat16, True, False), (torch.bfloat16, False, True), (torch.float32, True, True)],
)
def test_only_bfloat16_with_gradients_leaves_torchs_kernel(dtype, with_gradients, is_fused, monkeypatch):
    calls = []
    kernel = F.scaled_dot_product_attention
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda *qkv: calls.append(1) or kernel(*qkv))
    q, k, v = random_qkv(2, 3, 4, 2, 6, dtype=dtype)
    attend(q.requires_grad_(with_gradients), k, v)
    assert bool(calls) == is_fused


def test_only_the_values_may_need_gradients():
    q, k, v = random_qkv(2, 3, 4, 2, 6)
    out = attend(q, k, v.requires_grad_())
    (gradient,) = torch.autograd.grad(out.sum(), v)
    torch.testing.assert_close(gradient.sum(dim=1), torch.full((2, 2, 6), 3.0, dtype=torch.float64))


def test_strided_keys_and_values_are_read_as_they_lie():
    q, k, v = random_qkv(2, 3, 8, 4, 6)
    part = slice(1, 3)
    out = attend(q[:, :, part], k[:, 2:7, part], v[:, 2:7, part])
    torch.testing.assert_close(out, textbook(q[:, :, part], k[:, 2:7, part], v[:, 2:7, part]))
