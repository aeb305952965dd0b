"""The score that tells static heads from dynamic ones, measured while a stream runs.

For every query the mass on the newest key frames is divided by the mass on all key frames but the first ones; the mean
of this ratio over queries, denoising steps, chunks and prompts is the head's score (docs/calibration.md;
arXiv 2605.09681). Heads that reach the threshold are static, the others dynamic.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor

from forcing_kv.attention.frame_mass import MAX_TEMPORARY_BYTES, frame_mass
from forcing_kv.cache import AttentionRead
from forcing_kv.calibration.observations import Observations
from forcing_kv.errors import ConfigurationError
from forcing_kv.geometry import FrameGeometry

MIN_READ_FRAMES = 12
"""Passes that read fewer frames are not measured: uniform attention over 5 frames already scores 0.8."""

DEFAULT_SINK_FRAMES = 3
DEFAULT_RECENT_FRAMES = 1


@dataclass(frozen=True, kw_only=True)
class _Measured:
    """One head group in one pass; tensors on the model's device, so that no pass waits for the host.

    Attributes:
        heads: Released numbers.
        key_frames: Absolute frames, in the order of `frame_mass`.
        scores: Mean ratio, [heads].
        variances: Of that mean, from the sample of queries, [heads].
        frame_mass: Mean over batch and queries, [heads, frames].
    """

    heads: tuple[int, ...]
    key_frames: tuple[int, ...]
    scores: Tensor
    variances: Tensor
    frame_mass: Tensor


class FrameMassObserver:
    """Measures the passes of one stream: `with cache.observed_by(observer)`, around the stream from its first chunk on.

    It needs the full cache, and nothing of the model: whatever transformer calls `StreamCache.attend` can be measured.
    The passes over a chunk are counted from 0 as they come: the denoising steps in order, then the commit pass.

    Args:
        geometry: Of the stream.
        steps: Passes that are measured, in every chunk that is.
        chunks: Chunks that are measured, by index; None for all that read enough frames.
        sink_frames: First frames of the stream that are left out of the ratio.
        recent_frames: History frames that count as newest, beside the current chunk.
        max_queries: Queries that are measured per pass and layer, drawn without replacement; None takes all.
        seed: Of that draw.
        max_bytes: As in `frame_mass`.

    Raises:
        ConfigurationError: A setting out of range.
    """

    def __init__(
        self,
        geometry: FrameGeometry,
        *,
        steps: Collection[int],
        chunks: Collection[int] | None = None,
        sink_frames: int = DEFAULT_SINK_FRAMES,
        recent_frames: int = DEFAULT_RECENT_FRAMES,
        max_queries: int | None = None,
        seed: int = 0,
        max_bytes: int = MAX_TEMPORARY_BYTES,
    ) -> None:
        check_max_queries(max_queries)
        self._least_frames = least_read_frames(
            chunk_frames=geometry.chunk_frames, sink_frames=sink_frames, recent_frames=recent_frames
        )
        self._geometry = geometry
        self._steps = tuple(sorted(set(steps)))
        self._chunks = None if chunks is None else frozenset(chunks)
        self._sink_frames = sink_frames
        self._recent_frames = recent_frames
        self._max_queries = max_queries
        self._max_bytes = max_bytes
        self._generator = torch.Generator().manual_seed(seed)
        self._passes: dict[tuple[int, tuple[int, ...]], tuple[int, int]] = {}
        self._measured: dict[tuple[int, int, int], list[_Measured]] = {}

    @property
    def settings(self) -> dict[str, Any]:
        """What decides the numbers, as JSON can hold it."""
        return {
            "sink_frames": self._sink_frames,
            "recent_frames": self._recent_frames,
            "chunk_frames": self._geometry.chunk_frames,
            "max_queries": self._max_queries,
        }

    @torch.no_grad()
    def observe(self, read: AttentionRead) -> None:
        """See `AttentionObserver.observe`.

        Raises:
            ConfigurationError: The cache has dropped frames.
        """
        chunk = read.first_frame // self._geometry.chunk_frames
        step = self._count_pass(read, chunk)
        is_asked_for = step in self._steps and (self._chunks is None or chunk in self._chunks)
        if not is_asked_for or len(read.key_frames) < self._least_frames:
            return
        last_frame = read.first_frame + self._geometry.chunk_frames
        if sorted(read.key_frames) != list(range(last_frame)):
            raise ConfigurationError(
                f"chunk {chunk} reads {len(read.key_frames)} of the {last_frame} frames so far: head roles are "
                "measured under the full cache (policy 'full'), without a change of prompt"
            )
        self._measured.setdefault((chunk, step, read.layer), []).append(self._measure(read))

    def observations(self, *, prompt: str, seed: int, **settings: Any) -> Observations:
        """What was seen.

        Args:
            prompt: Of the stream.
            seed: Of the stream.
            **settings: What else a reader of the numbers wants to know: `model`, ... ; as JSON can hold it.

        Raises:
            ConfigurationError: No chunk read enough frames, or a pass or layer is missing.
        """
        chunks = sorted({chunk for chunk, _, _ in self._measured})
        geometry, sink_frames = self._geometry, self._sink_frames
        if not chunks:
            least = -(-self._least_frames // geometry.chunk_frames)
            raise ConfigurationError(
                f"no pass was measured: make at least {least} chunks, observed from the first on, with steps "
                f"{list(self._steps)} among their passes"
            )
        num_layers, num_heads = geometry.num_layers, geometry.num_heads
        distances = range(sink_frames - chunks[-1] * geometry.chunk_frames, geometry.chunk_frames)
        scores = torch.zeros(1, len(chunks), len(self._steps), num_layers, num_heads)
        standard_errors = torch.zeros_like(scores)
        sink_mass = torch.zeros(num_layers, num_heads, sink_frames, dtype=torch.float64)
        distance_mass = torch.zeros(num_layers, num_heads, len(distances), dtype=torch.float64)
        num_added = torch.zeros(len(distances))
        for (chunk_at, chunk), (step_at, step) in product(enumerate(chunks), enumerate(self._steps)):
            num_frames = (chunk + 1) * geometry.chunk_frames
            num_added[sink_frames - num_frames :] += 1
            for layer in range(num_layers):
                for part in self._parts(chunk, step, layer):
                    heads = list(part.heads)
                    in_time = part.frame_mass.cpu().double()[:, _order(part.key_frames)]
                    scores[0, chunk_at, step_at, layer, heads] = part.scores.cpu()
                    standard_errors[0, chunk_at, step_at, layer, heads] = part.variances.cpu().sqrt()
                    sink_mass[layer, heads] += in_time[:, :sink_frames]
                    distance_mass[layer, heads, sink_frames - num_frames :] += in_time[:, sink_frames:]
        return Observations(
            scores=scores,
            standard_errors=standard_errors,
            distance_mass=(distance_mass / num_added).float(),
            distances=tuple(distances),
            sink_mass=(sink_mass / (len(chunks) * len(self._steps))).float(),
            prompts=(prompt,),
            seeds=(seed,),
            chunks=tuple(chunks),
            steps=self._steps,
            settings={**self.settings, **settings},
        )

    def _count_pass(self, read: AttentionRead, chunk: int) -> int:
        """Number of this pass over the chunk, for these heads."""
        last_chunk, last_step = self._passes.get((read.layer, read.heads), (chunk, -1))
        step = last_step + 1 if chunk == last_chunk else 0
        self._passes[read.layer, read.heads] = chunk, step
        return step

    def _measure(self, read: AttentionRead) -> _Measured:
        q = self._drawn(read.q)
        masses = frame_mass(q, read.k, frame_tokens=self._geometry.frame_tokens, max_bytes=self._max_bytes)
        newest_from = read.first_frame - self._recent_frames
        columns = torch.tensor(
            [[float(frame >= newest_from), float(frame >= self._sink_frames)] for frame in read.key_frames]
        )
        newest, counted = (masses @ columns.to(masses.device, non_blocking=True)).unbind(-1)
        # A query that reads nothing but the first frames counts 0: it is no evidence that the head is static.
        ratios = newest / counted.clamp_min(torch.finfo(torch.float32).tiny)
        return _Measured(
            heads=read.heads,
            key_frames=read.key_frames,
            scores=ratios.mean(dim=(0, 1)),
            variances=_variance_of_mean(ratios, num_tokens=read.q.shape[1]),
            frame_mass=masses.mean(dim=(0, 1)),
        )

    def _drawn(self, q: Tensor) -> Tensor:
        num_tokens = q.shape[1]
        if self._max_queries is None or self._max_queries >= num_tokens:
            return q
        drawn = torch.randperm(num_tokens, generator=self._generator)[: self._max_queries].sort().values
        return q.index_select(1, drawn.to(q.device, non_blocking=True))

    def _parts(self, chunk: int, step: int, layer: int) -> list[_Measured]:
        parts = self._measured.get((chunk, step, layer))
        if parts is None:
            raise ConfigurationError(
                f"layer {layer} made no pass {step} over chunk {chunk}: name only passes that every layer makes over "
                "every chunk"
            )
        return parts


def least_read_frames(*, chunk_frames: int, sink_frames: int, recent_frames: int) -> int:
    """Frames that a chunk must read to be measured: 12, or one more than are newest or skipped.

    Raises:
        ConfigurationError: A count below 0.
    """
    for name, value in (("sink_frames", sink_frames), ("recent_frames", recent_frames)):
        if value < 0:
            raise ConfigurationError(f"{name}={value} must be at least 0")
    return max(MIN_READ_FRAMES, sink_frames + recent_frames + chunk_frames + 1)


def least_chunks(*, chunk_frames: int, sink_frames: int, recent_frames: int) -> int:
    """Length of the shortest video in which a chunk is measured."""
    least = least_read_frames(chunk_frames=chunk_frames, sink_frames=sink_frames, recent_frames=recent_frames)
    return -(-least // chunk_frames)


def check_max_queries(max_queries: int | None) -> None:
    """Raises `ConfigurationError` for a sample whose error could not be told."""
    if max_queries is not None and max_queries < 2:
        raise ConfigurationError(f"max_queries={max_queries} must be at least 2: a single query has no spread")


def _variance_of_mean(ratios: Tensor, *, num_tokens: int) -> Tensor:
    """Variance of the mean of a sample drawn without replacement.

    Args:
        ratios: [batch, drawn, heads]; every item of the batch is a population of its own.
        num_tokens: Size of the population.

    Returns:
        [heads]; 0 where all were drawn.
    """
    batch_size, num_drawn, num_heads = ratios.shape
    if num_drawn == num_tokens:
        return ratios.new_zeros(num_heads)
    by_item = ratios.var(dim=1) / num_drawn * (1 - num_drawn / num_tokens)
    return by_item.sum(dim=0) / batch_size**2


def _order(key_frames: Sequence[int]) -> list[int]:
    """Where the frames lie, in temporal order."""
    return sorted(range(len(key_frames)), key=key_frames.__getitem__)
