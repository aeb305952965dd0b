"""A stream on a bare transformer, brought quickly to a length at which its chunks are worth timing."""

from typing import Any

import torch

from forcing_kv.cache import StreamCache
from forcing_kv.cache.size import TRAINED_FRAMES
from forcing_kv.geometry import FrameGeometry
from forcing_kv.policies import CachePolicy
from forcing_kv.prompt_schedule import prompt_schedule
from forcing_kv.rollout import VideoStream
from forcing_kv.sampling import FewStepSampler, SeededNoise
from forcing_kv.wan import CausalWanTransformer


def filled_stream(
    transformer: CausalWanTransformer,
    geometry: FrameGeometry,
    policy: CachePolicy,
    *,
    sampler: FewStepSampler | None = None,
) -> VideoStream:
    """A stream of which the released models' 21 frames are there but for one chunk; those were made in a single step.

    Args:
        transformer: On the device and in the dtype to measure; the weights' values do not matter.
        geometry: Its layers and heads, and the frame.
        policy: What the cache keeps.
        sampler: Steps of the chunks to come; None for the released four.
    """
    config, sampler = transformer.config, sampler or FewStepSampler()
    cache = StreamCache(
        geometry, policy, dtype=transformer.dtype, device=transformer.device, head_order=transformer.head_order
    )
    _, patch_rows, patch_cols = config.patch_size
    latent_size = (geometry.frame_rows * patch_rows, geometry.frame_cols * patch_cols)
    shape = (1, geometry.chunk_frames, config.in_dim, *latent_size)
    text_states = torch.randn(1, config.text_len, config.text_dim, generator=torch.Generator().manual_seed(0))
    settings: dict[str, Any] = {
        "transformer": transformer,
        "cache": cache,
        "noise": SeededNoise(0, shape, device=transformer.device),
        "encode_prompt": lambda texts: text_states.to(transformer.device),
        "prompts": prompt_schedule("random"),
    }
    one_step = VideoStream(sampler=FewStepSampler(steps=sampler.steps[:1]), **settings)
    while cache.num_frames + geometry.chunk_frames < TRAINED_FRAMES:
        next(one_step)
    return VideoStream(sampler=sampler, **settings)
