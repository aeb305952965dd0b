"""Models at their true shapes without their weights: what they cost does not depend on the values."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from forcing_kv.heads import HeadMap
from forcing_kv.models import ModelPreset
from forcing_kv.models.components import channels_last
from forcing_kv.pipeline import VideoPipeline
from forcing_kv.video import DecoderOptions
from forcing_kv.wan import CausalWanTransformer, TransformerConfig


class RandomPrompts:
    """A text encoder's stand-in: states of the right shape, the same for every text."""

    def __init__(self, config: TransformerConfig, *, device: torch.device, dtype: torch.dtype) -> None:
        states = torch.randn(1, config.text_len, config.text_dim, generator=torch.Generator().manual_seed(0))
        self._states = states.to(device, dtype)

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """See `PromptEncoder`."""
        return self._states.expand(len(texts), -1, -1)

    def bytes_on(self, device: torch.device) -> int:
        """See `PromptEncoder.bytes_on`; nothing can be freed."""
        return 0

    def release(self) -> None:
        """See `PromptEncoder.release`; nothing can be freed."""

    def forget(self) -> None:
        """See `PromptEncoder.forget`; nothing is remembered."""


def random_pipeline(
    preset: ModelPreset,
    config: TransformerConfig,
    *,
    head_map: HeadMap | None,
    device: torch.device,
    dtype: torch.dtype,
    precision: str | None = None,
    with_vae: bool,
    decoding: DecoderOptions = DecoderOptions(),
) -> VideoPipeline:
    """A model of random weights, built where it runs, without a text encoder.

    Args:
        preset: How it is sampled.
        config: Sizes of its transformer.
        head_map: Roles of its heads.
        device: Where it runs.
        dtype: Of all weights.
        precision: Of the linear layers; None for `dtype`.
        with_vae: Whether it has the VAE of Wan2.1, or gives latents only.
        decoding: Dtype and layout of the VAE, whether it is compiled, and whether it is overlapped.
    """
    transformer = random_transformer(config, device=device, dtype=dtype, precision=precision)
    return VideoPipeline(
        preset=preset,
        transformer=transformer,
        encode_prompt=RandomPrompts(config, device=device, dtype=dtype),
        vae=_random_vae(device, dtype, decoding) if with_vae else None,
        head_map=head_map,
        weights="random",
        decoding=decoding,
    )


@contextmanager
def built_on(device: torch.device | str, dtype: torch.dtype) -> Iterator[None]:
    """Modules made in the block have their weights there, in this dtype, from the first on."""
    previous = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            yield
    finally:
        torch.set_default_dtype(previous)


def random_transformer(
    config: TransformerConfig, *, device: torch.device | str, dtype: torch.dtype, precision: str | None = None
) -> CausalWanTransformer:
    """A transformer of this size, always with the same weights on one kind of device."""
    torch.manual_seed(0)
    with built_on(device, dtype):
        transformer = CausalWanTransformer(config).requires_grad_(False).eval()
    if precision is not None:
        transformer.quantise_linears()
    transformer.join_projections()
    return transformer


def _random_vae(device: torch.device, dtype: torch.dtype, decoding: DecoderOptions) -> Any:
    from diffusers import AutoencoderKLWan

    with built_on(device, decoding.dtype_beside(dtype, device)):
        vae: Any = AutoencoderKLWan()
    vae = vae.requires_grad_(False).eval()
    return channels_last(vae) if decoding.is_channels_last(device) else vae
