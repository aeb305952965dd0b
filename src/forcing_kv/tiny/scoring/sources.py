"""Where the videos of an evaluation come from: drawn, drawn and through the VAE, or streamed by the model.

The drawn ones, at speeds within the world's jitter, are the ceilings that a model's shares are read beside: what the
scorer makes of the truth, and of the truth as the VAE shows it.
"""

import random
from collections.abc import Sequence
from itertools import islice

import torch
from torch import Tensor

from forcing_kv.geometry import pixel_frames
from forcing_kv.pipeline import VideoPipeline
from forcing_kv.prompt_schedule import ScheduledPrompt
from forcing_kv.tiny.scenes import random_scenes
from forcing_kv.tiny.world import FRAMES_PER_SECOND, SPEED_JITTER, Clip, Scene, draw
from forcing_kv.video import StreamingVaeDecoder, StreamingVaeEncoder


def held_out_clips(num: int, seed: int = 0, *, memory: bool = False) -> list[Clip]:
    """Scenes that no training clip shows, each at a speed of its own; always the same ones for a seed."""
    rng = random.Random(seed)
    scenes = islice(random_scenes(seed, memory=memory, held_out=True), num)
    return [Clip(scene=scene, speed_factor=1 + SPEED_JITTER * rng.uniform(-1, 1)) for scene in scenes]


def drawn_switches(switches: Sequence[tuple[Clip, Scene]], switch_frame: int, num_frames: int) -> Tensor:
    """Clips that switch to another scene, the object going on from where it is: uint8 [clips, frames, H, W, 3]."""
    before = [clip for clip, _ in switches]
    after = [clip.switched(scene, switch_frame) for clip, scene in switches]
    return torch.cat([draw(before, switch_frame), draw(after, num_frames - switch_frame)], dim=1)


def through_vae(pipeline: VideoPipeline, videos: Tensor) -> Tensor:
    """Encode and decode videos one by one: uint8 [B, frames, H, W, 3] -> the same, cut to 4F-3 frames."""
    usable = (videos.shape[1] - 1) // 4 * 4 + 1
    encoded = (StreamingVaeEncoder(pipeline.vae).encode(video[None, :usable]) for video in videos)
    return torch.cat([StreamingVaeDecoder(pipeline.vae).decode(latents) for latents in encoded])


def psnr(videos: Tensor, others: Tensor) -> list[float]:
    """Peak signal-to-noise ratio of each pair of videos in dB, over the frames that both have."""
    num_frames = min(videos.shape[1], others.shape[1])
    pairs = zip(videos[:, :num_frames], others[:, :num_frames], strict=True)
    errors = torch.stack([(first.float() - second.float()).square().mean() for first, second in pairs])
    ratios: list[float] = (10 * torch.log10(255.0**2 / errors.clamp_min(1e-6))).tolist()
    return ratios


def streamed(
    pipeline: VideoPipeline, prompts: Sequence[str], spans: Sequence[slice], *, policy: str, seed: int
) -> list[Tensor]:
    """What the model makes of prompts; only what is wanted is held in memory.

    Args:
        pipeline: the model.
        prompts: one per video.
        spans: the pixel frames wanted.
        policy: spelling of the cache policy.
        seed: of the first video's noise.

    Returns:
        Per span uint8 [prompts, frames, H, W, 3].
    """
    return _collected(pipeline, [ScheduledPrompt(text=tuple(prompts))], spans, policy=policy, seed=seed)


def streamed_switches(
    pipeline: VideoPipeline,
    prompts: Sequence[tuple[str, str]],
    switch_frame: int,
    num_frames: int,
    *,
    policy: str,
    seed: int,
) -> Tensor:
    """What the model makes of prompts that switch.

    Args:
        pipeline: the model.
        prompts: one pair per video, before and after.
        switch_frame: the first pixel frame of the chunk that the second prompt is for.
        num_frames: pixel frames in all.
        policy: spelling of the cache policy.
        seed: of the first video's noise.

    Returns:
        uint8 [prompts, frames, H, W, 3].
    """
    before, after = zip(*prompts, strict=True)
    at_seconds = switch_frame / pipeline.preset.fps
    schedule = [ScheduledPrompt(text=before), ScheduledPrompt(at_seconds=at_seconds, text=after)]
    return _collected(pipeline, schedule, [slice(0, num_frames)], policy=policy, seed=seed)[0]


def first_chunk_frame(pipeline: VideoPipeline, seconds: float) -> int:
    """The pixel frame with which the first chunk begins that starts at or after a time: where a switch takes effect."""
    chunk_frames = pipeline.preset.chunk_frames
    latent_frame = chunk_frames
    while pixel_frames(latent_frame) < seconds * FRAMES_PER_SECOND:
        latent_frame += chunk_frames
    return pixel_frames(latent_frame)


def _collected(
    pipeline: VideoPipeline, schedule: Sequence[ScheduledPrompt], spans: Sequence[slice], *, policy: str, seed: int
) -> list[Tensor]:
    parts: list[list[Tensor]] = [[] for _ in spans]
    first = 0
    for chunk in pipeline.stream(schedule, policy=policy, num_frames=max(span.stop for span in spans), seed=seed):
        assert chunk.frames is not None
        stop = first + chunk.frames.shape[1]
        for span, held in zip(spans, parts, strict=True):
            held.append(chunk.frames[:, max(span.start - first, 0) : max(min(span.stop, stop) - first, 0)])
        first = stop
    return [torch.cat(held, dim=1) for held in parts]
