"""Where a token stands in the picture and how near the start of the stream, as numbers a model can read.

Rotary embedding tells distances only. On the large grids of the released models that is enough; a very small model can
be told where its tokens stand besides, as image-to-video Wan is told things by constant extra channels.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

_HARMONICS = (1, 2)
_DECAY_FRAMES = (2.0, 8.0)

NUM_COORDINATES = 2 * (1 + 2 * len(_HARMONICS)) + len(_DECAY_FRAMES)
"""Numbers per token."""


def coordinates(positions: Sequence[int], *, rows: int, cols: int) -> Tensor:
    """Coordinates of the tokens of some frames.

    Args:
        positions: temporal position of each frame.
        rows: tokens along the height.
        cols: tokens along the width.

    Returns:
        float32 [1, frames * rows * cols, NUM_COORDINATES], row-major: for height and width the distance from the middle
        in -1..1 with its sines and cosines, and two numbers that fall from 1 to 0 as the stream goes on.
    """
    start = torch.stack([(-torch.tensor(list(positions)) / decay).exp() for decay in _DECAY_FRAMES], dim=-1)
    return torch.cat(
        [
            start[:, None, None].expand(-1, rows, cols, -1),
            _axis(rows)[None, :, None].expand(len(start), -1, cols, -1),
            _axis(cols)[None, None].expand(len(start), rows, -1, -1),
        ],
        dim=-1,
    ).flatten(0, 2)[None]


def _axis(num: int) -> Tensor:
    """[num, 1 + 2 * harmonics]."""
    along = (2 * torch.arange(num) + 1) / num - 1
    waves = [wave(math.pi * harmonic * along) for harmonic in _HARMONICS for wave in (torch.sin, torch.cos)]
    return torch.stack([along, *waves], dim=-1)
