"""What stands out from the background in each frame of a clip: one connected area, or none, or several."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from forcing_kv.tiny.world import SHAPES, SIGNED_DISTANCES, TRIANGLE_INRADIUS

_MIN_CONTRAST = 40.0  # largest channel difference from the background that counts as background
_MIN_AREA = 60  # pixels; the smallest object has 200
_MAX_AREA = 1200  # the largest has 460
_MAX_REST = 0.15  # area outside the largest blob, as a share of it
_BORDER = 2
_BLURS = (0.0, 1.0, 1.7, 2.4, 3.1)  # sigma in pixels, of the outlines that an object is compared with


@dataclass(frozen=True, kw_only=True)
class Blobs:
    """Per frame; what concerns the object means something only where `visible`.

    Attributes:
        background: float [frames, 3], median RGB of the picture's border.
        visible: bool [frames], whether there is one compact object.
        centre: float [frames, 2], x and y of its centre of mass in pixels.
        colour: float [frames, 3], median RGB of its inside.
        shape_errors: float [frames, shapes], how badly each of SHAPES fits its outline.
    """

    background: Tensor
    visible: Tensor
    centre: Tensor
    colour: Tensor
    shape_errors: Tensor


def find_blobs(frames: Tensor) -> Blobs:
    """Analyse frames, uint8 [frames, height, width, 3]."""
    pixels = frames.float()
    background = _border(pixels).median(dim=1).values
    difference = pixels - background[:, None, None]
    main, main_area, rest_area = _largest(difference.abs().amax(dim=-1) > _MIN_CONTRAST)
    inside = _eroded(main)
    colour = torch.stack([_median_colour(frame, mask) for frame, mask in zip(pixels, inside, strict=True)])
    # How far each pixel lies between background and object gives the outline to a fraction of a pixel.
    ink = colour - background
    coverage = (difference * ink[:, None, None]).sum(-1) / ink.square().sum(-1).clamp_min(1)[:, None, None]
    coverage = coverage.clamp(0, 1) * _dilated(main)
    outline = coverage > 0.5
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
    centre = _centre(coverage)
    return Blobs(
        background=background,
        visible=visible,
        centre=centre,
        colour=colour,
        shape_errors=_shape_errors(coverage, centre),
    )


def _shape_errors(coverage: Tensor, centre: Tensor) -> Tensor:
    """Squared difference of a coverage from each shape of the same area about the same centre of mass.

    A shape may be as blurred as it likes: the best of a few blurs counts.

    Args:
        coverage: [frames, height, width] in 0..1.
        centre: [frames, 2], x and y.

    Returns:
        [frames, shapes], as a share of the area.
    """
    area = coverage.sum(dim=(1, 2)).clamp_min(1)
    radius = (area / torch.pi).sqrt()[:, None, None]
    x = torch.arange(coverage.shape[2]) - centre[:, 0, None, None]
    y = torch.arange(coverage.shape[1])[:, None] - centre[:, 1, None, None]
    errors = []
    for shape, signed_distance in zip(SHAPES, SIGNED_DISTANCES, strict=True):
        lift = 0.5 * TRIANGLE_INRADIUS * radius if shape == "triangle" else 0.0  # from centre of mass to mid-height
        template = (0.5 - signed_distance(x, y + lift, radius)).clamp(0, 1)
        blurred = [_blurred(template, sigma) for sigma in _BLURS]
        errors.append(torch.stack([(coverage - each).square().sum(dim=(1, 2)) / area for each in blurred]).amin(dim=0))
    return torch.stack(errors, dim=-1)


def _blurred(pictures: Tensor, sigma: float) -> Tensor:
    """Gaussian blur of [frames, height, width]; sigma in pixels, 0 for none."""
    if sigma == 0:
        return pictures
    reach = round(2.5 * sigma)
    kernel = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / sigma).square())
    kernel = (kernel / kernel.sum()).view(1, 1, 1, -1)
    out = F.conv2d(pictures[:, None], kernel, padding=(0, reach))
    return F.conv2d(out, kernel.transpose(2, 3), padding=(reach, 0))[:, 0]


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


def _centre(weight: Tensor) -> Tensor:
    """Centre of mass, x and y: [frames, height, width] -> [frames, 2]."""
    area = weight.sum(dim=(1, 2)).clamp_min(1)
    x = (weight.sum(dim=1) * torch.arange(weight.shape[2])).sum(dim=1) / area
    y = (weight.sum(dim=2) * torch.arange(weight.shape[1])).sum(dim=1) / area
    return torch.stack([x, y], dim=-1)
