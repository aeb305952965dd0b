"""The transformer's training set: drawn clips, encoded once, kept in memory as bf16 latents.

Clips start at the start of a stream. Some are long, so that a chunk can have a long history; most are short, so that
there are many scenes.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKLWan
from torch import Tensor

from forcing_kv.tiny.prompts import is_held_out, varied_caption
from forcing_kv.tiny.vae import encode_moments, pixels_of
from forcing_kv.tiny.world import SPEED_JITTER, Scene, all_scenes, draw

_MOTION_WEIGHT = 4.0
_MOTION_SCALE = 0.5


@dataclass(frozen=True, kw_only=True)
class ClipGroup:
    """Clips of one length.

    Attributes:
        latents: bf16 [clips, frames, C, h, w], standardised per channel.
        scenes: what each clip shows.
    """

    latents: Tensor
    scenes: tuple[Scene, ...]


class LatentClips:
    """All clips, by length, ready to be sampled."""

    def __init__(self, groups: Sequence[ClipGroup]) -> None:
        by_length: dict[int, list[ClipGroup]] = {}
        for group in groups:
            by_length.setdefault(group.latents.shape[1], []).append(group)
        self.groups = [_joined(by_length[length]) for length in sorted(by_length)]
        self.medians = [group.latents[:, 1:].float().median(dim=1, keepdim=True).values for group in self.groups]

    @property
    def max_frames(self) -> int:
        """Latent frames of the longest clips."""
        return self.groups[-1].latents.shape[1]

    def sample(
        self, num_samples: int, frames: Sequence[int], generator: torch.Generator
    ) -> tuple[Tensor, Tensor, list[str]]:
        """Random clips that have these frames.

        Returns:
            Latents fp32 [samples, frames, C, h, w]; loss weights of the same shape, higher where the picture moves;
            captions.
        """
        able = [index for index, group in enumerate(self.groups) if group.latents.shape[1] > max(frames)]
        sizes = torch.tensor([len(self.groups[index].scenes) for index in able], dtype=torch.float32)
        which = able[int(torch.multinomial(sizes, 1, generator=generator))]
        group = self.groups[which]
        picks = torch.randint(len(group.scenes), (num_samples,), generator=generator)
        latents = group.latents[picks][:, list(frames)].float()
        motion = ((latents - self.medians[which][picks]).abs() / _MOTION_SCALE).clamp(max=1)
        weights = 1 + _MOTION_WEIGHT * motion
        rng = random.Random(int(torch.randint(2**31, (), generator=generator)))
        return latents, weights, [varied_caption(group.scenes[pick], rng) for pick in picks.tolist()]


def _joined(groups: Sequence[ClipGroup]) -> ClipGroup:
    return ClipGroup(
        latents=torch.cat([group.latents for group in groups]),
        scenes=tuple(scene for group in groups for scene in group.scenes),
    )


@torch.no_grad()
def encode_clips(
    vae: AutoencoderKLWan,
    num_clips: int,
    num_frames: int,
    *,
    seed: int,
    report: Callable[[int], None] = lambda done: None,
) -> ClipGroup:
    """Draw and encode random training scenes (never held-out ones).

    Args:
        vae: the trained VAE, its `latents_mean` and `latents_std` set.
        num_clips: how many.
        num_frames: latent frames each.
        seed: of scenes and speeds.
        report: called with the number of clips done.
    """
    rng = random.Random(seed)
    trained = [scene for scene in all_scenes() if not is_held_out(scene)]
    scenes = tuple(rng.choice(trained) for _ in range(num_clips))
    factors = [1 + SPEED_JITTER * rng.uniform(-1, 1) for _ in scenes]
    per_call = max(1, 96 // num_frames)
    parts = []
    for start in range(0, num_clips, per_call):
        batch = scenes[start : start + per_call]
        clips = draw(batch, 4 * num_frames - 3, speed_factors=factors[start : start + per_call])
        parts.append(standardised(vae, encode_clip_means(vae, clips)).bfloat16())
        report(start + len(batch))
    return ClipGroup(latents=torch.cat(parts), scenes=scenes)


def encode_clip_means(vae: AutoencoderKLWan, clips: Tensor) -> Tensor:
    """uint8 [B, 4F-3, H, W, 3] -> latents fp32 [B, F, C, h, w], not standardised; computed in bf16."""
    pixels = pixels_of(clips).contiguous(memory_format=torch.channels_last_3d)
    device = next(vae.parameters()).device
    with torch.autocast(device.type, dtype=torch.bfloat16):
        mean, _ = encode_moments(vae, pixels.to(device))
    return mean.float().cpu().transpose(1, 2)


def standardised(vae: AutoencoderKLWan, latents: Tensor) -> Tensor:
    """Per-channel standardisation of [B, F, C, h, w] by the VAE's config."""
    mean = torch.tensor(vae.config.latents_mean)[:, None, None]
    std = torch.tensor(vae.config.latents_std)[:, None, None]
    return (latents - mean) / std


def save_group(group: ClipGroup, path: Path) -> None:
    """Write a group; `load_group` reads it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"latents": group.latents, "scenes": [scene.values() for scene in group.scenes]}, path)


def load_group(path: Path) -> ClipGroup:
    """Read a group that `save_group` wrote."""
    data = torch.load(path, weights_only=True)
    names = ("colour", "shape", "size", "motion", "speed", "place", "background")
    scenes = tuple(Scene(**dict(zip(names, values, strict=True))) for values in data["scenes"])
    return ClipGroup(latents=data["latents"], scenes=scenes)
