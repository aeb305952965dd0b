"""Whole passes as CUDA graphs: thousands of launches become one.

A graph reads and writes fixed addresses. Latents, noise level and rotary angles are copied to where it reads them; the
cache and the prompt's keys and values are read where they lie. So one graph serves every denoising pass and the commit
pass for as long as the cache lies as it does (`StreamCache.layout`): in the steady state, for ever. While the history
grows, the first pass of a chunk runs from the host, which also warms its kernels up, and the others share a capture.
"""

import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from forcing_kv.cache import StreamCache
from forcing_kv.clock import milliseconds_since
from forcing_kv.devices import synchronize
from forcing_kv.wan import Modulation, NoiseLevel, Pieces, TextMemory, TokenPositions

if TYPE_CHECKING:
    from forcing_kv.execution.passes import PassRunner

Replay = Callable[[], None]
Capture = Callable[[Callable[[], Tensor], torch.device], tuple[Replay, Tensor]]
"""Takes work and where it is done; gives what does it again, and where its result then lies."""


class GraphedPasses:
    """Replays the passes of one stream; a `PassRunner`.

    Args:
        run: Runs a pass from the host.
        capture: Of work, as a graph.

    Attributes:
        num_captures: Graphs made so far. One is alive at a time: a history that has moved on never comes back to it.
    """

    def __init__(self, run: "PassRunner", *, capture: Capture | None = None) -> None:
        self._run = run
        self._capture = cuda_capture if capture is None else capture
        self._capture_ms = 0.0
        self._key: tuple[Hashable, ...] = ()
        self._text: TextMemory | None = None
        self._graph: _Graph | None = None
        self.num_captures = 0

    @property
    def prepared_ms(self) -> float:
        """See `PassRunner`."""
        return self._run.prepared_ms + self._capture_ms

    @property
    def pieces(self) -> Pieces | None:
        """See `PassRunner`."""
        return self._run.pieces

    def __call__(
        self, latents: Tensor, level: NoiseLevel, *, text: TextMemory, positions: TokenPositions, memory: StreamCache
    ) -> Tensor:
        """See `PassRunner`."""
        layout = memory.layout()
        key = (layout, latents.shape, latents.dtype)
        if layout is None or key != self._key or text is not self._text:
            self._key, self._text, self._graph = key, text, None
            return self._run(latents, level, text=text, positions=positions, memory=memory)
        if self._graph is None:
            synchronize(latents.device)  # what is under way is no part of the capture's time
            started = time.perf_counter()
            inputs = _Inputs.like(latents, level, positions)
            replay, velocity = self._capture(
                lambda: self._run(inputs.latents, inputs.level, text=text, positions=inputs.positions, memory=memory),
                latents.device,
            )
            self._graph = _Graph(inputs=inputs, replay=replay, velocity=velocity)
            self.num_captures += 1
            self._capture_ms += milliseconds_since(started)
        self._graph.inputs.take(latents, level, positions)
        self._graph.replay()
        return self._graph.velocity


def cuda_capture(work: Callable[[], Tensor], device: torch.device) -> tuple[Replay, Tensor]:
    """Captures work on a CUDA device; nothing is computed yet."""
    graph = torch.cuda.CUDAGraph()
    # Another thread may decode the chunk before meanwhile: what it does is no part of this.
    with torch.cuda.device(device), torch.cuda.graph(graph, capture_error_mode="thread_local"):
        result = work()

    def replay() -> None:
        with torch.cuda.device(device):
            graph.replay()

    return replay, result


@dataclass(kw_only=True)
class _Inputs:
    """What a graph reads that changes from pass to pass, at addresses that stay.

    Attributes:
        latents: Of the chunk.
        level: The noise level.
        positions: Of the chunk's tokens.
        taken_positions: What `positions` is a copy of: once per chunk is enough.
    """

    latents: Tensor
    level: NoiseLevel
    positions: TokenPositions
    taken_positions: TokenPositions | None = None

    @classmethod
    def like(cls, latents: Tensor, level: NoiseLevel, positions: TokenPositions) -> "_Inputs":
        """With copies of these values."""
        embedding = positions.embedding
        return cls(
            latents=latents.clone(),
            level=NoiseLevel(
                timestep=level.timestep,
                timesteps=level.timesteps.clone(),
                modulation=Modulation(vectors=level.modulation.vectors.clone()),
            ),
            positions=TokenPositions(
                rope=positions.rope.copy(), embedding=None if embedding is None else embedding.clone()
            ),
        )

    def take(self, latents: Tensor, level: NoiseLevel, positions: TokenPositions) -> None:
        """Copies the values of a pass."""
        self.latents.copy_(latents)
        self.level.timesteps.copy_(level.timesteps)
        self.level.modulation.vectors.copy_(level.modulation.vectors)
        if positions is not self.taken_positions:
            self.positions.rope.take(positions.rope)
            if self.positions.embedding is not None and positions.embedding is not None:
                self.positions.embedding.copy_(positions.embedding)
            self.taken_positions = positions


@dataclass(frozen=True, kw_only=True)
class _Graph:
    """A captured pass: where it reads, what runs it, and where the velocity lies then."""

    inputs: _Inputs
    replay: Replay
    velocity: Tensor
