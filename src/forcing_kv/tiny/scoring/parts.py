"""The parts of an evaluation: which videos are made of which scenes, how each is scored, what is compared with what.

Four of them: free scenes, at first and at the end of a minute, memory scenes, and switches of prompts. In memory scenes
the prompt names the objects for the first chunk only, so that later nothing but old frames tells what they were. That
this takes memory is shown by a window of less than a second of history, under which the model must keep fewer objects.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from torch import Tensor

from forcing_kv.geometry import pixel_frames
from forcing_kv.pipeline import VideoPipeline
from forcing_kv.tiny.prompts import caption
from forcing_kv.tiny.scoring.memory_scenes import MEMORY_SECONDS
from forcing_kv.tiny.scoring.rights import free_rights, memory_rights, switch_rights
from forcing_kv.tiny.scoring.shares import Rights, differences_of, shares_of
from forcing_kv.tiny.scoring.sources import (
    drawn_switches,
    first_chunk_frame,
    held_out_clips,
    psnr,
    streamed,
    streamed_switches,
    through_vae,
)
from forcing_kv.tiny.world import FRAMES_PER_SECOND, Clip, Scene, draw

SHORT_WINDOW = "window:window_frames=6,sink_frames=0"
"""Three quarters of a second of history beside the current chunk: less than any memory scene hides its object."""

DRAWN, THROUGH_VAE = "drawn", "drawn, through the VAE"
FREE, FREE_SOON, FREE_LATE = "free scenes", "free scenes, at the start", "free scenes, at the end"
MEMORY, SWITCHES = "memory scenes", "switches"

_BEFORE_SWITCH_SECONDS = 4.0
_AFTER_SWITCH_SECONDS = 8.0

Videos = list[dict[str, Any]]
"""The score of each video, for JSON; what is right in it under `right`."""
Item = TypeVar("Item")


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What is evaluated.

    Attributes:
        policies: spellings of cache policies; memory scenes are also made under `SHORT_WINDOW`.
        num_prompts: free scenes; 0 leaves the part out, and so with the other numbers.
        seconds: of a free video that are scored.
        short_seconds: its first ones, scored on their own too, for a quick look to be compared with.
        long_seconds: how long some free videos are; their last `seconds` are scored too, if they are any longer.
        long_policies: those of `policies` that make any so long; the others' end after `seconds`.
        num_long_prompts: of `num_prompts`, the first so many are so long, to whole batches.
        num_memory_prompts: memory scenes.
        memory_seconds: of each.
        num_switches: streams whose prompt switches once.
        batch_size: videos made together.
        seed: of the first video's noise.
    """

    policies: tuple[str, ...] = ("full", "forcing-kv")
    num_prompts: int = 128
    seconds: float = 20.0
    short_seconds: float = 5.0
    long_seconds: float = 60.0
    long_policies: tuple[str, ...] = ("full",)
    num_long_prompts: int = 128
    num_memory_prompts: int = 128
    memory_seconds: float = MEMORY_SECONDS
    num_switches: int = 128
    batch_size: int = 8
    seed: int = 1000


@dataclass(frozen=True, kw_only=True)
class Made:
    """Videos of a batch.

    Attributes:
        at_times: uint8 [items, frames, H, W, 3], for each of the times that a part scores.
        psnr: of each video in dB, where there is something to compare it with.
    """

    at_times: Sequence[Tensor]
    psnr: Sequence[float] = ()


Maker = Callable[[Sequence[Item], int], Made]
"""From some items and the number of the first to their videos."""


@dataclass(frozen=True, kw_only=True)
class Part(Generic[Item]):
    """One part.

    Attributes:
        name: of the part, or of its first time.
        items: what each video is of.
        makers: per source, what makes its videos.
        score: the score of one video, for JSON.
        results: from the scores of all videos, per time and source, to the parts of the result.
    """

    name: str
    items: Sequence[Item]
    makers: Mapping[str, Maker[Item]]
    score: Callable[[Item, Tensor], dict[str, Any]]
    results: Callable[[Sequence[Mapping[str, Videos]]], dict[str, Any]]


