"""Head roles from attention mass: whether a head looks at the newest frames or further back.

The model runs with a full cache and exact softmax. For every query the mass on the newest key frames is divided by the
mass on all key frames but the first ones; the mean of this ratio over queries, denoising passes, chunks and prompts is
the head's score (DESIGN, section 3; arXiv 2605.09681). Heads that reach the threshold are static, the others dynamic.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from forcing_kv.errors import ConfigurationError
from forcing_kv.heads import DEFAULT_THRESHOLD, HeadMap
from forcing_kv.pipeline import VideoPipeline
from forcing_kv.sampling import SeededNoise

MIN_READ_FRAMES = 12
"""Passes that read fewer frames are not measured: uniform attention over 5 frames already scores 0.8."""


class FrameMassMemory:
    """A full cache that attends with an explicit softmax and adds up the score ratios of the passes it is told to.

    Args:
        num_layers: Layers of the model.
        frame_tokens: Tokens per latent frame.
        sink_frames: First frames left out of the ratio.
        newest_frames: Key frames, the current chunk included, whose mass is the ratio's numerator.
    """

    def __init__(self, *, num_layers: int, frame_tokens: int, sink_frames: int, newest_frames: int) -> None:
        self.measuring = False
        self._skip_tokens = sink_frames * frame_tokens
        self._newest_tokens = newest_frames * frame_tokens
        self._history: list[tuple[Tensor, Tensor] | None] = [None] * num_layers
        self._current: list[tuple[Tensor, Tensor] | None] = [None] * num_layers
        self._sums: list[Tensor | None] = [None] * num_layers
        self._num_measured = [0] * num_layers

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention to everything committed and to the chunk itself; all [batch, tokens, heads, head_dim]."""
        self._current[layer] = (k, v)
        history = self._history[layer]
        if history is not None:
            k, v = torch.cat((history[0], k), dim=1), torch.cat((history[1], v), dim=1)
        scores = torch.einsum("bqhd,bkhd->bhqk", q.float(), k.float()) * q.shape[-1] ** -0.5
        weights = scores.softmax(dim=-1)
        if self.measuring:
            self._measure(layer, weights)
        return torch.einsum("bhqk,bkhd->bqhd", weights, v.float()).to(q.dtype)

    def commit(self) -> None:
        """Make the chunk of the last pass history."""
        for layer, current in enumerate(self._current):
            assert current is not None
            history = self._history[layer]
            self._history[layer] = (
                current
                if history is None
                else (torch.cat((history[0], current[0]), dim=1), torch.cat((history[1], current[1]), dim=1))
            )

    def scores(self) -> list[list[float]]:
        """Mean ratio so far, [layer][place of the head].

        Raises:
            ConfigurationError: If no pass was measured.
        """
        rows = []
        for total, count in zip(self._sums, self._num_measured, strict=True):
            if total is None:
                raise ConfigurationError("no pass was measured; run more chunks")
            rows.append((total / count).tolist())
        return rows

    def _measure(self, layer: int, weights: Tensor) -> None:
        """weights [batch, heads, queries, keys]."""
        newest = weights[..., -self._newest_tokens :].sum(dim=-1)
        counted = weights[..., self._skip_tokens :].sum(dim=-1)
        ratio = newest / counted.clamp_min(torch.finfo(torch.float32).tiny)
        total = ratio.sum(dim=(0, 2), dtype=torch.float64).cpu()
        previous = self._sums[layer]
        self._sums[layer] = total if previous is None else previous + total
        self._num_measured[layer] += ratio.shape[0] * ratio.shape[2]


@torch.no_grad()
def measure_frame_mass(
    pipeline: VideoPipeline,
    prompts: Sequence[str],
    *,
    num_chunks: int,
    seed: int = 0,
    sink_frames: int = 3,
    recent_frames: int = 1,
    threshold: float = DEFAULT_THRESHOLD,
) -> HeadMap:
    """Measure the head map of a model at its own resolution.

    Args:
        pipeline: The model.
        prompts: One video each, made together.
        num_chunks: Length of each video; chunks that read at least 12 frames are measured.
        seed: Of the first video's noise.
        sink_frames: First frames left out of the ratio.
        recent_frames: History frames that count as newest, beside the current chunk.
        threshold: Score from which a head is static.

    Raises:
        ConfigurationError: If the videos are too short for a single measured pass.
    """
    geometry, sampler, transformer = pipeline.geometry(), pipeline.preset.sampler, pipeline.transformer
    chunk_frames = geometry.chunk_frames
    if num_chunks * chunk_frames < MIN_READ_FRAMES:
        raise ConfigurationError(
            f"{num_chunks} chunks of {chunk_frames} frames never read {MIN_READ_FRAMES} frames; "
            f"use at least {-(-MIN_READ_FRAMES // chunk_frames)}"
        )
    memory = FrameMassMemory(
        num_layers=geometry.num_layers,
        frame_tokens=geometry.frame_tokens,
        sink_frames=sink_frames,
        newest_frames=recent_frames + chunk_frames,
    )
    text = transformer.encode_text(pipeline.encode_prompt(prompts))
    _, patch_rows, patch_cols = transformer.config.patch_size
    rows, cols = geometry.frame_rows, geometry.frame_cols
    shape = (len(prompts), chunk_frames, transformer.config.in_dim, rows * patch_rows, cols * patch_cols)
    noise = SeededNoise(seed, shape, device=pipeline.device)
    for chunk in range(num_chunks):
        frames = range(chunk * chunk_frames, (chunk + 1) * chunk_frames)
        rope = transformer.rope(frames, rows, cols)

        def predict_velocity(latents: Tensor, timestep: float, rope: Any = rope) -> Tensor:
            timesteps = torch.full(latents.shape[:2], timestep, device=latents.device)
            velocity: Tensor = transformer(latents, timesteps, text=text, rope=rope, memory=memory)
            return velocity

        memory.measuring = frames.stop >= MIN_READ_FRAMES
        clean = sampler.sample(noise.draw(), predict_velocity, noise.draw)
        memory.measuring = False
        predict_velocity(clean, sampler.context_noise)
        memory.commit()
    return HeadMap.from_scores(
        _as_numbered(memory.scores(), transformer.head_order),
        model=pipeline.preset.name,
        threshold=threshold,
        provenance={
            "method": "frame mass: newest key frames over all but the first, mean over queries of denoising passes",
            "prompts": list(prompts),
            "seed": seed,
            "num_chunks": num_chunks,
            "sink_frames": sink_frames,
            "newest_frames": recent_frames + chunk_frames,
            "min_read_frames": MIN_READ_FRAMES,
        },
    )


def _as_numbered(scores: list[list[float]], head_order: Sequence[Sequence[int]]) -> list[list[float]]:
    """From the place where a head lies now to the head's own number; rounded for the file."""
    return [
        [round(row[list(order).index(head)], 4) for head in range(len(row))]
        for row, order in zip(scores, head_order, strict=True)
    ]
