"""What stands out from the background in each frame of a clip: one connected area, or none, or several."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

_MIN_CONTRAST = 40.0  # largest channel difference from the background that counts as background
_MIN_AREA = 60  # pixels; the smallest object has 200
_MAX_AREA = 1200  # the largest has 460
_MAX_REST = 0.15  # area outside the largest blob, as a share of it
_BORDER = 2


@dataclass(frozen=True, kw_only=True)
class Blobs:
    """Per frame; what concerns the object means something only where `visible`.

    Attributes:
        background: float [frames, 3], median RGB of the picture's border.
        visible: bool [frames], whether there is one compact object.
        centre: float [frames, 2], x and y of its centre of mass in pixels.
        colour: float [frames, 3], median RGB of its inside.
        fill: float [frames], the share of its bounding box that it covers.
    """

    background: Tensor
    visible: Tensor
    centre: Tensor
    colour: Tensor
    fill: Tensor


def find_blobs(frames: Tensor) -> Blobs:
    """Analyse frames, uint8 [frames, height, width, 3]."""
    pixels = frames.float()
    background = _border(pixels).median(dim=1).values
    difference = pixels - background[:, None, None]
    main, main_area, rest_area = _largest(difference.abs().amax(dim=-1) > _MIN_CONTRAST)
    inside = _eroded(main)
    colour = torch.stack([_median_colour(frame, mask) for frame, mask in zip(pixels, inside, strict=True)])
    # A second cut, half-way between background and object, gives the outline to a fraction of a pixel.
    ink = colour - background
    coverage = (difference * ink[:, None, None]).sum(-1) / ink.square().sum(-1).clamp_min(1)[:, None, None]
    outline = (coverage > 0.5) & _dilated(main)
    area = outline.sum(dim=(1, 2)).float()
    height = outline.any(dim=2).sum(dim=1)
    width = outline.any(dim=1).sum(dim=1)
    fill = area / (height * width).clamp_min(1)
    visible = (
        (main_area >= _MIN_AREA)
        & (main_area <= _MAX_AREA)
        & (rest_area <= _MAX_REST * main_area)
        & (fill > 0.35)
        & (torch.maximum(height, width) < 2.2 * torch.minimum(height, width))
    )
    return Blobs(background=background, visible=visible, centre=_centre(outline), colour=colour, fill=fill)


def _border(pixels: Tensor) -> Tensor:
    """[frames, height, width, 3] -> the outermost pixels [frames, n, 3]."""
    edge = torch.zeros(pixels.shape[1:3], dtype=torch.bool)
    edge[:_BORDER] = edge[-_BORDER:] = True
    edge[:, :_BORDER] = edge[:, -_BORDER:] = True
    return pixels[:, edge]


def _largest(mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The largest 8-connected area of each frame.

    Args:
        mask: bool [frames, height, width].

    Returns:
        Its mask, its area [frames], and the area of all the others [frames].
    """
    num_frames, height, width = mask.shape
    # Every pixel takes the highest index in its area: labels spread until nothing changes.
    labels = torch.arange(1, height * width + 1, dtype=torch.float32).view(1, 1, height, width) * mask[:, None]
    while True:
        spread = F.max_pool2d(labels, 3, stride=1, padding=1) * mask[:, None]
        if torch.equal(spread, labels):
            break
        labels = spread
    flat = labels.view(num_frames, -1).long()
    areas = torch.zeros(num_frames, height * width + 1, dtype=torch.long).scatter_add_(1, flat, torch.ones_like(flat))
    areas[:, 0] = 0
    area, label = areas.max(dim=1)
    main = (flat == label[:, None]).view_as(mask) & mask
    return main, area, areas.sum(dim=1) - area


def _eroded(mask: Tensor) -> Tensor:
    """Without its outermost two pixels; the mask itself where nothing would remain."""
    inside = ~(F.max_pool2d((~mask[:, None]).float(), 5, stride=1, padding=2) > 0)[:, 0]
    empty = ~inside.any(dim=2).any(dim=1)
    return torch.where(empty[:, None, None], mask, inside)


def _dilated(mask: Tensor) -> Tensor:
    return F.max_pool2d(mask[:, None].float(), 3, stride=1, padding=1)[:, 0] > 0


def _median_colour(frame: Tensor, mask: Tensor) -> Tensor:
    return frame[mask].median(dim=0).values if bool(mask.any()) else torch.zeros(3)


def _centre(mask: Tensor) -> Tensor:
    weight = mask.float()
    area = weight.sum(dim=(1, 2)).clamp_min(1)
    x = (weight.sum(dim=1) * torch.arange(mask.shape[2])).sum(dim=1) / area
    y = (weight.sum(dim=2) * torch.arange(mask.shape[1])).sum(dim=1) / area
    return torch.stack([x, y], dim=-1)
