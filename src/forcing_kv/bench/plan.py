"""What a benchmark is to do, checked as a whole before anything is loaded."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch

from forcing_kv.bench.arithmetic import Work, pass_work
from forcing_kv.bench.ceilings import Ceilings
from forcing_kv.bench.steady_state import SteadyState
from forcing_kv.errors import ConfigurationError
from forcing_kv.geometry import FrameGeometry, pixel_frames
from forcing_kv.heads import HeadMap
from forcing_kv.memory import PlannedStream, check_memory, plan_run
from forcing_kv.models import ModelSource
from forcing_kv.pipeline import VideoPipeline
from forcing_kv.step_cache import num_steps_skipped
from forcing_kv.stream_check import check_stream
from forcing_kv.stream_options import StreamOptions
from forcing_kv.video import WAN_VAE, DecoderOptions

DEFAULT_POLICIES = "full,window,forcing-kv"
DEFAULT_REPEATS = 5
SEED = 0
"""Of the noise of every video: all policies denoise the same."""


@dataclass(frozen=True, kw_only=True)
class PolicyPlan:
    """One policy of a benchmark.

    Attributes:
        name: As it was asked for.
        num_chunks: Chunks to make: those of the video and, where it ends before, on to the steady state.
        steady: Which of them are steady, and what they read.
        stream: Everything that decides its memory.
    """

    name: str
    num_chunks: int
    steady: SteadyState
    stream: PlannedStream


@dataclass(frozen=True, kw_only=True)
class BenchmarkPlan:
    """Policies side by side on one model; `plan_benchmark` makes one.

    Attributes:
        source: The model, its sizes cut to the layers that are built.
        random_weights: Whether its sizes are all that is taken of it.
        decodes: Whether its videos become pixels and files.
        head_map: Roles of its heads.
        policies: In the order in which they take turns.
        num_chunks: Of every video.
        resolution: Width and height in pixels.
        repeats: Timed videos per policy.
        prompt: Of all videos.
        options: How all streams are computed; `attention` is the back end that its name came to.
        steps_skipped: Of each chunk's denoising steps, those that do. With a threshold that rests on the weights: None
            until they are there (`with_steps_of`).
        device: Where it runs.
        dtype: What it is computed in.
        decoding: How latents become pixels.
        precision: Of the linear layers; None for `dtype`.
    """

    source: ModelSource
    random_weights: bool
    decodes: bool
    head_map: HeadMap | None
    policies: tuple[PolicyPlan, ...]
    num_chunks: int
    resolution: tuple[int, int]
    repeats: int
    prompt: str
    options: StreamOptions
    steps_skipped: int | None
    device: torch.device
    dtype: torch.dtype
    decoding: DecoderOptions
    precision: str | None = None

    @cached_property
    def geometry(self) -> FrameGeometry:
        """Shape of all streams."""
        return self.source.preset.geometry(self.source.config, self.resolution)

    @property
    def num_frames(self) -> int:
        """Pixel frames of every video."""
        return pixel_frames(self.num_chunks * self.geometry.chunk_frames)

    @property
    def chunk_passes(self) -> int:
        """Passes of a chunk through the blocks: the denoising steps that do not leave them out, and the commit."""
        assert self.steps_skipped is not None, "the weights decide: take with_steps_of"
        return len(self.source.preset.steps) - self.steps_skipped + 1

    def with_steps_of(self, pipeline: VideoPipeline) -> "BenchmarkPlan":
        """The same, with the number of steps that the loaded model leaves out."""
        skipped = num_steps_skipped(
            pipeline.transformer, self.source.preset.sampler.timesteps, threshold=self.options.step_cache
        )
        return replace(self, steps_skipped=skipped)

    def pass_work(self, history_tokens: int) -> Work:
        """Of one pass; history is summed over all heads of all layers."""
        return pass_work(
            self.source.config,
            self.geometry,
            history_tokens=history_tokens,
            dtype=self.dtype,
            kv_dtype=self.options.kv_dtype,
        )

    def least_chunk_ms(self, history_tokens: int, ceilings: Ceilings) -> float:
        """Below which no chunk can be made on a machine with these ceilings."""
        return self.chunk_passes * ceilings.least_ms(self.pass_work(history_tokens))

    def left_out(self) -> dict[str, str]:
        """What is not measured, and why."""
        if self.decodes:
            return {"text_ms": "random weights have no text encoder"} if self.random_weights else {}
        if self.device.type == "cpu":
            reason = "with random weights the VAE is left out on a CPU, where it would take longer than the diffusion"
        elif self.source.preset.components:
            reason = "with some of the layers, the whole VAE beside them would be out of proportion"
        else:
            reason = "random weights come with the VAE of Wan2.1 only, which this model does not use"
        return {"fps_end_to_end": reason}

    def check_memory(self) -> None:
        """Refuses policies that the device cannot hold; one video is alive at a time.

        Raises:
            MemoryLimitError: With the figures, and what would make it fit.
        """
        for policy in self.policies:
            check_memory(replace(policy.stream, other_policies=()))  # which policies is what was asked


def plan_benchmark(
    source: ModelSource,
    policies: Sequence[str],
    *,
    num_frames: int,
    repeats: int = DEFAULT_REPEATS,
    resolution: tuple[int, int] | None = None,
    random_weights: bool = False,
    layers: int | None = None,
    head_map: HeadMap | None = None,
    prompt: str,
    options: StreamOptions = StreamOptions(),
    device: torch.device,
    dtype: torch.dtype,
    decoding: DecoderOptions = DecoderOptions(),
    precision: str | None = None,
) -> BenchmarkPlan:
    """Plans a benchmark of a model of which nothing has to be loaded.

    Args:
        source: The model.
        policies: In their spelling.
        num_frames: Pixel frames of each video, rounded up to whole chunks.
        repeats: Timed videos per policy.
        resolution: Width and height in pixels; None for the model's own.
        random_weights: Take the model's sizes only.
        layers: Blocks to build, the first ones, with random weights; None for all.
        head_map: Roles of all its heads, in place of its own.
        prompt: Of all videos.
        options: How streams are computed, the same for all policies.
        device: Where it is to run.
        dtype: To compute in.
        decoding: How latents become pixels.
        precision: Of the linear layers, `fp8`; None for `dtype`.

    Raises:
        ForcingKVError: What cannot work, with the figures and the fix.
    """
    if repeats < 1:
        raise ConfigurationError(f"repeats={repeats} measures nothing; use at least 1")
    if random_weights and options.step_cache is not None:
        raise ConfigurationError(
            f"step_cache={options.step_cache:g} says nothing with random weights, for trained ones decide which steps "
            "are left out: give it with a model's own weights"
        )
    head_map = source.head_map if head_map is None else head_map
    if head_map is not None:
        head_map.check_fits(num_layers=source.config.num_layers, num_heads=source.config.num_heads)
    is_whole = layers is None or layers == source.config.num_layers
    if layers is not None:
        _check_layers(layers, source, random_weights=random_weights)
        source = replace(source, config=replace(source.config, num_layers=layers))
        head_map = head_map if head_map is None or is_whole else head_map.first_layers(layers)
    preset, config = source.preset, source.config
    if random_weights and decoding.file is not None:
        raise ConfigurationError(f"random weights come with a random VAE: leave out --decoder {decoding.file}")
    has_vae = not random_weights or (is_whole and device.type != "cpu" and bool(preset.components))
    geometry = preset.geometry(config, resolution)
    num_chunks = preset.num_chunks(num_frames)
    decoding.check_on(device)
    backend = options.backend_on(device, dtype=dtype, head_dim=geometry.head_dim)
    decoding_plan = decoding.planned(WAN_VAE if preset.components else None, dtype, device)
    if not has_vae:
        decoding_plan["vae"] = None

    def plan_policy(name: str) -> PolicyPlan:
        def plan_chunks(chunks: int) -> PlannedStream:
            return plan_run(
                config,
                preset,
                prompt,
                num_frames=pixel_frames(chunks * preset.chunk_frames),
                head_map=head_map,
                policy=name,
                resolution=resolution,
                options=options,
                dtype=dtype,
                precision=precision,
                device=device,
                **decoding_plan,
            )

        stream = plan_chunks(num_chunks)
        check_stream(preset, stream)
        steady = SteadyState.of(stream.policy, geometry)
        all_chunks = max(num_chunks, steady.first_chunk + 1)
        return PolicyPlan(
            name=name,
            num_chunks=all_chunks,
            steady=steady,
            stream=plan_chunks(all_chunks),
        )

    return BenchmarkPlan(
        source=source,
        random_weights=random_weights,
        decodes=has_vae,
        head_map=head_map,
        policies=tuple(plan_policy(name) for name in policies),
        num_chunks=num_chunks,
        resolution=preset.default_resolution if resolution is None else resolution,
        repeats=repeats,
        prompt=prompt,
        options=replace(options, attention=backend.name),
        steps_skipped=0 if options.step_cache is None else None,
        device=device,
        dtype=dtype,
        decoding=decoding,
        precision=precision,
    )


def _check_layers(layers: int, source: ModelSource, *, random_weights: bool) -> None:
    if not random_weights:
        raise ConfigurationError(f"layers={layers} goes with random weights only: add --random-weights")
    if not 1 <= layers <= source.config.num_layers:
        raise ConfigurationError(
            f"layers={layers}: {source.preset.name} has {source.config.num_layers} layers; use 1 to that many"
        )
