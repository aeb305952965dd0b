"""Time per chunk of several policies, side by side on one transformer.

Each policy's cache is first filled to the state that is to be timed; then the policies take turns, so that whatever
else the machine does falls on all of them. A timed chunk is what a stream does: the denoising passes, the commit pass
and the commit. A cache that grows is put back to the timed state between turns, off the clock.
"""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from forcing_kv.bench.arithmetic import pass_flops
from forcing_kv.cache import StreamCache
from forcing_kv.geometry import FrameGeometry
from forcing_kv.policies import CachePolicy
from forcing_kv.sampling import FewStepSampler
from forcing_kv.wan import CausalWanTransformer, TextMemory

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
    sampler = sampler or FewStepSampler()
    bench = _Bench(transformer, geometry, sampler)
    caches = {}
    for name, policy in policies.items():
        on_progress(f"filling {name}")
        caches[name] = bench.filled_cache(policy)
    states = {name: cache.state() for name, cache in caches.items() if _grows(cache)}
    rows = {name: bench.describe(cache) for name, cache in caches.items()}
    times: dict[str, list[float]] = {name: [] for name in policies}
    for turn in range(repeats + 1):
        for name, cache in caches.items():
            milliseconds = bench.time_chunk(cache)
            if turn:
                times[name].append(milliseconds)
            on_progress(f"turn {turn} of {repeats}, {name}: {milliseconds:,.0f} ms{'' if turn else ' (warm-up)'}")
            if name in states:
                cache.load_state(*states[name])
    return [replace(rows[name], chunk_ms=tuple(times[name])) for name in policies]


class _Bench:
    def __init__(self, transformer: CausalWanTransformer, geometry: FrameGeometry, sampler: FewStepSampler) -> None:
        config = transformer.config
        self._transformer = transformer
        self._geometry = geometry
        self._sampler = sampler
        _, patch_rows, patch_cols = config.patch_size
        generator = torch.Generator().manual_seed(0)
        rows, cols = geometry.frame_rows * patch_rows, geometry.frame_cols * patch_cols
        shape = (1, geometry.chunk_frames, config.in_dim, rows, cols)
        self._noise = torch.randn(shape, generator=generator).to(transformer.device)
        states = torch.randn(1, config.text_len, config.text_dim, generator=generator).to(transformer.device)
        with torch.no_grad():
            self._text: TextMemory = transformer.encode_text(states)

    @torch.no_grad()
    def filled_cache(self, policy: CachePolicy) -> StreamCache:
        """A cache in the state to be timed: full, or, if it has no bound, one chunk short of the published length."""
        cache = StreamCache(
            self._geometry,
            policy,
            dtype=self._transformer.dtype,
            device=self._transformer.device,
            head_order=self._transformer.head_order,
        )
        while cache.num_frames + self._geometry.chunk_frames < FULL_CACHE_FRAMES:
            self._pass(cache, self._noise, self._sampler.context_noise)
            cache.commit()
        return cache

    def describe(self, cache: StreamCache) -> SteadyState:
        """A row without times."""
        tokens = [n for layer in range(self._geometry.num_layers) for n in cache.history_tokens(layer).values()]
        return SteadyState(
            policy=cache.policy.spec(),
            chunk_ms=(),
            cache_bytes=cache.nbytes,
            pass_tflop=pass_flops(self._transformer.config, cache) / 1e12,
            frames_read=sum(tokens) / len(tokens) / self._geometry.frame_tokens + self._geometry.chunk_frames,
        )

    @torch.no_grad()
    def time_chunk(self, cache: StreamCache) -> float:
        """Milliseconds of one chunk: denoising passes, commit pass, commit."""
        started = self._clock()
        clean = self._sampler.sample(
            self._noise, lambda noisy, timestep: self._pass(cache, noisy, timestep), lambda: self._noise
        )
        self._pass(cache, clean, self._sampler.context_noise)
        cache.commit()
        return 1e3 * (self._clock() - started)

    def _pass(self, cache: StreamCache, latents: Tensor, timestep: float) -> Tensor:
        frames = range(cache.num_frames, cache.num_frames + self._geometry.chunk_frames)
        rope = self._transformer.rope(frames, self._geometry.frame_rows, self._geometry.frame_cols)
        timesteps = torch.full(latents.shape[:2], timestep, device=latents.device)
        velocity: Tensor = self._transformer(latents, timesteps, text=self._text, rope=rope, memory=cache)
        return velocity

    def _clock(self) -> float:
        if self._transformer.device.type == "cuda":
            torch.cuda.synchronize(self._transformer.device)
        return time.perf_counter()


def _grows(cache: StreamCache) -> bool:
    """Whether the policy keeps more with every chunk."""
    plan = cache.policy.plan(cache.geometry, grouped=True)
    return any(group.recent_frames is None for groups in plan.layers for group in groups)
