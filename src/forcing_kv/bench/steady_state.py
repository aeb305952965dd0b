"""Time per chunk of several policies, side by side on one transformer.

Each policy's cache is first filled to the state that is to be timed; then the policies take turns, so that whatever
else the machine does falls on all of them. A timed chunk is what a stream does: the denoising passes, the commit pass
and the commit. A cache that grows is put back to the timed state between turns, off the clock.
"""

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from forcing_kv.bench.arithmetic import pass_flops
from forcing_kv.cache import StreamCache, is_unbounded
from forcing_kv.geometry import FrameGeometry
from forcing_kv.policies import CachePolicy
from forcing_kv.prompt_schedule import prompt_schedule
from forcing_kv.rollout import VideoStream
from forcing_kv.sampling import FewStepSampler, SeededNoise
from forcing_kv.wan import CausalWanTransformer

FULL_CACHE_FRAMES = 21
"""Frames that the chunk reads at which a cache without bound is timed: what the released models were trained with."""


@dataclass(frozen=True, kw_only=True)
class SteadyState:
    """One policy, measured.

    Attributes:
        policy: In its spelling.
        chunk_ms: Wall-clock times of the timed chunks, in order.
        cache_bytes: Bytes held while they ran.
        pass_tflop: Arithmetic of one pass, in 10^12 operations.
        frames_read: Latent frames' worth of keys a head reads on average, the current chunk included.
    """

    policy: str
    chunk_ms: tuple[float, ...]
    cache_bytes: int
    pass_tflop: float
    frames_read: float

    @property
    def steady_chunk_ms(self) -> float:
        """Median time per chunk."""
        return statistics.median(self.chunk_ms)


def measure_steady_state(
    transformer: CausalWanTransformer,
    geometry: FrameGeometry,
    policies: Mapping[str, CachePolicy],
    *,
    repeats: int = 5,
    sampler: FewStepSampler | None = None,
    on_progress: Callable[[str], None] = lambda message: None,
) -> list[SteadyState]:
    """Times chunks of every policy in turn; the weights' values do not matter, so they may be random.

    Args:
        transformer: On the device and in the dtype to measure.
        geometry: Its layers and heads, and the frame.
        policies: By the name to report.
        repeats: Timed turns, after one that is not.
        sampler: Steps of a chunk; None for the released four.
        on_progress: Told what is being done.

    Returns:
        One row per policy, in their order.
    """
    streams = {}
    for name, policy in policies.items():
        on_progress(f"filling {name}")
        streams[name] = filled_stream(transformer, geometry, policy, sampler=sampler)
    snapshots = {name: stream.snapshot() for name, stream in streams.items() if is_unbounded(policies[name], geometry)}
    rows = {name: _describe(transformer, stream.cache) for name, stream in streams.items()}
    times: dict[str, list[float]] = {name: [] for name in policies}
    for turn in range(repeats + 1):
        for name, stream in streams.items():
            milliseconds = next(stream).timings.diffusion_ms
            if turn:
                times[name].append(milliseconds)
            on_progress(f"turn {turn} of {repeats}, {name}: {milliseconds:,.0f} ms{'' if turn else ' (warm-up)'}")
            if name in snapshots:
                stream.restore(snapshots[name])
    return [replace(rows[name], chunk_ms=tuple(times[name])) for name in policies]


def filled_stream(
    transformer: CausalWanTransformer,
    geometry: FrameGeometry,
    policy: CachePolicy,
    *,
    sampler: FewStepSampler | None = None,
) -> VideoStream:
    """A stream in the state to be timed: its cache is full or, without a bound, one chunk short of 21 frames.

    The chunks that fill it are made in a single step.
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
    while cache.num_frames + geometry.chunk_frames < FULL_CACHE_FRAMES:
        next(one_step)
    return VideoStream(sampler=sampler, **settings)


def _describe(transformer: CausalWanTransformer, cache: StreamCache) -> SteadyState:
    """A row without times."""
    tokens = [n for layer in range(cache.geometry.num_layers) for n in cache.history_tokens(layer).values()]
    return SteadyState(
        policy=cache.policy.spec(),
        chunk_ms=(),
        cache_bytes=cache.nbytes,
        pass_tflop=pass_flops(transformer.config, cache) / 1e12,
        frames_read=sum(tokens) / len(tokens) / cache.geometry.frame_tokens + cache.geometry.chunk_frames,
    )
