"""The shape and the size of an object, by how well templates of all shapes and sizes fit its outline.

How much of each pixel the object fills is measured in the plane of colours without brightness, where the pattern of
the ground is not seen. Aligned at its centre of mass, it is compared with every template, however blurred; a fit is the
mean over many frames, and so a single bad frame does not decide.
"""

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F

from forcing_kv.tiny.scoring.blobs import Blobs
from forcing_kv.tiny.world import HEIGHT, SHAPES, SIZES, WIDTH, filled

_REACH = 28  # pixels from its centre that an object is looked at; none reaches further than 24
_RADII = tuple(9.5 + 0.8 * step for step in range(20))
_BLURS = (0.0, 1.0, 1.8, 2.6)  # sigma in pixels
_MAX_ERROR = 0.15  # of a shape that can be told, as a share of the area; the true one has 0.01, any other 0.04 to 0.4


@dataclass(frozen=True, kw_only=True)
class Fit:
    """What an object looks like.

    Attributes:
        shape: the one that fits best.
        radius: of the template that fits best, in pixels.
        error: squared difference from it, as a share of the area.
    """

    shape: str
    radius: float
    error: float

    @property
    def is_clear(self) -> bool:
        """Whether it looks like any of the shapes at all."""
        return self.error <= _MAX_ERROR

    @property
    def size(self) -> str:
        """The nearest named size."""
        return min(SIZES, key=lambda name: max(self.radius / SIZES[name], SIZES[name] / self.radius))


class Outlines:
    """One object's outline in each of some frames; `fit` tells what it is over any of them.

    Args:
        frames: uint8 [frames, HEIGHT, WIDTH, 3].
        blobs: theirs.
        which: long [frames], the area of each frame that is the object; the largest by default.
    """

    def __init__(self, frames: Tensor, blobs: Blobs, which: Tensor | None = None) -> None:
        which = torch.zeros(len(frames), dtype=torch.long) if which is None else which
        filled_share, corner = _coverage(frames, blobs, which)
        offset = _centre_of_mass(filled_share)
        self.centre = corner + offset
        """Centre of mass: float [frames, 2], x and y in pixels."""
        aligned = _moved(filled_share, offset - _REACH)
        area = aligned.sum(dim=(1, 2)).clamp_min(1)
        templates = _templates()
        squares = aligned.square().sum(dim=(1, 2))[:, None] + templates.square().sum(dim=1)
        self._errors = (squares - 2 * aligned.flatten(1) @ templates.T) / area[:, None]

    def fit(self, chosen: Tensor) -> Fit | None:
        """What the object is over the chosen frames, bool [frames]; None if there are none."""
        if not bool(chosen.any()):
            return None
        errors = self._errors[chosen].mean(dim=0)
        best = int(errors.argmin())
        shape, radius = divmod(best // len(_BLURS), len(_RADII))
        return Fit(shape=SHAPES[shape], radius=_RADII[radius], error=float(errors[best]))


@cache
def _templates() -> Tensor:
    """Every shape in every radius and blur about its centre of mass: [shapes * radii * blurs, pixels]."""
    place = torch.arange(2 * _REACH) + 0.5 - _REACH
    x, y = place[None], place[:, None]
    sharp = []
    for shape in SHAPES:
        for radius in _RADII:
            drawn = filled(shape, x, y, radius)
            lift = float((drawn * y).sum() / drawn.sum())
            sharp.append(filled(shape, x, y + lift, radius))
    return torch.stack([blurred(torch.stack(sharp), sigma) for sigma in _BLURS], dim=1).flatten(0, 1).flatten(1)


def blurred(pictures: Tensor, sigma: float) -> Tensor:
    """Gaussian blur of [n, height, width]; sigma in pixels, 0 for none."""
    if sigma == 0:
        return pictures
    reach = round(2.5 * sigma)
    kernel = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / sigma).square())
    kernel = (kernel / kernel.sum()).view(1, 1, 1, -1)
    padded = F.pad(pictures[:, None], (reach,) * 4, mode="replicate")
    return F.conv2d(F.conv2d(padded, kernel), kernel.transpose(2, 3))[:, 0]


def _coverage(frames: Tensor, blobs: Blobs, which: Tensor) -> tuple[Tensor, Tensor]:
    """Share of each pixel that the object fills.

    Returns:
        float [frames, 2 * _REACH, 2 * _REACH] around the object, and x and y of its first pixel's corner [frames, 2].
    """
    every = torch.arange(len(frames))
    corner = blobs.centre[every, which].round().long() - _REACH
    steps = torch.arange(2 * _REACH)
    x, y = corner[:, :1] + steps, corner[:, 1:] + steps
    in_picture = ((x >= 0) & (x < WIDTH))[:, None, :] & ((y >= 0) & (y < HEIGHT))[:, :, None]
    columns, rows = x.clamp(0, WIDTH - 1)[:, None, :], y.clamp(0, HEIGHT - 1)[:, :, None]
    near = F.max_pool2d(blobs.mask[every, which][:, None].float(), 5, stride=1, padding=2)[:, 0] > 0
    near = near[every[:, None, None], rows // 2, columns // 2]
    # Without brightness: a pattern adds the same to all channels.
    ground = _without_brightness(blobs.ground_colour)
    ink = _without_brightness(blobs.colour[every, which]) - ground
    ink = ink / ink.square().sum(dim=-1, keepdim=True).clamp_min(1)
    pixels = frames[every[:, None, None], rows, columns].float()
    share = (pixels @ ink[:, None, :, None])[..., 0] - (ground * ink).sum(dim=-1)[:, None, None]
    return share.clamp(0, 1) * (near & in_picture), corner.float()


def _without_brightness(colour: Tensor) -> Tensor:
    return colour - colour.mean(dim=-1, keepdim=True)


def _centre_of_mass(weight: Tensor) -> Tensor:
    """[frames, height, width] -> x and y [frames, 2], from the corner of the first pixel."""
    total = weight.sum(dim=(1, 2)).clamp_min(1)
    place = torch.arange(weight.shape[1]) + 0.5
    return torch.stack([(weight.sum(dim=axis) * place).sum(dim=-1) / total for axis in (1, 2)], dim=-1)


def _moved(pictures: Tensor, way: Tensor) -> Tensor:
    """Pictures [frames, n, n] moved left and up by some pixels [frames, 2]; what comes in is 0."""
    num = pictures.shape[1]
    theta = torch.eye(2).expand(len(pictures), 2, 2)
    affine = torch.cat([theta, (2 * way / num)[..., None]], dim=-1)
    grid = F.affine_grid(affine, [len(pictures), 1, num, num], align_corners=False)
    return F.grid_sample(pictures[:, None], grid, align_corners=False)[:, 0]
