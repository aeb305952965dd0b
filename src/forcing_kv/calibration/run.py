"""`calibrate`: the head roles of a model, measured in its own rollout, one prompt at a time.

Every finished prompt can be kept on disk, so that a calibration over many prompts that is killed goes on after the last
one that was finished and gives bit for bit what it would have given.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from forcing_kv.cache.size import TRAINED_FRAMES
from forcing_kv.calibration.finished import FinishedPrompts
from forcing_kv.calibration.observations import Observations
from forcing_kv.calibration.observer import (
    DEFAULT_RECENT_FRAMES,
    DEFAULT_SINK_FRAMES,
    FrameMassObserver,
    least_chunks,
)
from forcing_kv.calibration.roles import check_role_settings, measured_head_map
from forcing_kv.errors import ConfigurationError, PromptError
from forcing_kv.geometry import pixel_frames
from forcing_kv.heads import HeadMap
from forcing_kv.models import ModelPreset
from forcing_kv.models.weights import weights_sha256
from forcing_kv.pipeline import VideoPipeline
from forcing_kv.policies import Full
from forcing_kv.versions import versions


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """What `calibrate` gives.

    Attributes:
        head_map: The roles, and how they were measured.
        observations: What they were told from.
    """

    head_map: HeadMap
    observations: Observations


def calibrate(
    pipeline: VideoPipeline,
    prompts: Sequence[str],
    *,
    num_chunks: int,
    steps: Sequence[int] | None = None,
    seed: int = 0,
    sink_frames: int = DEFAULT_SINK_FRAMES,
    recent_frames: int = DEFAULT_RECENT_FRAMES,
    threshold: float | None = None,
    target_static_fraction: float | None = None,
    max_queries: int | None = None,
    observed_chunks: Sequence[int] | None = None,
    resolution: tuple[int, int] | None = None,
    checkpoint: str | Path | None = None,
    check_memory: bool = True,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Calibration:
    """Measures which heads of a model are static and which are dynamic.

    Args:
        pipeline: The model; the roles it has do not matter.
        prompts: One video each, made with a full cache and without its pixels.
        num_chunks: Length of each video.
        steps: Denoising steps that are observed, by index in the model's step list; None for all.
        seed: Of the first video; the next has seed + 1.
        sink_frames: First frames that are left out of the scores.
        recent_frames: History frames that count as newest, beside the current chunk.
        threshold: Score from which a head is static; None for 0.8.
        target_static_fraction: Share of heads that shall be static, in place of a threshold.
        max_queries: Queries that are taken per pass and layer, drawn at random; None takes all. What that costs in
            precision stands beside every score.
        observed_chunks: Chunks that are observed, by index; None for all that read enough frames (12 or more).
        resolution: Width and height in pixels; None for the model's own.
        checkpoint: Folder where finished prompts are kept, and found again; made if missing.
        check_memory: Whether a calibration that the device cannot hold is refused.
        on_progress: Told the number of prompts done, and of all.

    Raises:
        ConfigurationError: A setting out of range, or videos too short for a single observed pass.
        PromptError: No prompt, or one that the model does not understand.
        OutputError: The checkpoint was made with other settings, or cannot be read or written.
        MemoryLimitError: The device cannot hold a full cache of that length.
    """
    if not prompts:
        raise PromptError("there is nothing to calibrate on: give at least one prompt")
    check_role_settings(threshold=threshold, target_static_fraction=target_static_fraction)
    chunks, steps = observed_passes(
        pipeline.preset,
        num_chunks=num_chunks,
        steps=steps,
        observed_chunks=observed_chunks,
        sink_frames=sink_frames,
        recent_frames=recent_frames,
    )
    geometry = pipeline.geometry(resolution)
    new_observer = partial(
        FrameMassObserver,
        geometry,
        steps=steps,
        chunks=chunks,
        sink_frames=sink_frames,
        recent_frames=recent_frames,
        max_queries=max_queries,
    )
    settings = {
        "model": pipeline.preset.name,
        "weights_sha256": weights_sha256(pipeline.transformer),
        "resolution": list(pipeline.preset.default_resolution if resolution is None else resolution),
        "dtype": str(pipeline.dtype).removeprefix("torch."),
        "device": pipeline.device.type,
        "num_chunks": num_chunks,
        "timesteps": [round(timestep, 3) for timestep in pipeline.preset.sampler.timesteps],
        "versions": versions(),
    }
    finished = None if checkpoint is None else FinishedPrompts(checkpoint)
    parts: dict[int, Observations] = {}
    if finished is not None:
        identity = {**new_observer().settings, **settings, "chunks": list(chunks), "steps": list(steps)}
        parts = finished.load(prompts, seed=seed, settings=identity)
    missing = [index for index in range(len(prompts)) if index not in parts]
    for index in missing:  # all of them before the first video, so that a large text encoder is loaded once
        pipeline.encode_prompt([prompts[index]])

    for index in missing:
        on_progress(len(parts), len(prompts))
        stream = pipeline.stream(
            prompts[index],
            policy=Full(),
            seed=seed + index,
            resolution=resolution,
            num_frames=pixel_frames((chunks[-1] + 1) * geometry.chunk_frames),
            decode=False,
            check_memory=check_memory,
        )
        observer = new_observer(seed=seed + index)
        with stream.cache.observed_by(observer):
            for _ in stream:
                pass
        parts[index] = observer.observations(prompt=prompts[index], seed=seed + index, **settings)
        if finished is not None:
            finished.keep(index, parts[index])
    on_progress(len(parts), len(prompts))
    observations = Observations.concatenate([parts[index] for index in range(len(prompts))])
    head_map = measured_head_map(observations, threshold=threshold, target_static_fraction=target_static_fraction)
    return Calibration(head_map=head_map, observations=observations)


def observed_passes(
    preset: ModelPreset,
    *,
    num_chunks: int,
    steps: Sequence[int] | None = None,
    observed_chunks: Sequence[int] | None = None,
    sink_frames: int = DEFAULT_SINK_FRAMES,
    recent_frames: int = DEFAULT_RECENT_FRAMES,
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The chunks and the denoising steps that a calibration observes; needs no loaded model.

    The arguments are those of `calibrate`.

    Returns:
        Chunks and steps, each by index, rising.

    Raises:
        ConfigurationError: Videos too short for a single observed pass, or chunks and steps that there are not.
    """
    least = least_chunks(chunk_frames=preset.chunk_frames, sink_frames=sink_frames, recent_frames=recent_frames)
    if num_chunks < least:
        raise ConfigurationError(
            f"{num_chunks} chunks of {preset.chunk_frames} frames are too few: the first that can be measured reads "
            f"{least * preset.chunk_frames} frames; use at least {least} chunks"
        )
    chunks = range(least - 1, num_chunks) if observed_chunks is None else sorted(set(observed_chunks))
    if not chunks or not least - 1 <= chunks[0] <= chunks[-1] < num_chunks:
        raise ConfigurationError(
            f"observed_chunks={list(chunks)} must name some of the chunks {least - 1} to {num_chunks - 1}: those "
            "before read too few frames"
        )
    num_steps = len(preset.sampler.steps)
    observed_steps = range(num_steps) if steps is None else sorted(set(steps))
    if not observed_steps or not 0 <= observed_steps[0] <= observed_steps[-1] < num_steps:
        raise ConfigurationError(
            f"steps={list(observed_steps)} must name some of the {num_steps} denoising steps of {preset.name}: 0 to "
            f"{num_steps - 1}"
        )
    return tuple(chunks), tuple(observed_steps)


def default_num_chunks(preset: ModelPreset) -> int:
    """Chunks of a calibration video if nothing is said: as many as the model was trained at, 21 frames at the most."""
    least = least_chunks(
        chunk_frames=preset.chunk_frames, sink_frames=DEFAULT_SINK_FRAMES, recent_frames=DEFAULT_RECENT_FRAMES
    )
    return max(least, min(preset.trained_frames, TRAINED_FRAMES) // preset.chunk_frames)
