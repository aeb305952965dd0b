"""Streaming encode with diffusers' `AutoencoderKLWan`: the mirror of `decode`.

The Wan VAE's encoder is causal too: it takes the first picture alone and then four at a time, and needs of the pictures
before them only what its causal convolutions saw. Kept here, per video, that lets a video of any length be encoded in
the memory of a few pictures, with the same result as encoding everything at once.
"""

from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from forcing_kv.errors import ConfigurationError
from forcing_kv.geometry import TEMPORAL_STRIDE
from forcing_kv.video.decode import latent_statistics, num_feature_slots

if TYPE_CHECKING:
    from diffusers import AutoencoderKLWan


class StreamingVaeEncoder:
    """Encodes the pixel frames of one video (or one batch of videos), in order, a few at a time.

    The VAE itself is only read: any number of encoders and decoders may share one.
    """

    def __init__(self, vae: "AutoencoderKLWan") -> None:
        """Start a fresh stream.

        Args:
            vae: A Wan2.1-like or Wan2.2-like VAE (plain or residual encoder), on its device and in its dtype.

        Raises:
            ConfigurationError: The VAE can only decode.
        """
        self._vae = cast(Any, vae)  # the library's attributes carry no types
        if getattr(self._vae, "encoder", None) is None:
            raise ConfigurationError(
                "the VAE of this model has no encoder, so that no video can be turned into latents: continue from "
                "latents instead (--save-latents keeps them)"
            )
        parameter = next(self._vae.parameters())
        self._device, self._dtype = parameter.device, parameter.dtype
        self._mean, self._std = latent_statistics(self._vae)
        self._features: list[Tensor | None] = [None] * num_feature_slots(self._vae.encoder)
        self._picture_shape: tuple[int, int, int] | None = None  # batch, height and width of the stream

    @property
    def nbytes(self) -> int:
        """Bytes held by the feature cache."""
        return sum(feature.nbytes for feature in self._features if feature is not None)

    @torch.no_grad()
    def encode(self, frames: Tensor) -> Tensor:
        """Encode the next pixel frames of the stream.

        Args:
            frames: [B, T, H, W, 3], uint8, RGB, on any device. T is a positive multiple of 4, less 3 at the start of
                the stream (the first picture is a latent frame of its own).

        Returns:
            The posterior's mean, standardised (mean 0 and deviation 1 per channel, as the transformer makes latents):
            [B, F, C, h, w], float32, on the VAE's device.

        Raises:
            ConfigurationError: Frames of another shape than the VAE takes, or than the frames before them.
        """
        self._check(frames)
        features = list(self._features)  # committed at the end: an interrupted call leaves the stream as it was
        latents = []
        for pictures in frames.split_with_sizes(self._group_sizes(frames.shape[1]), dim=1):
            pixels = pictures.to(self._device).permute(0, 4, 1, 2, 3).float().div(127.5).sub(1.0)
            hidden = self._vae.encoder(self._patchify(pixels.to(self._dtype)), feat_cache=features, feat_idx=[0])
            mean = self._vae.quant_conv(hidden).chunk(2, dim=1)[0]  # the other half is the log variance
            latents.append(((mean.float() - self._mean) / self._std).transpose(1, 2))
        self._features = features
        self._picture_shape = _picture_shape(frames)
        return torch.cat(latents, dim=1)

    def _group_sizes(self, num_frames: int) -> list[int]:
        """Pictures per latent frame."""
        first = [1] if self._picture_shape is None else []
        return first + [TEMPORAL_STRIDE] * ((num_frames - len(first)) // TEMPORAL_STRIDE)

    def _check(self, frames: Tensor) -> None:
        config = self._vae.config
        stride = (config.patch_size or 1) * 2 ** (len(config.dim_mult) - 1)
        if (
            frames.ndim != 5
            or frames.shape[4] != 3
            or frames.dtype != torch.uint8
            or not all(side and side % stride == 0 for side in frames.shape[2:4])
        ):
            raise ConfigurationError(
                f"frames of shape {tuple(frames.shape)} and {frames.dtype} cannot be encoded: the VAE takes [batch, "
                f"frames, height, width, 3] of torch.uint8, with height and width in multiples of {stride}"
            )
        num_frames = frames.shape[1]
        if num_frames < 1 or num_frames != sum(self._group_sizes(num_frames)):
            raise ConfigurationError(
                f"{num_frames} frames make no whole latent frames: give a multiple of {TEMPORAL_STRIDE}, and "
                f"{TEMPORAL_STRIDE - 1} fewer at the start of a video"
            )
        if self._picture_shape not in (None, _picture_shape(frames)):
            raise ConfigurationError(
                f"frames of batch, height, width {_picture_shape(frames)} do not continue a stream of "
                f"{self._picture_shape}: make one encoder per video"
            )

    def _patchify(self, pixels: Tensor) -> Tensor:
        """Fold pixels into channels for a Wan2.2-like VAE: [B, 3, T, H, W] to [B, 3 p p, T, H/p, W/p]."""
        patch = self._vae.config.patch_size
        if patch is None or patch == 1:
            return pixels
        batch, channels, num_frames, height, width = pixels.shape
        # The column of the patch comes before its row in the channel axis: the order of the checkpoint.
        pixels = pixels.reshape(batch, channels, num_frames, height // patch, patch, width // patch, patch)
        return pixels.permute(0, 1, 6, 4, 2, 3, 5).reshape(batch, -1, num_frames, height // patch, width // patch)


def _picture_shape(frames: Tensor) -> tuple[int, int, int]:
    batch, _, height, width, _ = frames.shape
    return batch, height, width
