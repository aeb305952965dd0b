"""Observations made up for tests of what becomes of them."""

import torch

from forcing_kv.calibration.observations import Observations
from forcing_kv.heads import HeadMap


def constant_scores(scores, *, prompts=4, chunks=3, steps=2):
    """[prompts, chunks, steps, layers, heads], the same everywhere, to plant differences in."""
    return torch.tensor(scores).expand(prompts, chunks, steps, -1, -1).clone()


def observations(scores, *, standard_errors=None, sink_frames=3, max_history=12, chunk_frames=3) -> Observations:
    """What a calibration with these scores could have seen; masses are random, but the same every time."""
    num_prompts, num_chunks, num_steps, *shape = scores.shape
    generator = torch.Generator().manual_seed(0)
    distances = tuple(range(-max_history, chunk_frames))
    return Observations(
        scores=scores,
        standard_errors=torch.zeros_like(scores) if standard_errors is None else standard_errors,
        distance_mass=torch.rand(*shape, len(distances), generator=generator) / len(distances),
        distances=distances,
        sink_mass=torch.rand(*shape, sink_frames, generator=generator) / 10,
        prompts=tuple(f"prompt {number}" for number in range(num_prompts)),
        seeds=tuple(range(num_prompts)),
        chunks=tuple(range(4, 4 + num_chunks)),
        steps=tuple(range(num_steps)),
        settings={"sink_frames": sink_frames, "recent_frames": 1, "chunk_frames": chunk_frames},
    )


def head_map(seen: Observations, *, threshold=0.8) -> HeadMap:
    """The map that these observations give."""
    return HeadMap.from_scores(seen.head_scores().tolist(), model="planted", threshold=threshold)
