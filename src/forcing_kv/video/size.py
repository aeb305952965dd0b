"""What a Wan VAE takes, and what decoding with it takes, from its sizes alone.

Everything but the weights grows with the pixels of a picture, so two constants say it all. They are derived from
diffusers' decoder as `StreamingVaeDecoder` calls it; a dry run on the meta device checks them in the tests.
"""

from dataclasses import dataclass
from typing import Any, Protocol

import torch

_FEATURE_VALUES = 2364.5 / 96
"""Values the feature cache keeps, per pixel of a picture and channel of the decoder's last level.

Every causal convolution keeps its last 2 input frames. Of the Wan2.1 decoder (96 channels at full resolution), per
pixel: 7 convolutions of 96 channels; 6 of 192 at 1/4 of the pixels; one of 192 and 6 of 384 at 1/16; one of 16 and 11
of 384 at 1/64.
"""

_ACTIVATION_FRAMES = 424 / 96
"""Pixel frames at full resolution in one activation: 4, and a little for the pictures on their way out and because
upsampling into the last level takes slightly more where there is a batch."""


class DecoderSize(Protocol):
    """What decides the memory of a decoder; `num_pixels` are those of one picture of every batch item."""

    def weights_bytes(self, dtype: torch.dtype) -> int:
        """All weights."""
        ...

    def feature_bytes(self, num_pixels: int, dtype: torch.dtype) -> int:
        """What a stream keeps between latent frames."""
        ...

    def decode_bytes(self, num_pixels: int, dtype: torch.dtype) -> int:
        """The most that is alive at once while latent frames are decoded, what is kept between them included."""
        ...


@dataclass(frozen=True, kw_only=True)
class VaeSize:
    """What decides the memory of an `AutoencoderKLWan`.

    Attributes:
        num_parameters: Weights, encoder included.
        channels: Channels of the decoder's last level, per pixel of the picture.
    """

    num_parameters: int
    channels: float

    @classmethod
    def of(cls, vae: Any) -> "VaeSize":
        """Reads it off a diffusers `AutoencoderKLWan`."""
        config = vae.config
        channels = (config.decoder_base_dim or config.base_dim) / (config.patch_size or 1) ** 2
        if config.is_residual:  # the input of a block lives on, for its shortcut
            channels *= 1.5
        return cls(num_parameters=sum(parameter.numel() for parameter in vae.parameters()), channels=channels)

    def weights_bytes(self, dtype: torch.dtype) -> int:
        """All weights."""
        return self.num_parameters * dtype.itemsize

    def feature_bytes(self, num_pixels: int, dtype: torch.dtype) -> int:
        """The feature cache between latent frames; `num_pixels` are those of one picture of every batch item."""
        return round(num_pixels * self.channels * _FEATURE_VALUES * dtype.itemsize)

    def decode_bytes(self, num_pixels: int, dtype: torch.dtype) -> int:
        """The most that is alive at once while latent frames are decoded, feature cache included.

        On top of the features, which are overwritten one by one, come the activations of the last level: input of the
        level, residual and result, and the result normalised in float32 (2 more, widened); or, in float32 from the
        start, the three, their cached end, and the result with the cached frames before it, then padded as well.
        """
        size = dtype.itemsize
        activations = self.channels * _ACTIVATION_FRAMES * max(3 * size + 2 * 4, 6.5 * size)
        return self.feature_bytes(num_pixels, dtype) + round(num_pixels * activations)


WAN_VAE = VaeSize(num_parameters=126_892_531, channels=96)
"""The VAE of Wan2.1, which all released causal models use."""