def parts_of(pipeline: VideoPipeline, asked: Evaluation) -> list[Part[Any]]:
    """The parts that are asked for."""
    parts: list[Part[Any]] = []
    if asked.num_prompts:
        parts.append(_free_part(pipeline, asked))
    if asked.num_memory_prompts:
        parts.append(_memory_part(pipeline, asked))
    if asked.num_switches:
        parts.append(_switches_part(pipeline, asked))
    return parts


def _free_part(pipeline: VideoPipeline, asked: Evaluation) -> Part[Clip]:
    spans = _free_spans(asked)

    def wanted(first: int, *, is_long: bool) -> list[slice]:
        return [
            span for name, span in spans.items() if name != FREE_LATE or (is_long and first < asked.num_long_prompts)
        ]

    def drawn(batch: Sequence[Clip], first: int) -> Made:
        return Made(
            at_times=[
                draw(batch, span.stop - span.start, first_frame=span.start) for span in wanted(first, is_long=True)
            ]
        )

    def decoded(batch: Sequence[Clip], first: int) -> Made:
        return _decoded(pipeline, draw(batch, spans[FREE].stop), wanted(first, is_long=False))

    def streamer(policy: str) -> Maker[Clip]:
        def made(batch: Sequence[Clip], first: int) -> Made:
            prompts = [caption(clip.scene) for clip in batch]
            times = wanted(first, is_long=policy in asked.long_policies)
            return Made(at_times=streamed(pipeline, prompts, times, policy=policy, seed=asked.seed + first))

        return made

    def score(clip: Clip, frames: Tensor) -> dict[str, Any]:
        rights, details = free_rights(frames, clip.scene)
        return {"prompt": caption(clip.scene), "right": rights, **details}

    def results(times: Sequence[Mapping[str, Videos]]) -> dict[str, Any]:
        videos = dict(zip(spans, times, strict=True))
        parts = {
            name: _result(videos[name], span.start / FRAMES_PER_SECOND, span.stop / FRAMES_PER_SECOND)
            for name, span in spans.items()
        }
        if FREE_LATE in parts:
            parts[FREE_LATE]["drops"] = {
                policy: differences_of(_rights(videos[FREE][policy][: len(late)]), _rights(late))
                for policy in asked.policies
                if (late := videos[FREE_LATE].get(policy))
            }
        return parts

    return Part(
        name=FREE,
        items=held_out_clips(asked.num_prompts),
        makers={DRAWN: drawn, THROUGH_VAE: decoded, **{policy: streamer(policy) for policy in asked.policies}},
        score=score,
        results=results,
    )


def _free_spans(asked: Evaluation) -> dict[str, slice]:
    """The pixel frames of a free video that are scored, by part; the last one may not begin at 0."""
    soon, length, whole = (
        round(seconds * FRAMES_PER_SECOND) for seconds in (asked.short_seconds, asked.seconds, asked.long_seconds)
    )
    spans = {FREE: slice(0, length)}
    if soon < length:
        spans[FREE_SOON] = slice(0, soon)
    if whole > length and asked.num_long_prompts:
        spans[FREE_LATE] = slice(whole - length, whole)
    return spans


