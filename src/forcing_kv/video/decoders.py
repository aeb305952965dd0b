"""A loaded decoder, the model's VAE or a tiny one: streams of it, its memory, and what reports say of it."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from forcing_kv.video.decode import StreamingVaeDecoder, compiled_decoder
from forcing_kv.video.size import DecoderSize, VaeSize
from forcing_kv.video.tiny_decoder import StreamingTinyDecoder, TinyDecoder, TinyDecoderSize

StreamingDecoder = StreamingVaeDecoder | StreamingTinyDecoder

VAE_NAME = "VAE"
"""Of the model's own decoder."""


@dataclass(frozen=True, kw_only=True, eq=False)
class LoadedDecoder:
    """A network that turns latents into pixels; any number of streams share it.

    Attributes:
        name: In reports.
        network: On its device and in its dtype.
        size: What decides its memory.
        new_stream: A decoder for one more stream.
        is_compiled: Whether it goes through `torch.compile`.
    """

    name: str
    network: Any
    size: DecoderSize
    new_stream: Callable[[], StreamingDecoder]
    is_compiled: bool = False

    @property
    def dtype(self) -> torch.dtype:
        """What it computes in."""
        dtype: torch.dtype = next(self.network.parameters()).dtype
        return dtype

    @property
    def is_channels_last(self) -> bool:
        """How its weights lie in memory."""
        # Of a kernel of one pixel, or of one channel, both layouts are the same.
        weights = (parameter for parameter in self.network.parameters() if parameter.dim() > 3)
        weight = next(parameter for parameter in weights if parameter.shape[1] > 1 and parameter.shape[-1] > 1)
        return bool(weight.stride(1) == 1)

    def settings(self) -> dict[str, Any]:
        """What reports say of it."""
        return {
            "decoder": self.name,
            "decoder_dtype": str(self.dtype).removeprefix("torch."),
            "decoder_layout": "channels-last" if self.is_channels_last else "contiguous",
            "decoder_compiled": self.is_compiled,
        }


def vae_decoder(vae: Any, *, compiled: bool = False) -> LoadedDecoder:
    """That of diffusers' `AutoencoderKLWan`.

    Args:
        vae: On its device and in its dtype.
        compiled: Whether it goes through `torch.compile`, once for all streams, when it is first called.
    """
    shared = compiled_decoder(vae) if compiled else None
    return LoadedDecoder(
        name=VAE_NAME,
        network=vae,
        size=VaeSize.of(vae),
        new_stream=partial(StreamingVaeDecoder, vae, compiled=shared),
        is_compiled=compiled,
    )


def tiny_decoder(network: TinyDecoder) -> LoadedDecoder:
    """One that stands in for the VAE's."""
    return LoadedDecoder(
        name=network.name,
        network=network,
        size=TinyDecoderSize(num_parameters=network.num_parameters),
        new_stream=partial(StreamingTinyDecoder, network),
    )
