"""The linear layers of a pass, as the device multiplies quickest.

On a CPU that multiplies bfloat16, oneDNN adds the bias and applies GELU while the sums are still in registers; torch's
own call writes the bias first, and GELU is another trip through the largest tensor of a block.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """x [..., in], weight [out, in], bias [out] -> [..., out]."""
    if not _multiplied_by_onednn(x, weight):
        return F.linear(x, weight, bias)
    out: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return out


def apply_linear(layer: nn.Module, x: Tensor) -> Tensor:
    """What a linear layer, of whatever kind, makes of [..., in]."""
    if isinstance(layer, nn.Linear):
        return linear(x, layer.weight, layer.bias)
    out: Tensor = layer(x)
    return out


def gelu_linear(layer: nn.Module, x: Tensor) -> Tensor:
    """As `apply_linear`, and GELU (its tanh form)."""
    if isinstance(layer, nn.Linear) and _multiplied_by_onednn(x, layer.weight):
        fused: Tensor = torch.ops.mkldnn._linear_pointwise(x, layer.weight, layer.bias, "gelu", [], "tanh")
        return fused
    hidden: Tensor = layer(x)
    if hidden.requires_grad or torch.compiler.is_compiling():
        return F.gelu(hidden, approximate="tanh")
    in_place: Tensor = torch.ops.aten.gelu_(hidden, approximate="tanh")
    return in_place


def _multiplied_by_onednn(x: Tensor, weight: Tensor) -> bool:
    if x.device.type != "cpu" or x.dtype != torch.bfloat16 or torch.compiler.is_compiling():
        return False
    if torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad):
        return False
    if not torch.backends.mkldnn.is_available():
        return False
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
