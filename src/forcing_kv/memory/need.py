"""What a run will need, known before it starts.

A `PlannedStream` is everything that decides the memory of a stream; its `MemoryNeed` is computed from sizes alone, so
no weights have to be there.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from forcing_kv.cache import cache_bytes
from forcing_kv.geometry import FrameGeometry
from forcing_kv.heads import HeadMap
from forcing_kv.models import ModelPreset
from forcing_kv.policies import POLICIES, CachePolicy, Full, Window, parse_policy
from forcing_kv.prompt_schedule import ScheduledPrompt, prompt_schedule
from forcing_kv.resolution import NAMED_RESOLUTIONS, PIXELS_PER_TOKEN
from forcing_kv.stream_options import StreamOptions
from forcing_kv.video import WAN_VAE, DecoderSize
from forcing_kv.wan import TransformerConfig, pass_bytes, text_memory_bytes, weights_bytes

HEADROOM = 0.1
"""Part of cache, passes and decoding that is added for what no sum of tensors shows: gaps, and what kernels borrow."""

RUNTIME_BYTES = {"cpu": 800_000_000}
"""What the libraries take besides tensors, by kind of device: compiled kernels, work space of threads
(`benchmarks/memory.py`). On a GPU the headroom is to cover it."""

UMT5_XXL_PARAMETERS = 5_680_910_336
"""Weights of the text encoder of all Wan2.1 models: 256,384 tokens of 4,096 values; 24 layers of four 4,096 x 4,096
(64 heads of 64), three 4,096 x 10,240, two norms, and a bias for 32 relative positions per head; one last norm."""


@dataclass(frozen=True, kw_only=True)
class MemoryNeed:
    """Bytes a run takes on its device, part by part.

    Attributes:
        weights_bytes: The transformer.
        text_encoder_bytes: The text encoder; 0 where it lies elsewhere.
        vae_weights_bytes: The VAE itself.
        cache_bytes: Keys and values of the history, at their most.
        passes_bytes: Activations of the largest transformer pass, and the keys and values of the prompt.
        decode_bytes: The VAE's feature cache and activations.
        runtime_bytes: The libraries' own.
        snapshot_bytes: What a copy of the stream's state takes beyond the memory that is free between chunks; 0 on a
            GPU, as the copy goes to the host.
    """

    weights_bytes: int = 0
    text_encoder_bytes: int = 0
    vae_weights_bytes: int = 0
    cache_bytes: int = 0
    passes_bytes: int = 0
    decode_bytes: int = 0
    snapshot_bytes: int = 0
    runtime_bytes: int = 0

    @property
    def vae_bytes(self) -> int:
        """The VAE with all it works in."""
        return self.vae_weights_bytes + self.decode_bytes

    @property
    def model_bytes(self) -> int:
        """Everything that is loaded, once for all streams."""
        return self.weights_bytes + self.text_encoder_bytes + self.vae_weights_bytes

    @property
    def headroom_bytes(self) -> int:
        """What is added for gaps between tensors and for the work space of kernels."""
        return round(HEADROOM * (self.cache_bytes + self.passes_bytes + self.decode_bytes))

    @property
    def total_bytes(self) -> int:
        """What the device must have."""
        return sum(self.parts().values())

    def parts(self) -> dict[str, int]:
        """Every part by its name in messages and tables; they add up to `total_bytes`."""
        return {
            "weights": self.weights_bytes,
            "text encoder": self.text_encoder_bytes,
            "VAE": self.vae_bytes,
            "cache": self.cache_bytes,
            "passes": self.passes_bytes,
            "snapshot": self.snapshot_bytes,
            "libraries": self.runtime_bytes,
            "headroom": self.headroom_bytes,
        }


@dataclass(frozen=True, kw_only=True)
class PlannedStream:
    """A stream that need not exist yet.

    Attributes:
        config: Sizes of the transformer.
        geometry: Shape of a frame and a chunk.
        policy: What the cache keeps.
        dtype: Of weights, cache and passes.
        device: Where it is to run.
        batch_size: Videos made together.
        num_chunks: Length; None for endless, where a cache without bound is taken at 21 frames.
        recache_frames: Latent frames of the pass after a change of prompt; 0 where the prompt stays.
        options: How it is computed.
        precision: Of the linear layers; None for `dtype`.
        vae: Of the decoder; None for latents only.
        vae_dtype: Of the decoder; None for `dtype`.
        overlapped: Whether chunks are decoded and written beside the passes of the next one.
        text_encoder_bytes: The text encoder, if it lies on the same device.
        fps: Pixel frames per second of video.
        other_policies: What a refusal may propose.
        counts_chunks: Whether a refusal proposes a length in chunks (`--chunks`) rather than `--seconds`.
    """

    config: TransformerConfig
    geometry: FrameGeometry
    policy: CachePolicy
    dtype: torch.dtype = torch.bfloat16
    device: torch.device = field(default_factory=lambda: torch.device("cuda"))
    batch_size: int = 1
    num_chunks: int | None = None
    recache_frames: int = 0
    options: StreamOptions = StreamOptions()
    precision: str | None = None
    vae: DecoderSize | None = WAN_VAE
    vae_dtype: torch.dtype | None = None
    overlapped: bool = False
    text_encoder_bytes: int = 0
    fps: float = 16
    other_policies: tuple[CachePolicy, ...] = ()
    counts_chunks: bool = False

    @property
    def resolution(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return self.geometry.frame_cols * PIXELS_PER_TOKEN, self.geometry.frame_rows * PIXELS_PER_TOKEN

    def at_resolution(self, width: int, height: int) -> "PlannedStream":
        """The same in another size."""
        rows, cols = height // PIXELS_PER_TOKEN, width // PIXELS_PER_TOKEN
        return replace(self, geometry=replace(self.geometry, frame_rows=rows, frame_cols=cols))

    def need(self) -> MemoryNeed:
        """What it takes.

        Raises:
            ConfigurationError: The policy cannot work at this geometry.
            HeadMapError: The policy's head map does not fit.
        """
        num_pixels = self.batch_size * math.prod(self.resolution)
        pass_frames = self.batch_size * max(self.geometry.chunk_frames, self.recache_frames)
        cache = cache_bytes(
            self.policy,
            self.geometry,
            num_chunks=self.num_chunks,
            batch_size=self.batch_size,
            dtype=self.dtype,
            kv_dtype=self.options.kv_dtype,
        )
        frame_tokens = self.geometry.frame_tokens
        sizes: dict[str, Any] = {"frame_tokens": frame_tokens, "dtype": self.dtype, "precision": self.precision}
        passes = pass_bytes(self.config, num_frames=pass_frames, **sizes)
        if self.options.way.replays:  # a graph keeps memory of its own for a pass
            chunk_frames = self.batch_size * self.geometry.chunk_frames
            passes += pass_bytes(self.config, num_frames=chunk_frames, **sizes)
        if self.options.step_cache is not None:  # the newest residual of the blocks, and one on its way
            passes += 2 * self.batch_size * self.geometry.chunk_tokens * self.config.dim * self.dtype.itemsize
        passes += text_memory_bytes(self.config, batch_size=self.batch_size, dtype=self.dtype)
        vae_dtype = self.vae_dtype or self.dtype
        decode = self.vae.decode_bytes(num_pixels, vae_dtype) if self.vae else 0
        features = self.vae.feature_bytes(num_pixels, vae_dtype) if self.vae else 0
        snapshot = 0
        if self.device.type == "cpu":
            # Copied between chunks, when passes and decoder have given back all but the features; with overlap, the
            # copy lies beside the decoder's work on that chunk and the passes of the next one.
            snapshot = cache + features if self.overlapped else max(0, cache + features - (passes + decode - features))
        return MemoryNeed(
            weights_bytes=weights_bytes(self.config, dtype=self.dtype, precision=self.precision),
            text_encoder_bytes=self.text_encoder_bytes,
            vae_weights_bytes=self.vae.weights_bytes(vae_dtype) if self.vae else 0,
            cache_bytes=cache,
            passes_bytes=passes,
            decode_bytes=decode,
            snapshot_bytes=snapshot,
            runtime_bytes=RUNTIME_BYTES.get(self.device.type, 0),
        )


def plan_stream(
    config: TransformerConfig,
    preset: ModelPreset,
    *,
    head_map: HeadMap | None = None,
    policy: CachePolicy | str | None = None,
    resolution: tuple[int, int] | None = None,
    **settings: Any,
) -> PlannedStream:
    """Plans a stream of a model of which nothing has to be loaded, or even be there.

    Args:
        config: Sizes of its transformer.
        preset: How it is sampled.
        head_map: Roles of its heads; None restricts the policies to those that need none.
        policy: What the cache keeps, as an object or in its spelling; None for the model's default.
        resolution: Width and height in pixels; None for the model's own.
        **settings: Other attributes of `PlannedStream`.

    Raises:
        ForcingKVError: A setting that cannot work, with the figures and the fix.
    """
    if not isinstance(policy, CachePolicy):
        policy = parse_policy(preset.default_policy if policy is None else policy, head_map=head_map)
    usable = {name for name, kind in POLICIES.items() if head_map is not None or not kind.needs_head_map}
    proposed = dict.fromkeys((preset.default_policy, Window.name))
    return PlannedStream(
        config=config,
        geometry=preset.geometry(config, resolution),
        policy=policy,
        fps=preset.fps,
        other_policies=tuple(
            parse_policy(spec, head_map=head_map) for spec in proposed if spec.partition(":")[0] in usable
        ),
        **settings,
    )


def plan_run(
    config: TransformerConfig,
    preset: ModelPreset,
    prompt: str | Sequence[str] | Sequence[ScheduledPrompt],
    *,
    num_frames: int | None = None,
    given_frames: int = 0,
    num_videos: int | None = None,
    recache_frames: int | None = None,
    **settings: Any,
) -> PlannedStream:
    """Plans what `VideoPipeline.stream` would start, of a model of which nothing has to be loaded.

    Args:
        config: Sizes of its transformer.
        preset: How it is sampled.
        prompt: A text, one per video, or prompts over time.
        num_frames: Pixel frames to make; None streams for ever.
        given_frames: Latent frames that the video begins with.
        num_videos: Videos made together; None for as many as there are texts.
        recache_frames: Latent frames encoded again when the prompt changes; None for the model's default.
        **settings: As in `plan_stream`.
    """
    prompts = prompt_schedule(prompt)
    # A stream without end is there to be steered: its prompt may change at any time.
    may_change = len(prompts) > 1 or num_frames is None
    return plan_stream(
        config,
        preset,
        batch_size=len(prompts[0].texts(1)) if num_videos is None else num_videos,
        num_chunks=None if num_frames is None else preset.num_chunks(num_frames, given_frames=given_frames),
        recache_frames=(recache_frames or preset.recache_frames) if may_change else 0,
        **settings,
    )


def memory_table(
    stream: PlannedStream, resolutions: Iterable[str] = ("480p", "720p", "1080p")
) -> dict[str, dict[str, MemoryNeed]]:
    """Needs by named resolution and, within it, by the spelling of the policy: full (at 21 frames), then the others."""
    policies = (Full(), *stream.other_policies)
    return {
        name: {
            policy.spec(): replace(stream.at_resolution(*NAMED_RESOLUTIONS[name]), policy=policy).need()
            for policy in policies
        }
        for name in resolutions
    }
