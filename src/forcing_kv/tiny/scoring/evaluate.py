"""What the embedded model is worth: held-out prompts, streamed under each cache policy, scored by rule.

Four parts: free scenes, at first and at the end of a minute, memory scenes, and switches of prompts. In each, two
ceilings stand beside the model's shares: the drawn clips, and the drawn clips through the VAE. All policies get the
same prompts and the same noise, so that their differences are paired. In memory scenes the prompt names the objects for
the first chunk only, so that later nothing but old frames tells what they were. That this takes memory is shown by a
window of less than a second of history, under which the model must keep fewer objects.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

from torch import Tensor

from forcing_kv.geometry import pixel_frames
from forcing_kv.models.weights import weights_sha256
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
_AFTER_SWITCH_SECONDS = 6.0

Report = Callable[[str], None]
Videos = list[dict[str, Any]]
Item = TypeVar("Item")
Maker = Callable[[Sequence[Item], int], Sequence[Tensor]]
"""From some items and the number of the first to their videos, [items, frames, H, W, 3], at each of some times."""


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


def evaluate(
    pipeline: VideoPipeline, asked: Evaluation = Evaluation(), *, report: Report = lambda line: None
) -> dict[str, Any]:
    """Score the model under each policy, and both ceilings.

    Args:
        pipeline: the model.
        asked: of what, and how much.
        report: called with a line of text after each batch.

    Returns:
        `weights_sha256` and `dtype` of the transformer; `vae_psnr` in dB over the drawn videos; and under `parts`, per
        part, `seconds` (from, to) and `sources`: per source ("drawn", "drawn, through the VAE", each policy) the
        `shares` of videos that are right, with intervals, and every video's score under `videos`. Beside them the late
        part of free scenes has `drops`: per policy the paired differences, early less late; and that of memory scenes
        `differences`: per policy those from `SHORT_WINDOW`.
    """
    ratios: list[float] = []
    parts: dict[str, Any] = {}
    if asked.num_prompts:
        parts |= _free_parts(pipeline, asked, ratios, report)
    if asked.num_memory_prompts:
        parts[MEMORY] = _memory_part(pipeline, asked, ratios, report)
    if asked.num_switches:
        parts[SWITCHES] = _switches_part(pipeline, asked, ratios, report)
    return {
        "weights_sha256": weights_sha256(pipeline.transformer),
        "dtype": str(pipeline.dtype).removeprefix("torch."),
        "vae_psnr": {
            "mean_db": round(sum(ratios) / len(ratios), 2) if ratios else None,
            "lowest_db": round(min(ratios), 2) if ratios else None,
            "num_videos": len(ratios),
        },
        "parts": parts,
    }


def scores_record(results: dict[str, Any], asked: Evaluation) -> dict[str, Any]:
    """What is kept beside a model's weights, as `scores.json`: the shares, and of which weights they are.

    Args:
        results: of `evaluate`.
        asked: what it was called with.

    Returns:
        `format`, `version`, `weights_sha256` and `dtype` (the hash is that of the weights in this dtype), `evaluation`
        (the settings), `vae_psnr`, and `parts`: what `evaluate` gives, without the videos. Nothing of when or where.
    """
    parts = {
        name: {
            **{key: value for key, value in part.items() if key != "sources"},
            "sources": {source: {"shares": scored["shares"]} for source, scored in part["sources"].items()},
        }
        for name, part in results["parts"].items()
    }
    return {
        "format": "forcing-kv-tiny-scores",
        "version": 1,
        "evaluation": {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(asked).items()},
        **{name: results[name] for name in ("weights_sha256", "dtype", "vae_psnr")},
        "parts": parts,
    }


def _free_parts(pipeline: VideoPipeline, asked: Evaluation, ratios: list[float], report: Report) -> dict[str, Any]:
    spans = _free_spans(asked)

    def wanted(first: int, *, is_long: bool) -> list[slice]:
        return [
            span for name, span in spans.items() if name != FREE_LATE or (is_long and first < asked.num_long_prompts)
        ]

    def drawn(batch: Sequence[Clip], first: int) -> list[Tensor]:
        return [draw(batch, span.stop - span.start, first_frame=span.start) for span in wanted(first, is_long=True)]

    def decoded(batch: Sequence[Clip], first: int) -> list[Tensor]:
        video = _decoded(pipeline, draw(batch, spans[FREE].stop), ratios)
        return [video[:, span] for span in wanted(first, is_long=False)]

    def made(policy: str) -> Maker[Clip]:
        return lambda batch, first: streamed(
            pipeline,
            [caption(clip.scene) for clip in batch],
            wanted(first, is_long=policy in asked.long_policies),
            policy=policy,
            seed=asked.seed + first,
        )

    def scored(clip: Clip, frames: Tensor) -> dict[str, Any]:
        rights, details = free_rights(frames, clip.scene)
        return {"prompt": caption(clip.scene), "right": rights, **details}

    results = _scored(
        FREE,
        held_out_clips(asked.num_prompts),
        {DRAWN: drawn, THROUGH_VAE: decoded, **{policy: made(policy) for policy in asked.policies}},
        scored,
        batch_size=asked.batch_size,
        report=report,
    )
    videos = dict(zip(spans, results, strict=True))
    parts = {
        name: _part(videos[name], span.start / FRAMES_PER_SECOND, span.stop / FRAMES_PER_SECOND)
        for name, span in spans.items()
    }
    if FREE_LATE in parts:
        parts[FREE_LATE]["drops"] = {
            policy: differences_of(_rights(videos[FREE][policy][: len(late)]), _rights(late))
            for policy in asked.policies
            if (late := videos[FREE_LATE].get(policy))
        }
    return parts


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


def _memory_part(pipeline: VideoPipeline, asked: Evaluation, ratios: list[float], report: Report) -> dict[str, Any]:
    num_frames = round(asked.memory_seconds * FRAMES_PER_SECOND)

    def made(policy: str) -> Maker[Clip]:
        return lambda batch, first: [
            streamed_switches(
                pipeline,
                [(caption(clip.scene), caption(clip.scene, named=False)) for clip in batch],
                pixel_frames(pipeline.preset.chunk_frames),
                num_frames,
                policy=policy,
                seed=asked.seed + first,
            )
        ]

    def scored(clip: Clip, frames: Tensor) -> dict[str, Any]:
        rights, details = memory_rights(frames, clip.scene.motion)
        return {"prompt": caption(clip.scene, named=False), "right": rights, **details}

    policies = [policy for policy in asked.policies if policy != SHORT_WINDOW]
    (videos,) = _scored(
        MEMORY,
        held_out_clips(asked.num_memory_prompts, memory=True),
        {
            DRAWN: lambda batch, first: [draw(batch, num_frames)],
            THROUGH_VAE: lambda batch, first: [_decoded(pipeline, draw(batch, num_frames), ratios)],
            **{policy: made(policy) for policy in (*policies, SHORT_WINDOW)},
        },
        scored,
        batch_size=asked.batch_size,
        report=report,
    )
    window = _rights(videos[SHORT_WINDOW])
    differences = {policy: differences_of(_rights(videos[policy]), window) for policy in policies}
    return {**_part(videos, 0.0, asked.memory_seconds), "differences": differences}


def _switches_part(pipeline: VideoPipeline, asked: Evaluation, ratios: list[float], report: Report) -> dict[str, Any]:
    switch_frame = first_chunk_frame(pipeline, _BEFORE_SWITCH_SECONDS)
    num_frames = switch_frame + round(_AFTER_SWITCH_SECONDS * FRAMES_PER_SECOND)

    def drawn(batch: Sequence[tuple[Clip, Scene]]) -> Tensor:
        return drawn_switches(batch, switch_frame, num_frames)

    def made(policy: str) -> Maker[tuple[Clip, Scene]]:
        return lambda batch, first: [
            streamed_switches(
                pipeline,
                [(caption(clip.scene), caption(after)) for clip, after in batch],
                switch_frame,
                num_frames,
                policy=policy,
                seed=asked.seed + first,
            )
        ]

    def scored(item: tuple[Clip, Scene], frames: Tensor) -> dict[str, Any]:
        clip, after = item
        rights, details = switch_rights(frames, after, switch_frame)
        return {"prompt": caption(clip.scene), "switches_to": caption(after), "right": rights, **details}

    befores, afters = held_out_clips(asked.num_switches, 1), held_out_clips(asked.num_switches, 2)
    (videos,) = _scored(
        SWITCHES,
        [(before, after.scene) for before, after in zip(befores, afters, strict=True)],
        {
            DRAWN: lambda batch, first: [drawn(batch)],
            THROUGH_VAE: lambda batch, first: [_decoded(pipeline, drawn(batch), ratios)],
            **{policy: made(policy) for policy in asked.policies},
        },
        scored,
        batch_size=asked.batch_size,
        report=report,
    )
    return {**_part(videos, 0.0, num_frames / FRAMES_PER_SECOND), "switch_seconds": switch_frame / FRAMES_PER_SECOND}


def _scored(
    part: str,
    items: Sequence[Item],
    makers: Mapping[str, Maker[Item]],
    scored: Callable[[Item, Tensor], dict[str, Any]],
    *,
    batch_size: int,
    report: Report,
) -> list[dict[str, Videos]]:
    """Every video's score: per time at which the makers give videos, per source."""
    results: list[dict[str, Videos]] = []
    for source, make in makers.items():
        for first in range(0, len(items), batch_size):
            batch = items[first : first + batch_size]
            for at, videos in enumerate(make(batch, first)):
                if at == len(results):
                    results.append({})
                scores = results[at].setdefault(source, [])
                scores += [scored(item, video) for item, video in zip(batch, videos, strict=True)]
            report(f"{part}, {source}: {first + len(batch)} of {len(items)}")
    return results


def _part(videos: Mapping[str, Videos], from_seconds: float, to_seconds: float) -> dict[str, Any]:
    sources = {source: {"shares": shares_of(_rights(each)), "videos": each} for source, each in videos.items()}
    return {"seconds": [from_seconds, to_seconds], "sources": sources}


def _rights(videos: Videos) -> list[Rights]:
    return [video["right"] for video in videos]


def _decoded(pipeline: VideoPipeline, videos: Tensor, ratios: list[float]) -> Tensor:
    """Videos through the VAE, [B, frames, H, W, 3]; their PSNR goes to `ratios`."""
    decoded = through_vae(pipeline, videos)
    ratios += psnr(videos, decoded)
    return decoded
