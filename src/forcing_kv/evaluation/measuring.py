"""Measures a batch of videos while they stream; only values are held, and frames for a judge of whole videos."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from forcing_kv.evaluation.metrics import ChunkPair, Floats, Measured, Meter
from forcing_kv.evaluation.metrics.base import Pixels
from forcing_kv.evaluation.worlds import Judge


class Measuring:
    """The videos of one batch under one policy.

    Args:
        meters: By name of the series.
        judges: Of each video; None where nothing judges it.
    """

    def __init__(self, meters: Mapping[str, Meter], judges: Sequence[Judge | None]) -> None:
        self._meters = meters
        self._judges = judges
        self._values: list[dict[str, list[Floats]]] = [{name: [] for name in meters} for _ in judges]
        self._judged: list[list[Tensor]] = [[] for _ in judges]
        self._previous: list[Pixels | None] = [None for _ in judges]
        self._chunk_starts: list[int] = []
        self._num_frames = 0

    def add(self, frames: Tensor, latents: Tensor, *, reference: tuple[Tensor, Tensor] | None = None) -> None:
        """Measures a chunk.

        Args:
            frames: uint8 [batch, frames, H, W, 3], on the CPU.
            latents: float32 [batch, latent_frames, channels, rows, columns], on the CPU.
            reference: The same two of the reference; None if this is the reference.
        """
        for item, judge in enumerate(self._judges):
            pair = ChunkPair(
                frames=frames[item].numpy(),
                previous=self._previous[item],
                latents=latents[item].numpy(),
                reference_frames=None if reference is None else reference[0][item].numpy(),
                reference_latents=None if reference is None else reference[1][item].numpy(),
            )
            for name, meter in self._meters.items():
                self._values[item][name].append(meter(pair))
            self._previous[item] = pair.frames[-1]
            if judge is not None:
                self._judged[item].append(frames[item])
        self._chunk_starts.append(self._num_frames)
        self._num_frames += frames.shape[1]

    def finish(self) -> list[Measured]:
        """What was measured of each video, once all chunks are added."""
        return [
            Measured(
                series={name: np.concatenate(parts) for name, parts in values.items()},
                chunk_starts=tuple(self._chunk_starts),
                num_frames=self._num_frames,
                rights=None if judge is None else judge(torch.cat(judged)),
            )
            for values, judge, judged in zip(self._values, self._judges, self._judged, strict=True)
        ]
