"""The kernel for queries and keys, in Triton's interpreter where there is no GPU."""

import importlib
import sys

import pytest
import torch
from torch import nn

from forcing_kv.wan import RotaryTable
from forcing_kv.wan.elementwise import normed_heads

pytest.importorskip("triton")
NAME = "forcing_kv.wan.triton_heads"


@pytest.fixture
def kernel(monkeypatch):
    """The module, made for the interpreter, and forgotten again: a kernel is one or the other for good."""
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.delitem(sys.modules, NAME, raising=False)
    yield importlib.import_module(NAME)
    sys.modules.pop(NAME, None)


def check(module, *, device, dtype, tolerance, num_heads, head_dim, rotates):
    batch, rows, cols, dim = 2, 2, 3, num_heads * head_dim
    generator = torch.Generator().manual_seed(0)
    wide = torch.randn(batch, 2 * rows * cols, 3 * dim, generator=generator).to(device, dtype)
    x = wide[..., dim : 2 * dim]
    norm = nn.RMSNorm(dim, eps=1e-6).requires_grad_(False)
    norm.weight.copy_(torch.randn(dim, generator=generator))
    norm = norm.to(device, dtype)
    table = RotaryTable.build([4, 9], rows=rows, cols=cols, head_dim=head_dim, device=device) if rotates else None
    exact = normed_heads(x.double(), norm.double(), num_heads, table)
    beside = wide[..., :dim].clone()
    out = module.normed_heads(x, norm.weight.to(dtype), 1e-6, num_heads, table)
    assert out.data_ptr() == x.data_ptr()
    assert torch.equal(wide[..., :dim], beside)
    assert (out.shape, out.dtype) == ((batch, 2 * rows * cols, num_heads, head_dim), dtype)
    assert float((out.double() - exact).norm() / exact.norm()) < tolerance


SIZES = pytest.mark.parametrize(("num_heads", "head_dim"), [(3, 12), (1, 8), (4, 16)])
ROTATES = pytest.mark.parametrize("rotates", [True, False])


@SIZES
@ROTATES
def test_in_the_interpreter(kernel, num_heads, head_dim, rotates):
    sizes = {"num_heads": num_heads, "head_dim": head_dim, "rotates": rotates}
    check(kernel, device="cpu", dtype=torch.float32, tolerance=1e-6, **sizes)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA GPU")
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 6e-3)])
@SIZES
@ROTATES
def test_on_a_gpu(dtype, tolerance, num_heads, head_dim, rotates):
    sizes = {"num_heads": num_heads, "head_dim": head_dim, "rotates": rotates}
    check(importlib.import_module(NAME), device="cuda", dtype=dtype, tolerance=tolerance, **sizes)
