"""Linear layers and GELU, against the formulas as they are written."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from forcing_kv.wan.fp8 import Fp8Linear
from forcing_kv.wan.products import apply_linear, gelu_linear, linear

CLOSE = {torch.float32: 1e-6, torch.bfloat16: 6e-3}


def relative_error(actual, expected):
    return float((actual.double() - expected.double()).norm() / expected.double().norm())


@pytest.mark.parametrize("dtype", CLOSE)
@pytest.mark.parametrize("shape", [(2, 9, 40), (1, 40), (3, 1, 40)])
def test_products(dtype, shape):
    layer = nn.Linear(40, 24).to(dtype)
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    exact = F.linear(x.double(), layer.weight.double(), layer.bias.double()).detach()
    with_gelu = F.gelu(exact, approximate="tanh")
    assert apply_linear(layer, x).requires_grad
    assert gelu_linear(layer, x).requires_grad
    assert relative_error(gelu_linear(layer, x).detach(), with_gelu) < CLOSE[dtype]
    layer.requires_grad_(False)
    assert relative_error(apply_linear(layer, x), exact) < CLOSE[dtype]
    assert relative_error(gelu_linear(layer, x), with_gelu) < CLOSE[dtype]
    wide = torch.cat((x, x), dim=-1)[..., 40:]  # strided
    assert relative_error(linear(wide, layer.weight, layer.bias), exact) < CLOSE[dtype]


def test_layers_of_another_kind_do_it_their_way():
    layer = Fp8Linear.of(nn.Linear(40, 24).requires_grad_(False))
    x = torch.randn(2, 40, generator=torch.Generator().manual_seed(0))
    assert torch.equal(apply_linear(layer, x), layer(x))
    assert torch.equal(gelu_linear(layer, x), F.gelu(layer(x), approximate="tanh"))
