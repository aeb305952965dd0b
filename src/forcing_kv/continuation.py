"""Latents that a video goes on from.

A stream takes given latents in place of those it would make: whole chunks of them, one video for each batch item. What
a user gives is brought into that form here, or refused.
"""

import torch
from torch import Tensor

from forcing_kv.errors import ConfigurationError
from forcing_kv.resolution import PIXELS_PER_LATENT, check_resolution


def given_latents(
    latents: Tensor,
    *,
    batch_size: int,
    chunk_frames: int,
    num_channels: int,
    resolution: tuple[int, int] | None = None,
) -> Tensor:
    """Brings given latents into the form a stream takes.

    Args:
        latents: [frames, channels, height, width], or with a batch axis in front, standardised, any float dtype.
        batch_size: Videos made together; a single given video serves all.
        chunk_frames: Latent frames of a chunk. Frames behind the last whole chunk are left out.
        num_channels: Channels of the model's latents.
        resolution: Width and height in pixels that were asked for; None for the latents' own.

    Returns:
        [batch_size, frames, channels, height, width], float32, whole chunks, at least one.

    Raises:
        ConfigurationError: Latents that do not fit the model or the resolution, are too few, or are not finite.
    """
    shape = tuple(latents.shape)
    if latents.ndim not in (4, 5) or not latents.is_floating_point():
        raise ConfigurationError(
            f"latents of shape {shape} and {latents.dtype} cannot be continued: give floats of [frames, "
            f"{num_channels}, height, width], with or without a batch axis in front"
        )
    if shape[-3] != num_channels:
        raise ConfigurationError(
            f"latents of {shape[-3]} channels do not fit this model, whose latents have {num_channels}: go on with the "
            "model that made them, or from their video"
        )
    own_resolution = latents_resolution(latents)
    check_resolution(*own_resolution)
    if resolution not in (None, own_resolution):
        raise ConfigurationError(
            f"latents of {_size(own_resolution)} pixels cannot be continued at {_size(resolution)}: ask for "
            f"{_size(own_resolution)}, or for no resolution"
        )
    videos = latents if latents.ndim == 5 else latents[None]
    if len(videos) not in (1, batch_size):
        raise ConfigurationError(
            f"latents of {len(videos)} videos cannot be continued by {batch_size} videos: give one for all or one each"
        )
    num_frames = videos.shape[1] - videos.shape[1] % chunk_frames
    if not num_frames:
        raise ConfigurationError(
            f"{videos.shape[1]} latent frames are too few to be continued: a chunk of {chunk_frames} is the least"
        )
    videos = videos[:, :num_frames].float()
    if not torch.isfinite(videos).all():
        raise ConfigurationError("latents that are not all finite numbers cannot be continued: make them again")
    return videos.expand(batch_size, *videos.shape[1:])


def latents_resolution(latents: Tensor) -> tuple[int, int]:
    """Width and height in pixels of latents [..., height, width]."""
    height, width = latents.shape[-2:]
    return width * PIXELS_PER_LATENT, height * PIXELS_PER_LATENT


def _size(resolution: tuple[int, int] | None) -> str:
    return "x".join(map(str, resolution or ()))
