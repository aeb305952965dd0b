"""Rotary position embedding over (time, row, column), in interleaved pairs.

The temporal position is the absolute latent frame index of the stream. There is no table that could end: the angles of
a chunk are computed, in float64, when the chunk begins.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class RotaryTable:
    """Cosines and sines of the angles of every token.

    Attributes:
        cos: [1, tokens, 1, head_dim / 2], float32.
        sin: Shaped as `cos`.
    """

    cos: Tensor
    sin: Tensor

    @classmethod
    def build(
        cls,
        frames: Sequence[int],
        *,
        rows: int,
        cols: int,
        head_dim: int,
        theta: float = 10000.0,
        device: torch.device | str = "cpu",
    ) -> "RotaryTable":
        """Angles for the tokens of `frames` (absolute latent frame indices), in row-major order.

        Of `head_dim` values the row and column axes turn 2 * (head_dim // 6) each, the temporal axis the rest.
        """
        spatial_dim = 2 * (head_dim // 6)
        axes = (
            (torch.tensor(list(frames)), head_dim - 2 * spatial_dim),
            (torch.arange(rows), spatial_dim),
            (torch.arange(cols), spatial_dim),
        )
        grid = torch.meshgrid(*(positions for positions, _ in axes), indexing="ij")
        angles = torch.cat(
            [
                position.flatten().double()[:, None] * _frequencies(dim, theta)
                for position, (_, dim) in zip(grid, axes, strict=True)
            ],
            dim=-1,
        )
        return cls(
            cos=angles.cos().float()[None, :, None].to(device),
            sin=angles.sin().float()[None, :, None].to(device),
        )

    def rotate(self, x: Tensor) -> Tensor:
        """Turns each pair (x[2j], x[2j+1]) by the token's angle.

        Args:
            x: [batch, tokens, heads, head_dim].

        Returns:
            The same shape and dtype; computed in float32.
        """
        even, odd = x.float().reshape(*x.shape[:-1], -1, 2).unbind(-1)
        rotated = torch.stack((even * self.cos - odd * self.sin, even * self.sin + odd * self.cos), dim=-1)
        return rotated.flatten(-2).to(x.dtype)


def _frequencies(dim: int, theta: float) -> Tensor:
    return theta ** -(torch.arange(0, dim, 2, dtype=torch.float64) / max(dim, 1))
