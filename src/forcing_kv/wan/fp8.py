"""Linear layers in fp8: one scale per row of the weight, kept; one per token, found as it comes.

Numbers are e4m3, whose four significant bits bfloat16 and float32 hold exactly. A GPU that multiplies them does
(`torch._scaled_mm`); on a CPU the same rounded numbers are multiplied in the dtype of the model, slowly, so that what
the rounding does to a model can be seen anywhere.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from forcing_kv.errors import ConfigurationError, UnknownNameError
from forcing_kv.wan.config import TransformerConfig

FP8 = torch.float8_e4m3fn
LARGEST = 448.0
"""The largest value of a row or token becomes this."""

PRECISIONS = ("fp8",)
"""What `precision` may be, besides None for linear layers in the dtype of the model."""

QUANTISED = (
    "self_attn.q",
    "self_attn.k",
    "self_attn.v",
    "self_attn.o",
    "cross_attn.q",
    "cross_attn.o",
    "ffn.0",
    "ffn.2",
)
"""Layers of a block that are in fp8. Keys and values of the prompt are made once per prompt and stay as they are."""

MIN_CAPABILITY = (9, 0)
"""CUDA compute capability from which torch multiplies e4m3 with scales per row: H100, H200 and newer."""

_MULTIPLE = 16


def check_precision(
    precision: str | None, config: TransformerConfig, *, dtype: torch.dtype, device: torch.device
) -> None:
    """Refuses what cannot be computed.

    Raises:
        UnknownNameError: No such precision.
        ConfigurationError: A device, dtype or size that does not go with it; the message says what does.
    """
    if precision is None:
        return
    if precision not in PRECISIONS:
        raise UnknownNameError("precision", precision, PRECISIONS)
    asked = f"precision {precision!r}"
    if not quantised_layers(config):
        raise ConfigurationError(
            f"{asked} leaves the first and the last block as they are, so {config.num_layers} layers have nothing to "
            "quantise; use 3 or more, or leave it out"
        )
    if device.type == "cpu":
        return
    if device.type != "cuda":
        raise ConfigurationError(f"{asked} is for CUDA GPUs (and, to try it, CPUs), not for {device}; leave it out")
    capability = torch.cuda.get_device_capability(device)
    if capability < MIN_CAPABILITY:
        have, need = (".".join(map(str, version)) for version in (capability, MIN_CAPABILITY))
        raise ConfigurationError(
            f"{asked} needs a GPU of compute capability {need} (H100 or newer); {torch.cuda.get_device_name(device)} "
            f"has {have}; leave it out"
        )
    if dtype != torch.bfloat16:
        name = str(dtype).removeprefix("torch.")
        raise ConfigurationError(f"{asked} gives bfloat16 on a GPU, the model is {name}; use --dtype bfloat16")
    if config.dim % _MULTIPLE or config.ffn_dim % _MULTIPLE:
        raise ConfigurationError(
            f"{asked} needs sizes that are multiples of {_MULTIPLE} on a GPU, not dim={config.dim} and "
            f"ffn_dim={config.ffn_dim}; leave it out"
        )


def quantised_layers(config: TransformerConfig) -> range:
    """The blocks whose linear layers are in fp8: all but the first and the last, which quality asks for as they are."""
    return range(1, config.num_layers - 1)


def weights_bytes(config: TransformerConfig, *, dtype: torch.dtype, precision: str | None) -> int:
    """What the weights of a whole transformer take."""
    if precision is None:
        return config.num_parameters * dtype.itemsize
    dim, ffn_dim = config.dim, config.ffn_dim
    num_quantised = len(quantised_layers(config)) * (6 * dim * dim + 2 * dim * ffn_dim)
    num_scales = len(quantised_layers(config)) * (7 * dim + ffn_dim)
    return (config.num_parameters - num_quantised) * dtype.itemsize + num_quantised + 4 * num_scales


def quantise_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """[..., values] -> numbers shaped as `x`, e4m3, and scales [..., 1], float32; their product is nearly `x`."""
    largest = torch.linalg.vector_norm(x, ord=float("inf"), dim=-1, keepdim=True, dtype=torch.float32)
    scales = largest.clamp_min(torch.finfo(torch.float32).tiny * LARGEST) / LARGEST
    return (x / scales).clamp(-LARGEST, LARGEST).to(FP8), scales


def fp8_linear(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """A linear layer.

    Args:
        x: [..., in].
        weight: e4m3 [out, in].
        scale: Of its rows, float32 [out, 1].
        bias: [out], in the dtype of `x`.

    Returns:
        [..., out], in the dtype of `x`.
    """
    numbers, scales = quantise_rows(x.flatten(0, -2))
    if x.device.type == "cuda":
        out = torch._scaled_mm(
            numbers, weight.t(), scales, scale.t(), bias=bias, out_dtype=x.dtype, use_fast_accum=True
        )
    else:
        wide = torch.float32 if x.dtype == torch.float16 else x.dtype  # float16 overflows
        product = F.linear(numbers.to(wide), weight.to(wide)).float()
        out = torch.addcmul(bias.float(), product * scales, scale.t()).to(x.dtype)
    return out.view(*x.shape[:-1], -1)


class Fp8Linear(nn.Module):
    """A linear layer in fp8; its parameters are the arguments of `fp8_linear`."""

    def __init__(self, weight: Tensor, scale: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.scale = nn.Parameter(scale, requires_grad=False)
        self.bias = nn.Parameter(bias, requires_grad=False)

    @classmethod
    @torch.no_grad()
    def of(cls, linear: nn.Linear) -> "Fp8Linear":
        """The layer, quantised; on the meta device it has the shapes only."""
        return cls(*quantise_rows(linear.weight), linear.bias.detach())

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out]."""
        return fp8_linear(x, self.weight, self.scale, self.bias)

    @torch.no_grad()
    def load_weight(self, weight: Tensor) -> None:
        """Quantises a weight [out, in], of any float dtype, into this layer."""
        numbers, scale = quantise_rows(weight.to(self.weight.device))
        self.weight.copy_(numbers)
        self.scale.copy_(scale)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """Moves the layer; a conversion to another dtype is for the bias alone."""
        weight, scale = self.weight.data, self.scale.data
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self.weight.dtype != FP8:
            self.weight.data = weight.to(self.weight.device)
        if self.scale.dtype != torch.float32:
            self.scale.data = scale.to(self.scale.device)
        return self
