"""What noise levels do to a pass: shift, scale and gate of every block and of the head.

They depend on the noise level alone, so a sampler's few levels are worked out once per stream and serve every chunk.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

BLOCK_VECTORS = 6
"""Per block: shift, scale and gate of self-attention, then of the feed-forward network."""

HEAD_VECTORS = 2
"""Shift and scale before the last layer."""


@dataclass(frozen=True, kw_only=True)
class Modulation:
    """The vectors of a whole pass.

    Attributes:
        vectors: [num_layers * BLOCK_VECTORS + HEAD_VECTORS, dim] where all tokens share a noise level, else
            [..., batch, frames, 1, dim]. 1 has been added to scales.
    """

    vectors: Tensor

    def of_block(self, layer: int) -> Tensor:
        """[BLOCK_VECTORS, dim], or [BLOCK_VECTORS, batch, frames, 1, dim]."""
        return self.vectors[layer * BLOCK_VECTORS : (layer + 1) * BLOCK_VECTORS]

    def of_head(self) -> Tensor:
        """[HEAD_VECTORS, ...], as `of_block`."""
        return self.vectors[-HEAD_VECTORS:]


@dataclass(frozen=True, kw_only=True)
class NoiseLevel:
    """A noise level that all frames of a pass have.

    Attributes:
        timestep: In 0 .. 1000.
        timesteps: The same as a tensor [1, 1], float32, on the model's device.
        modulation: What it does.
    """

    timestep: float
    timesteps: Tensor
    modulation: Modulation


def timestep_sinusoid(timesteps: Tensor, dim: int) -> Tensor:
    """Sinusoidal embedding, cosines first: [...] -> [..., dim], float32, computed in float64."""
    half = dim // 2
    frequencies = 10000.0 ** -(torch.arange(half, dtype=torch.float64, device=timesteps.device) / half)
    angles = timesteps.double()[..., None] * frequencies
    return torch.cat((angles.cos(), angles.sin()), dim=-1).float()


def level_bytes(num_layers: int, dim: int, dtype: torch.dtype) -> int:
    """What the vectors of one noise level take."""
    return (num_layers * BLOCK_VECTORS + HEAD_VECTORS) * dim * dtype.itemsize
