"""The world of the embedded model: one coloured shape that moves for ever on a flat background.

A `Scene` names everything there is to say about a clip, and `draw` renders any number of scenes at once from signed
distances, anti-aliased. The path of a scene is an analytic function of time that never leaves the picture, so a clip
may be as long as one likes and each frame can be drawn on its own.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from forcing_kv.errors import UnknownNameError

HEIGHT = 64
WIDTH = 96
FRAMES_PER_SECOND = 16

Rgb = tuple[int, int, int]

COLOURS: dict[str, Rgb] = {
    "red": (220, 40, 40),
    "green": (40, 175, 60),
    "blue": (45, 85, 230),
    "yellow": (245, 225, 50),
    "purple": (155, 55, 200),
    "orange": (245, 135, 25),
}
BACKGROUNDS: dict[str, Rgb] = {
    "black": (16, 16, 20),
    "white": (238, 238, 238),
    "gray": (125, 125, 130),
    "brown": (105, 68, 42),
}
SHAPES = ("circle", "square", "triangle")
SIZES: dict[str, float] = {"small": 8.0, "large": 12.0}
"""Radius in pixels of the circle with the shape's area (the triangle reaches a little further)."""
SPEEDS: dict[str, float] = {"slowly": 16.0, "quickly": 32.0}
"""Pixels per second."""
MOTIONS = ("sideways", "up and down", "in circles")
PLACES = ("left", "right", "top", "bottom", "center")

SPEED_JITTER = 0.1
"""A clip's speed is the named one times a factor within 1 +- this, which only the history tells."""

_MARGIN = 16.0  # nearest that a centre comes to the picture's edge: no shape of any size is cut
_ORBIT_RADIUS = 13.0
_CHOICES: dict[str, tuple[str, ...]] = {
    "colour": tuple(COLOURS),
    "shape": SHAPES,
    "size": tuple(SIZES),
    "motion": MOTIONS,
    "speed": tuple(SPEEDS),
    "place": PLACES,
    "background": tuple(BACKGROUNDS),
}


@dataclass(frozen=True, kw_only=True)
class Scene:
    """Everything a prompt can say. Each field is one of the names of this module.

    Raises:
        UnknownNameError: if a field holds a name that the world does not know.
    """

    colour: str
    shape: str
    size: str = "large"
    motion: str = "sideways"
    speed: str = "slowly"
    place: str = "center"
    background: str = "gray"

    def __post_init__(self) -> None:
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise UnknownNameError(name, getattr(self, name), choices)

    def values(self) -> tuple[str, ...]:
        """The seven names, in the order of the fields."""
        return tuple(getattr(self, field.name) for field in fields(self))


def all_scenes() -> list[Scene]:
    """Every scene of the world (4,320), in a fixed order."""
    return [
        Scene(colour=colour, shape=shape, size=size, motion=motion, speed=speed, place=place, background=background)
        for colour in COLOURS
        for shape in SHAPES
        for size in SIZES
        for motion in MOTIONS
        for speed in SPEEDS
        for place in PLACES
        for background in BACKGROUNDS
    ]


def draw(
    scenes: Sequence[Scene], num_frames: int, *, speed_factors: Sequence[float] | None = None, first_frame: int = 0
) -> Tensor:
    """Draw clips.

    Args:
        scenes: one per clip.
        num_frames: pixel frames per clip, at 16 per second.
        speed_factors: multiplies each scene's named speed; 1 by default.
        first_frame: the pixel frame to start with; 0 is the start of the stream.

    Returns:
        uint8 [clips, frames, HEIGHT, WIDTH, 3].
    """
    radii = torch.tensor([SIZES[scene.size] for scene in scenes])
    colours = torch.tensor([COLOURS[scene.colour] for scene in scenes], dtype=torch.float32)
    backgrounds = torch.tensor([BACKGROUNDS[scene.background] for scene in scenes], dtype=torch.float32)
    shapes = torch.tensor([SHAPES.index(scene.shape) for scene in scenes])
    centres = centres_of(scenes, num_frames, speed_factors=speed_factors, first_frame=first_frame)
    x = torch.arange(WIDTH) + 0.5 - centres[:, :, None, None, 0]  # [clips, frames, 1, WIDTH]
    y = torch.arange(HEIGHT)[:, None] + 0.5 - centres[:, :, None, None, 1]  # [clips, frames, HEIGHT, 1]
    coverage = torch.empty(len(scenes), num_frames, HEIGHT, WIDTH)
    for index, signed_distance in enumerate(SIGNED_DISTANCES):
        chosen = shapes == index
        coverage[chosen] = (0.5 - signed_distance(x[chosen], y[chosen], radii[chosen, None, None, None])).clamp(0, 1)
    ink = (colours - backgrounds)[:, None, None, None]
    return (backgrounds[:, None, None, None] + coverage[..., None] * ink).round().to(torch.uint8)


