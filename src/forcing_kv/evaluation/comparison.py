"""What is to be compared, checked as a whole before any model is loaded."""

import hashlib
from dataclasses import dataclass, replace

import torch

from forcing_kv import free_memory
from forcing_kv.errors import ConfigurationError
from forcing_kv.evaluation.metrics import METRICS, Meter, Metric, Tools, open_flow, series_of, split_metrics
from forcing_kv.evaluation.worlds import WORLDS, World
from forcing_kv.generation.request import MAX_SEED, slug
from forcing_kv.heads import HeadMap
from forcing_kv.memory import PlannedStream, check_memory, plan_run
from forcing_kv.models import ModelPreset, ModelSource
from forcing_kv.policies import CachePolicy, parse_policy
from forcing_kv.stream_check import check_stream
from forcing_kv.stream_options import StreamOptions
from forcing_kv.video import WAN_VAE
from forcing_kv.wan import weights_bytes

TOKENS_TOGETHER = 1500
"""Prompts are made together while their chunks have no more tokens than this: fewer leave a machine idle."""

MAX_TOGETHER = 8


@dataclass(frozen=True, kw_only=True)
class Contestant:
    """What makes one video of each prompt.

    Attributes:
        policy: What the cache keeps.
        options: How its streams are computed.
        is_plain: Whether it is a reference without the savings of the others, fp8 layers included.
    """

    policy: CachePolicy
    options: StreamOptions
    is_plain: bool = False

    @property
    def name(self) -> str:
        """What it is called in reports."""
        return f"{self.policy.spec()} (plain)" if self.is_plain else self.policy.spec()


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What is compared.

    Attributes:
        policies: Spellings; the reference is compared with whether it is among them or not.
        reference: Spelling of the policy that the others are measured against.
        num_frames: Pixel frames of each video, rounded up to whole chunks.
        seed: Of the first prompt's noise; the next has one more.
        resolution: Width and height in pixels; None for the model's own.
        metrics: Names, or `all`.
        flow: Kind of optical flow.
        num_together: Prompts made together; None for what suits their size.
        options: How all streams are computed, the reference's too unless it is plain.
        plain_reference: Whether the reference is computed with none of the options, and in the model's own precision,
            so that what those do is measured too.

    Raises:
        ForcingKVError: An unknown metric, or a number out of range.
    """

    policies: tuple[str, ...]
    reference: str = "full"
    num_frames: int
    seed: int = 0
    resolution: tuple[int, int] | None = None
    metrics: str = "all"
    flow: str = "dis"
    num_together: int | None = None
    options: StreamOptions = StreamOptions()
    plain_reference: bool = False

    def __post_init__(self) -> None:
        split_metrics(self.metrics)
        if self.num_frames < 1:
            raise ConfigurationError(f"videos of {self.num_frames} frames cannot be made: ask for at least 1")
        if not 0 <= self.seed <= MAX_SEED:
            raise ConfigurationError(f"seed {self.seed} is out of range: use 0 to {MAX_SEED}")
        if self.num_together is not None and self.num_together < 1:
            raise ConfigurationError(f"{self.num_together} prompts cannot be made together: use at least 1")

    def check_plain_reference(self, precision: str | None) -> None:
        """Refuses a plain reference where there is nothing that it could be plain of.

        Raises:
            ConfigurationError: No option is given, and no precision.
        """
        if self.plain_reference and precision is None and self.options == StreamOptions():
            raise ConfigurationError(
                "a plain reference is one without --positions, --kv-dtype, --step-cache, --attention, --execution and "
                "--precision, and none of them is given: add one, or leave out --plain-reference"
            )

    def contestants(self, head_map: HeadMap | None) -> list[Contestant]:
        """The reference, then the policies, each once.

        Raises:
            ForcingKVError: One that is unknown, cannot work, needs a head map that is not there, or is there twice.
        """
        reference = parse_policy(self.reference, head_map=head_map)
        policies = [reference]
        for spelling in self.policies:
            policy = parse_policy(spelling, head_map=head_map)
            if policy in policies[1:]:
                raise ConfigurationError(f"policies: {spelling!r} is there twice, the other time as {policy.spec()!r}")
            if self.plain_reference or policy != reference:
                policies.append(policy)
        if len(policies) == 1:
            raise ConfigurationError(
                f"policies {','.join(self.policies)!r} name the reference {reference.spec()} only: name another one too"
            )
        options = StreamOptions() if self.plain_reference else self.options
        first = Contestant(policy=reference, options=options, is_plain=self.plain_reference)
        return [first, *(Contestant(policy=policy, options=self.options) for policy in policies[1:])]


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """The metrics of a comparison, and what measures them here.

    Attributes:
        metrics: That are measured.
        left_out: Name of a metric that `all` would have -> why it is not measured.
        meters: By name of the series.
        flow: What stands beside figures that rest on optical flow; None where none does.
        world: What judges videos; None where nothing does.
    """

    metrics: tuple[Metric, ...]
    left_out: dict[str, str]
    meters: dict[str, Meter]
    flow: str | None
    world: World | None


def choose_metrics(asked: Comparison, preset: ModelPreset, *, device: torch.device) -> Chosen:
    """The metrics that can be measured; those asked for by name must be.

    Args:
        asked: What is compared.
        preset: Of the model.
        device: Where networks that measure run.

    Raises:
        ConfigurationError: A library that every comparison needs is missing, or one that a metric needs which was asked
            for by name; or a world score is asked for where nothing judges.
        UnknownNameError: An unknown kind of optical flow.
    """
    is_all = asked.metrics.strip() == "all"
    tools = Tools(flow=asked.flow, device=device)
    chosen: list[Metric] = []
    left_out: dict[str, str] = {}
    meters: dict[str, Meter] = {}
    world: World | None = None
    for name in split_metrics(asked.metrics):
        metric = METRICS[name]
        try:
            if metric.needs_world:
                world = _world(asked, preset)
            meters |= {series.name: series.open(tools) for series in metric.series if series.name not in meters}
        except ConfigurationError as error:
            if not (is_all and (metric.is_optional or metric.needs_world)):
                raise
            left_out[name] = str(error)
        else:
            chosen.append(metric)
    if not chosen:
        raise ConfigurationError(f"no metric is left of {asked.metrics!r}: {'; '.join(left_out.values())}")
    uses_flow = any(metric.uses_flow for metric in chosen)
    return Chosen(
        metrics=tuple(chosen),
        left_out=left_out,
        meters={series.name: meters[series.name] for series in series_of(chosen)},
        flow=open_flow(asked.flow, device).label if uses_flow else None,
        world=world,
    )


def _world(asked: Comparison, preset: ModelPreset) -> World:
    if preset.name not in WORLDS:
        raise ConfigurationError(
            f"nothing here judges what {preset.name} shows: a world score is there for {', '.join(WORLDS)}"
        )
    world = WORLDS[preset.name]()
    width, height = asked.resolution or preset.default_resolution
    world.check(width=width, height=height, fps=preset.fps, num_frames=asked.num_frames)
    return world


def plan_comparison(
    asked: Comparison,
    source: ModelSource,
    *,
    num_prompts: int,
    head_map: HeadMap | None,
    device: torch.device,
    dtype: torch.dtype,
    precision: str | None = None,
    skip_memory_check: bool = False,
) -> list[PlannedStream]:
    """Plans one stream per policy, the reference first; nothing is loaded.

    Args:
        asked: What is compared.
        source: The model.
        num_prompts: How many.
        head_map: Roles of its heads.
        device: Where it will run.
        dtype: What it will compute in.
        precision: Of its linear layers; None for `dtype`.
        skip_memory_check: Whether streams that the device cannot hold are planned all the same.

    Raises:
        ForcingKVError: A policy that cannot work here, or that the device cannot hold.
    """
    asked.check_plain_reference(precision)
    free = free_memory.free_bytes(device)
    if free is not None and asked.plain_reference and precision is not None:  # one transformer lies beside the other
        free -= max(weights_bytes(source.config, dtype=dtype, precision=kind) for kind in (None, precision))
    planned = []
    for contestant in asked.contestants(head_map):
        stream = plan_run(
            source.config,
            source.preset,
            "any",
            num_frames=asked.num_frames,
            num_videos=1,
            head_map=head_map,
            policy=contestant.policy,
            resolution=asked.resolution,
            options=contestant.options,
            dtype=dtype,
            precision=None if contestant.is_plain else precision,
            device=device,
            vae=WAN_VAE if source.preset.components else None,  # any other is known when it is loaded
        )
        size = min(num_prompts, num_together(asked, chunk_tokens=stream.geometry.chunk_tokens))
        stream = replace(stream, batch_size=size, other_policies=())  # another policy is no answer here
        check_stream(source.preset, stream)
        if not skip_memory_check:
            check_memory(stream, free_bytes=free)
        planned.append(stream)
    return planned


def num_together(asked: Comparison, *, chunk_tokens: int) -> int:
    """How many prompts are made together, if there are so many."""
    return asked.num_together or max(1, min(MAX_TOGETHER, TOKENS_TOGETHER // chunk_tokens))


def folder_name(contestant: Contestant) -> str:
    """A folder's name: that of the policy, `plain` where it is that, and a hash of the settings if there are any."""
    policy = contestant.policy
    name = f"{slug(policy.name)}-plain" if contestant.is_plain else slug(policy.name)
    if policy.spec() == policy.name:
        return name
    return f"{name}-{hashlib.sha256(policy.spec().encode()).hexdigest()[:8]}"
