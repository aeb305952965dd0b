"""What the VAE and a tiny decoder have in common: streams of them, their memory, and how reports call them."""

from typing import Any

import torch

from forcing_kv.video.decode import CompiledDecoder, StreamingVaeDecoder
from forcing_kv.video.size import DecoderSize, VaeSize
from forcing_kv.video.tiny_decoder import StreamingTinyDecoder, TinyDecoder, TinyDecoderSize

StreamingDecoder = StreamingVaeDecoder | StreamingTinyDecoder

VAE_NAME = "VAE"
"""Of the model's own decoder."""


def new_decoder(network: Any, *, compiled: CompiledDecoder | None = None) -> StreamingDecoder:
    """A decoder for one more stream.

    Args:
        network: An `AutoencoderKLWan` or a `TinyDecoder`.
        compiled: Stands in for the VAE's own decoder.
    """
    if isinstance(network, TinyDecoder):
        return StreamingTinyDecoder(network)
    return StreamingVaeDecoder(network, compiled=compiled)


def decoder_size(network: Any) -> DecoderSize:
    """What decides its memory."""
    if isinstance(network, TinyDecoder):
        return TinyDecoderSize(num_parameters=network.num_parameters)
    return VaeSize.of(network)


def decoder_dtype(network: Any) -> torch.dtype:
    """What it computes in."""
    dtype: torch.dtype = next(network.parameters()).dtype
    return dtype


def describe_decoder(network: Any) -> dict[str, Any]:
    """Which decoder, in what dtype and layout."""
    # Of a kernel of one pixel, or of one channel, both layouts are the same.
    weights = (parameter for parameter in network.parameters() if parameter.dim() > 3)
    weight = next(parameter for parameter in weights if parameter.shape[1] > 1 and parameter.shape[-1] > 1)
    return {
        "decoder": network.name if isinstance(network, TinyDecoder) else VAE_NAME,
        "decoder_dtype": str(decoder_dtype(network)).removeprefix("torch."),
        "decoder_layout": "channels-last" if weight.stride(1) == 1 else "contiguous",
    }
