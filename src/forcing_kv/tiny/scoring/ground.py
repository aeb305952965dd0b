"""The pattern of the ground and which way it goes, from its strongest wave across the picture.

Both patterns repeat every `TEXTURE_PERIOD` pixels from left to right; the checkered one also from top to bottom. The
phase of that wave tells where the pattern lies, and so how the camera pans.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from forcing_kv.tiny.scoring.blobs import Blobs
from forcing_kv.tiny.world import CAMERAS, FRAMES_PER_SECOND, HEIGHT, PAN_SPEED, TEXTURE_PERIOD, TEXTURES, WIDTH

_MIN_AMPLITUDE = 7.0  # grey levels; the drawn patterns have 18 and 23, what a noisy picture has by chance is under 3
_LAG = 8  # frames over which a pan is measured: half a second


@dataclass(frozen=True, kw_only=True)
class Pattern:
    """The ground of each frame.

    Attributes:
        texture: long [frames], index into `TEXTURES`.
        wave: complex [frames], the strongest wave from left to right; its phase falls as the pattern goes right.
    """

    texture: Tensor
    wave: Tensor

    def camera(self, span: slice) -> str | None:
        """What the camera does over some frames; None where no pattern is seen."""
        wave, texture = self.wave[span], self.texture[span]
        if len(wave) <= _LAG or int(texture.median()) == TEXTURES.index("plain"):
            return None
        turn = (wave[_LAG:] * wave[:-_LAG].conj()).sum().angle()
        rightward = -float(turn) * TEXTURE_PERIOD / (2 * math.pi) * FRAMES_PER_SECOND / _LAG
        speeds = dict(
            zip(CAMERAS, (0.0, PAN_SPEED, -PAN_SPEED), strict=True)
        )  # a camera that pans left shows more left
        return min(speeds, key=lambda name: abs(speeds[name] - rightward))


def find_pattern(blobs: Blobs) -> Pattern:
    """Analyse the ground of a clip."""
    weight = blobs.ground.float()
    brightness = blobs.half_size.mean(dim=-1)
    total = weight.sum(dim=(1, 2)).clamp_min(1)
    mean = (brightness * weight).sum(dim=(1, 2)) / total
    relief = (brightness - mean[:, None, None]) * weight / total[:, None, None]
    across, down = _circular(WIDTH), _circular(HEIGHT)
    by_row = relief.to(torch.complex64) @ across.conj()
    striped = 2 * by_row.sum(dim=1)
    checkered, shifted = 4 * (by_row * down.real).sum(dim=1), 4 * (by_row * down.imag).sum(dim=1)
    amplitudes = torch.stack(
        [
            torch.full_like(mean, _MIN_AMPLITUDE),
            striped.abs(),
            (checkered.abs().square() + shifted.abs().square()).sqrt(),
        ],
        dim=-1,
    )
    texture = amplitudes.argmax(dim=-1)
    wave = torch.where(texture == TEXTURES.index("checkered"), checkered, striped)
    return Pattern(texture=texture, wave=wave)


def _circular(length: int) -> Tensor:
    """The wave of the patterns' period at each pixel of half resolution: complex [length / 2]."""
    angle = 2 * math.pi * (2 * torch.arange(length // 2) + 1.0) / TEXTURE_PERIOD
    return torch.polar(torch.ones_like(angle), angle)
