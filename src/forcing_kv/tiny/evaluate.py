"""What the embedded model is worth: held-out prompts, streamed for 20 s, scored by rule.

Two ceilings stand beside the model's figures, and tell what the scorer is worth: the drawn clips themselves, and the
drawn clips after the VAE. A share's 95 % interval is Wilson's.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from forcing_kv.pipeline import VideoPipeline
from forcing_kv.tiny.latents import encode_clip_means, standardised
from forcing_kv.tiny.prompts import parse, random_prompts
from forcing_kv.tiny.scorer import Score, score
from forcing_kv.tiny.world import FRAMES_PER_SECOND, draw
from forcing_kv.video import StreamingVaeDecoder

NUM_PROMPTS = 32
SECONDS = 20
ATTRIBUTES = ("colour", "background", "shape", "motion", "visible", "moving")

Report = Callable[[str], None]


def held_out_prompts(num: int = NUM_PROMPTS, seed: int = 0) -> list[str]:
    """The prompts of the evaluation: scenes that no training clip shows."""
    return random_prompts(num, seed, held_out=True)


def evaluate(
    pipeline: VideoPipeline,
    *,
    policies: Sequence[str] = ("full", "forcing-kv"),
    num_prompts: int = NUM_PROMPTS,
    seconds: float = SECONDS,
    batch_size: int = 8,
    seed: int = 1000,
    report: Report = lambda line: None,
) -> dict[str, Any]:
    """Score the model under each policy, on the same prompts and the same noise, and both ceilings.

    Args:
        pipeline: the model.
        policies: spellings of cache policies.
        num_prompts: held-out prompts.
        seconds: of each video.
        batch_size: videos made together.
        seed: of the first video's noise.
        report: called with a line of text after each part.

    Returns:
        Per source ("drawn", "drawn, through the VAE", each policy): shares with intervals, and each prompt's score.
    """
    prompts = held_out_prompts(num_prompts)
    num_frames = round(seconds * FRAMES_PER_SECOND)
    sources: dict[str, Callable[[Sequence[str], int], Tensor]] = {
        "drawn": lambda batch, first: drawn_videos(batch, num_frames),
        "drawn, through the VAE": lambda batch, first: through_vae(pipeline, drawn_videos(batch, num_frames)),
    }
    for policy in policies:
        sources[policy] = lambda batch, first, policy=policy: model_videos(  # type: ignore[misc]
            pipeline, batch, policy=policy, num_frames=num_frames, seed=seed + first
        )
    results: dict[str, Any] = {}
    for name, make in sources.items():
        scores: list[Score] = []
        for first in range(0, num_prompts, batch_size):
            batch = prompts[first : first + batch_size]
            videos = make(batch, first)[:, :num_frames]
            scores += [score(video, parse(prompt)) for video, prompt in zip(videos, batch, strict=True)]
        results[name] = {
            **summary(scores),
            "videos": [{"prompt": text, **each.as_dict()} for text, each in zip(prompts, scores, strict=True)],
        }
        report(f"{name}: " + ", ".join(f"{key} {value['share']:.2f}" for key, value in summary(scores).items()))
    return results


def summary(scores: Sequence[Score]) -> dict[str, dict[str, float | list[float]]]:
    """Share of the videos for which each attribute is right, and that did not collapse, with 95 % intervals."""
    counts = {name: sum(bool(getattr(each, name)) for each in scores) for name in ATTRIBUTES}
    counts["colour and background"] = sum(each.colour and each.background for each in scores)
    counts["no collapse"] = sum(not each.collapsed for each in scores)
    return {
        name: {
            "share": round(count / len(scores), 4),
            "interval_95": [round(bound, 4) for bound in wilson(count, len(scores))],
        }
        for name, count in counts.items()
    }


def wilson(count: int, total: int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson's score interval of a share."""
    share = count / total
    middle = share + z * z / (2 * total)
    half = z * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    scale = 1 + z * z / total
    return max(0.0, (middle - half) / scale), min(1.0, (middle + half) / scale)


def drawn_videos(prompts: Sequence[str], num_frames: int) -> Tensor:
    """What the prompts ask for, drawn: uint8 [prompts, frames, H, W, 3]."""
    return draw([parse(prompt) for prompt in prompts], num_frames)


@torch.no_grad()
def through_vae(pipeline: VideoPipeline, videos: Tensor) -> Tensor:
    """Encode and decode videos, cut to 4F-3 frames: uint8 [B, frames, H, W, 3] both ways."""
    usable = (videos.shape[1] - 1) // 4 * 4 + 1
    latents = standardised(pipeline.vae, encode_clip_means(pipeline.vae, videos[:, :usable]))
    return StreamingVaeDecoder(pipeline.vae).decode(latents)


def model_videos(pipeline: VideoPipeline, prompts: Sequence[str], *, policy: str, num_frames: int, seed: int) -> Tensor:
    """What the model makes of the prompts: uint8 [prompts, at least num_frames, H, W, 3]."""
    stream = pipeline.stream(list(prompts), policy=policy, num_frames=num_frames, seed=seed)
    return torch.cat([chunk.frames for chunk in stream if chunk.frames is not None], dim=1)