def centres_of(
    scenes: Sequence[Scene], num_frames: int, *, speed_factors: Sequence[float] | None = None, first_frame: int = 0
) -> Tensor:
    """Where the object's centre is in each frame.

    Args:
        scenes: one per clip.
        num_frames: pixel frames per clip.
        speed_factors: multiplies each scene's named speed; 1 by default.
        first_frame: the pixel frame to start with.

    Returns:
        float32 [clips, frames, 2]: x from the left edge and y from the top edge, in pixels.
    """
    factors = [1.0] * len(scenes) if speed_factors is None else speed_factors
    seconds = torch.arange(first_frame, first_frame + num_frames) / FRAMES_PER_SECOND
    paths = [
        _path(scene, seconds * SPEEDS[scene.speed] * factor) for scene, factor in zip(scenes, factors, strict=True)
    ]
    return torch.stack(paths)


def _path(scene: Scene, travelled: Tensor) -> Tensor:
    """Centre [frames, 2] after so many pixels of way [frames]."""
    if scene.motion == "sideways":
        x = _bounce(travelled, {"left": 0.0, "right": 1.0}.get(scene.place, 0.5), WIDTH)
        return torch.stack([x, torch.full_like(x, {"top": 18.0, "bottom": 46.0}.get(scene.place, 32.0))], dim=-1)
    if scene.motion == "up and down":
        y = _bounce(travelled, {"top": 0.0, "bottom": 1.0}.get(scene.place, 0.5), HEIGHT)
        return torch.stack([torch.full_like(y, {"left": 24.0, "right": 72.0}.get(scene.place, 48.0)), y], dim=-1)
    middle_x = {"left": 30.0, "right": 66.0}.get(scene.place, 48.0)
    middle_y = {"top": 29.0, "bottom": 35.0}.get(scene.place, 32.0)
    angle = travelled / _ORBIT_RADIUS
    return torch.stack(
        [middle_x + _ORBIT_RADIUS * angle.cos(), middle_y + _ORBIT_RADIUS * angle.sin()],
        dim=-1,
    )


def _bounce(travelled: Tensor, start: float, extent: int) -> Tensor:
    """Back and forth between the margins; `start` is a share of the track, and the way out is to the far end first."""
    track = extent - 2 * _MARGIN
    phase = torch.remainder(travelled + start * track, 2 * track)
    return _MARGIN + torch.where(phase < track, phase, 2 * track - phase)


def _circle(x: Tensor, y: Tensor, radius: Tensor) -> Tensor:
    return (x.square() + y.square()).sqrt() - radius


def _square(x: Tensor, y: Tensor, radius: Tensor) -> Tensor:
    return torch.maximum(x.abs(), y.abs()) - radius * 0.886  # sqrt(pi)/2: the area of the circle


def _triangle(x: Tensor, y: Tensor, radius: Tensor) -> Tensor:
    inner = radius * TRIANGLE_INRADIUS
    y = y - 0.5 * inner  # the middle of its height, not its centre of mass, is where the centre is
    return torch.maximum(y, 0.8660254 * x.abs() - 0.5 * y) - inner


SIGNED_DISTANCES = (_circle, _square, _triangle)
"""As `SHAPES`: (x, y from the centre, radius) -> distance to the outline, negative inside; all in pixels."""

TRIANGLE_INRADIUS = 0.777
"""Of the equilateral triangle, point up, with the area of the circle of radius 1."""
