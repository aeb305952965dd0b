"""The coloured areas of each frame: where they are, how large, of what colour, and what is around them.

Objects are saturated and grounds are not, so an area is what stands out by the spread of its channels, whatever
pattern lies under it. Connected areas are found at half resolution: that is quick, and no part of an object is so thin.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from forcing_kv.errors import ConfigurationError
from forcing_kv.tiny.world import FRAMES_PER_SECOND, HEIGHT, WIDTH

MIN_AREA = 60.0
"""Pixels; less is nothing. The smallest object has 320."""

_MIN_SPREAD = 98.0  # of a pixel's channels; grounds have at most 64, objects at least 135
_NUM_AREAS = 2
_MAX_BLOCK = 64  # frames at a time, so that the work stays in the processor's cache


@dataclass(frozen=True, kw_only=True)
class Blobs:
    """The two largest coloured areas of each frame, the larger first. What an area of 0 pixels has means nothing.

    Attributes:
        area: float [frames, 2], in pixels.
        total_area: float [frames], of all coloured areas, in pixels.
        centre: float [frames, 2, 2], x and y of the centre of mass, in pixels.
        box: float [frames, 2, 4], left, top, right and bottom edge, in pixels, to the nearest two.
        at_border: bool [frames, 2, 4], whether it touches the picture's left, top, right and bottom edge.
        colour: float [frames, 2, 3], mean RGB of its inside.
        mask: bool [frames, 2, HEIGHT / 2, WIDTH / 2].
        ground: bool [frames, HEIGHT / 2, WIDTH / 2], what is not near any coloured area.
        half_size: float [frames, HEIGHT / 2, WIDTH / 2, 3], the frames at half resolution, 0..255.
    """

    area: Tensor
    total_area: Tensor
    centre: Tensor
    box: Tensor
    at_border: Tensor
    colour: Tensor
    mask: Tensor
    ground: Tensor
    half_size: Tensor

    @property
    def ground_colour(self) -> Tensor:
        """Mean RGB of the ground, in which a pattern averages out: float [frames, 3]."""
        weight = self.ground.float()[..., None]
        return (self.half_size * weight).sum(dim=(1, 2)) / weight.sum(dim=(1, 2)).clamp_min(1)

    @property
    def is_cut(self) -> Tensor:
        """Whether an area touches any edge of the picture: bool [frames, 2]."""
        return self.at_border.any(dim=-1)


def find_blobs(frames: Tensor) -> Blobs:
    """Analyse a clip.

    Args:
        frames: uint8 [frames, HEIGHT, WIDTH, 3], at least a second.

    Raises:
        ConfigurationError: if it is of another shape or type, or shorter.
    """
    if frames.dtype != torch.uint8 or frames.shape[1:] != (HEIGHT, WIDTH, 3) or len(frames) < FRAMES_PER_SECOND:
        raise ConfigurationError(
            f"a clip of {frames.dtype} {tuple(frames.shape)} cannot be scored; "
            f"need uint8 [frames >= {FRAMES_PER_SECOND}, {HEIGHT}, {WIDTH}, 3]"
        )
    parts = [_find(block) for block in torch.split(frames, _MAX_BLOCK)]
    return Blobs(**{name: torch.cat([getattr(part, name) for part in parts]) for name in vars(parts[0])})


def _find(frames: Tensor) -> Blobs:
    num_frames = len(frames)
    half_size = frames.view(num_frames, HEIGHT // 2, 2, WIDTH // 2, 2, 3).float().mean(dim=(2, 4))
    coloured = half_size.amax(dim=-1) - half_size.amin(dim=-1) > _MIN_SPREAD
    mask = _largest_areas(coloured)
    count = mask.sum(dim=(2, 3)).float()
    by_column, by_row = mask.any(dim=2), mask.any(dim=3)
    left, right = _extent(by_column)
    top, bottom = _extent(by_row)
    at_border = torch.stack([by_column[..., 0], by_row[..., 0], by_column[..., -1], by_row[..., -1]], dim=-1)
    x = (mask.sum(dim=2) * (2.0 * torch.arange(WIDTH // 2) + 1)).sum(dim=-1) / count.clamp_min(1)
    y = (mask.sum(dim=3) * (2.0 * torch.arange(HEIGHT // 2) + 1)).sum(dim=-1) / count.clamp_min(1)
    inside = _eroded(mask).float()
    colour = torch.einsum("fahw,fhwc->fac", inside, half_size) / inside.sum(dim=(2, 3)).clamp_min(1)[..., None]
    return Blobs(
        area=4 * count,
        total_area=4 * coloured.sum(dim=(1, 2)).float(),
        centre=torch.stack([x, y], dim=-1),
        box=2.0 * torch.stack([left, top, right, bottom], dim=-1),
        at_border=at_border,
        colour=colour,
        mask=mask,
        ground=~_dilated(coloured[:, None], 2)[:, 0],
        half_size=half_size,
    )


def _largest_areas(coloured: Tensor) -> Tensor:
    """Masks of the largest 8-connected areas, the largest first: bool [frames, h, w] -> bool [frames, areas, h, w]."""
    num_frames, height, width = coloured.shape
    num_pixels = height * width
    # A pixel takes the highest label around it, then that of the pixel which has this number, until nothing changes.
    labels = (torch.arange(1, num_pixels + 1).view(1, height, width) * coloured).float()
    while True:
        spread = F.max_pool2d(labels[:, None], 3, stride=1, padding=1)[:, 0] * coloured
        flat = F.pad(spread.view(num_frames, num_pixels), (1, 0))
        jumped = flat.gather(1, flat.long()).gather(1, flat.long())[:, 1:].view_as(labels)
        if torch.equal(jumped, labels):
            break
        labels = jumped
    index = labels.view(num_frames, num_pixels).long()
    sizes = torch.zeros(num_frames, num_pixels + 1).scatter_add_(1, index, torch.ones(num_frames, num_pixels))
    sizes[:, 0] = 0
    largest = sizes.topk(_NUM_AREAS, dim=1).indices
    return (index[:, None] == largest[..., None]).view(num_frames, -1, height, width) & coloured[:, None]


def _extent(occupied: Tensor) -> tuple[Tensor, Tensor]:
    """First occupied place and the one after the last: bool [..., places] -> two of [...]."""
    places = torch.arange(occupied.shape[-1])
    first = torch.where(occupied, places, occupied.shape[-1]).amin(dim=-1)
    return first.float(), torch.where(occupied, places + 1, 0).amax(dim=-1).float()


def _eroded(mask: Tensor) -> Tensor:
    """Without its outermost pixels; the mask itself where nothing would remain. The picture's edge is no outline."""
    inside = ~_dilated(~mask, 1)
    return torch.where(inside.any(dim=-1).any(dim=-1)[..., None, None], inside, mask)


def _dilated(mask: Tensor, reach: int) -> Tensor:
    """What is within some pixels of a mask: bool [frames, n, h, w], the same shape."""
    return F.max_pool2d(mask.float(), 2 * reach + 1, stride=1, padding=reach) > 0
