"""Rotary position embedding over (time, row, column), in interleaved pairs.

The temporal position of a frame is its absolute index in the stream, unless the cache counts relative to the current
chunk. There is no table that could end: the angles of a chunk are computed, in float64, when the chunk begins. Rotated
keys can still be moved along the temporal axis, because turning by two angles is turning by their sum.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class RotaryTable:
    """Cosines and sines of the angles of every token.

    Attributes:
        cos: [1, tokens, 1, head_dim / 2], float32; of one token where all turn alike.
        sin: Shaped as `cos`.
    """

    cos: Tensor
    sin: Tensor

    @classmethod
    def build(
        cls,
        positions: Sequence[int],
        *,
        rows: int,
        cols: int,
        head_dim: int,
        theta: float = 10000.0,
        device: torch.device | str = "cpu",
    ) -> "RotaryTable":
        """Angles for the tokens of the frames at these temporal positions, in row-major order.

        A range of positions is counted out on the device itself, so that nothing waits for a copy from the host.
        """
        device = torch.device(device)
        # An angle is one axis' own, so cosines are taken per axis and then laid out over the grid.
        where = torch.device("cpu") if device.type == "mps" else device  # which has no float64
        temporal_dim, spatial_dim = _axis_dims(head_dim)
        axes = (
            (_on_device(positions, where), temporal_dim),
            (_on_device(range(rows), where), spatial_dim),
            (_on_device(range(cols), where), spatial_dim),
        )
        angles = [places.double()[:, None] * _frequencies(dim, theta, where) for places, dim in axes]
        return cls(
            cos=_over_grid([axis.cos().float() for axis in angles]).to(device),
            sin=_over_grid([axis.sin().float() for axis in angles]).to(device),
        )

    @cached_property
    def turns(self) -> Tensor:
        """cos + i sin, shaped as they are, complex64: pairs are turned by multiplying with it."""
        return torch.complex(self.cos, self.sin)

    def copy(self) -> "RotaryTable":
        """A table of its own, to `take` others into."""
        table = RotaryTable(cos=self.cos.clone(), sin=self.sin.clone())
        table.take(self)  # its turns, too, are there from now on
        return table

    def take(self, other: "RotaryTable") -> None:
        """Copies the angles of a table of the same shape, in place."""
        self.cos.copy_(other.cos)
        self.sin.copy_(other.sin)
        self.turns.copy_(other.turns)

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


class TemporalShift:
    """Moves rotated keys along the temporal axis; what the stream cache needs for relative positions.

    The table of a shift is made when it is first asked for, and kept: a stream in its steady state asks for one only.

    Args:
        head_dim: Values per head.
        theta: Base of the frequencies, as the keys were rotated with.
        device: Where the keys are.
    """

    def __init__(self, head_dim: int, *, theta: float = 10000.0, device: torch.device | str = "cpu") -> None:
        self._temporal_dim, _ = _axis_dims(head_dim)
        self._theta = theta
        self._device = device
        self._tables: dict[int, RotaryTable] = {}

    def shift(self, keys: Tensor, num_frames: int) -> None:
        """Turns `keys`, in place, as if their frames stood `num_frames` later; earlier, if it is negative.

        Args:
            keys: [batch, tokens, heads, head_dim]; computed in float32. Rows and columns stay as they are.
            num_frames: The same for all tokens.
        """
        if num_frames not in self._tables:
            frequencies = _frequencies(self._temporal_dim, self._theta, torch.device("cpu"))
            angles = num_frames * frequencies[None, None, None]
            self._tables[num_frames] = RotaryTable(
                cos=angles.cos().float().to(self._device), sin=angles.sin().float().to(self._device)
            )
        temporal = keys[..., : self._temporal_dim]
        temporal.copy_(self._tables[num_frames].rotate(temporal))


def _axis_dims(head_dim: int) -> tuple[int, int]:
    """Values of a head that the temporal axis turns, and those that rows and columns turn each."""
    spatial_dim = 2 * (head_dim // 6)
    return head_dim - 2 * spatial_dim, spatial_dim


def _frequencies(dim: int, theta: float, device: torch.device) -> Tensor:
    return theta ** -(torch.arange(0, dim, 2, dtype=torch.float64, device=device) / max(dim, 1))


def _on_device(positions: Sequence[int], device: torch.device) -> Tensor:
    if isinstance(positions, range):
        return torch.arange(positions.start, positions.stop, positions.step, device=device)
    return torch.tensor(list(positions), device=device)


def _over_grid(axes: Sequence[Tensor]) -> Tensor:
    """[frames, t], [rows, r] and [cols, c] -> [1, frames * rows * cols, 1, t + r + c]."""
    frames, rows, cols = axes
    grid = (len(frames), len(rows), len(cols))
    parts = (frames[:, None, None], rows[None, :, None], cols[None, None])
    return torch.cat([part.expand(*grid, -1) for part in parts], dim=-1).flatten(0, 2)[None, :, None]