def _memory_part(pipeline: VideoPipeline, asked: Evaluation) -> Part[Clip]:
    num_frames = round(asked.memory_seconds * FRAMES_PER_SECOND)
    unnamed_frame = pixel_frames(pipeline.preset.chunk_frames)
    policies = [policy for policy in asked.policies if policy != SHORT_WINDOW]

    def streamer(policy: str) -> Maker[Clip]:
        def made(batch: Sequence[Clip], first: int) -> Made:
            prompts = [(caption(clip.scene), caption(clip.scene, named=False)) for clip in batch]
            seed = asked.seed + first
            video = streamed_switches(pipeline, prompts, unnamed_frame, num_frames, policy=policy, seed=seed)
            return Made(at_times=[video])

        return made

    def score(clip: Clip, frames: Tensor) -> dict[str, Any]:
        rights, details = memory_rights(frames, clip.scene)
        return {"prompt": caption(clip.scene, named=False), "right": rights, **details}

    def results(times: Sequence[Mapping[str, Videos]]) -> dict[str, Any]:
        (videos,) = times
        window = _rights(videos[SHORT_WINDOW])
        differences = {policy: differences_of(_rights(videos[policy]), window) for policy in policies}
        return {MEMORY: {**_result(videos, 0.0, asked.memory_seconds), "differences": differences}}

    return Part(
        name=MEMORY,
        items=held_out_clips(asked.num_memory_prompts, memory=True),
        makers={
            DRAWN: lambda batch, first: Made(at_times=[draw(batch, num_frames)]),
            THROUGH_VAE: lambda batch, first: _decoded(pipeline, draw(batch, num_frames), [slice(0, num_frames)]),
            **{policy: streamer(policy) for policy in (*policies, SHORT_WINDOW)},
        },
        score=score,
        results=results,
    )


def _switches_part(pipeline: VideoPipeline, asked: Evaluation) -> Part[tuple[Clip, Scene]]:
    switch_frame = first_chunk_frame(pipeline, _BEFORE_SWITCH_SECONDS)
    num_frames = switch_frame + round(_AFTER_SWITCH_SECONDS * FRAMES_PER_SECOND)

    def drawn(batch: Sequence[tuple[Clip, Scene]]) -> Tensor:
        return drawn_switches(batch, switch_frame, num_frames)

    def streamer(policy: str) -> Maker[tuple[Clip, Scene]]:
        def made(batch: Sequence[tuple[Clip, Scene]], first: int) -> Made:
            prompts = [(caption(clip.scene), caption(after)) for clip, after in batch]
            seed = asked.seed + first
            video = streamed_switches(pipeline, prompts, switch_frame, num_frames, policy=policy, seed=seed)
            return Made(at_times=[video])

        return made

    def score(item: tuple[Clip, Scene], frames: Tensor) -> dict[str, Any]:
        clip, after = item
        rights, details = switch_rights(frames, after, switch_frame)
        return {"prompt": caption(clip.scene), "switches_to": caption(after), "right": rights, **details}

    def results(times: Sequence[Mapping[str, Videos]]) -> dict[str, Any]:
        (videos,) = times
        part = _result(videos, 0.0, num_frames / FRAMES_PER_SECOND)
        return {SWITCHES: {**part, "switch_seconds": switch_frame / FRAMES_PER_SECOND}}

    befores, afters = held_out_clips(asked.num_switches, 1), held_out_clips(asked.num_switches, 2)
    return Part(
        name=SWITCHES,
        items=[(before, after.scene) for before, after in zip(befores, afters, strict=True)],
        makers={
            DRAWN: lambda batch, first: Made(at_times=[drawn(batch)]),
            THROUGH_VAE: lambda batch, first: _decoded(pipeline, drawn(batch), [slice(0, num_frames)]),
            **{policy: streamer(policy) for policy in asked.policies},
        },
        score=score,
        results=results,
    )


def _decoded(pipeline: VideoPipeline, videos: Tensor, spans: Sequence[slice]) -> Made:
    """Videos through the VAE, [B, frames, H, W, 3]."""
    decoded = through_vae(pipeline, videos)
    return Made(at_times=[decoded[:, span] for span in spans], psnr=psnr(videos, decoded))


def _result(videos: Mapping[str, Videos], from_seconds: float, to_seconds: float) -> dict[str, Any]:
    sources = {source: {"shares": shares_of(_rights(each)), "videos": each} for source, each in videos.items()}
    return {"seconds": [from_seconds, to_seconds], "sources": sources}


def _rights(videos: Videos) -> list[Rights]:
    return [video["right"] for video in videos]
