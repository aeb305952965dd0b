"""The world of the embedded model: coloured shapes that move for ever over flat or patterned ground.

A `Scene` names everything there is to see. Most scenes show one object; in the memory scenes an object passes behind a
pillar, leaves the picture and returns, or two objects cross, and must be the same afterwards. Paths are analytic
functions of time, so a clip may be as long as one likes and each frame can be drawn on its own, from signed distances.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from forcing_kv.errors import ConfigurationError, UnknownNameError

HEIGHT = 96
WIDTH = 160
FRAMES_PER_SECOND = 16

Rgb = tuple[int, int, int]

COLOURS: dict[str, Rgb] = {
    "red": (220, 40, 40),
    "green": (40, 175, 60),
    "blue": (45, 85, 230),
    "yellow": (245, 225, 50),
    "purple": (165, 55, 205),
    "orange": (245, 135, 25),
}
BACKGROUNDS: dict[str, Rgb] = {
    "black": (28, 28, 32),
    "white": (228, 228, 228),
    "gray": (125, 125, 130),
    "brown": (105, 68, 42),
}
TEXTURES = ("plain", "striped", "checkered")
SHAPES = ("circle", "square", "triangle", "cross")
SIZES: dict[str, float] = {"small": 14.0, "large": 20.0}
"""Half the height of the square and the cross, in pixels; the other shapes have about their area."""
SPEEDS: dict[str, float] = {"slowly": 20.0, "quickly": 44.0}
"""Pixels per second."""
MOTIONS = (
    "moving rightward",
    "moving leftward",
    "moving upward",
    "moving downward",
    "bouncing sideways",
    "bouncing vertically",
    "circling clockwise",
    "circling counterclockwise",
)
"""Straight ones leave the picture and come in again at the other side."""
MEMORY_MOTIONS = ("passing behind a pillar", "leaving and returning", "crossing")
"""What only old frames can tell: what the object, or which of two, was."""
PLACES = ("left", "right", "top", "bottom", "center")
CAMERAS = ("still", "panning left", "panning right")

SPEED_JITTER = 0.1
"""A clip's speed is the named one times a factor within 1 +- this, which only the history tells."""

TEXTURE_PERIOD = 32.0  # pixels; both tones of a pattern are half of it wide
PAN_SPEED = 16.0  # pixels per second
PILLAR_COLOUR: Rgb = (52, 60, 84)
PILLAR = (48.0, 112.0)
"""Left and right edge of the pillar, which reaches from the bottom to the top."""

_TONE = 14.0  # a pattern's tones are its background's colour plus and minus this
_MARGIN = 20.0  # nearest that the centre of a bouncing object comes to the picture's edge
_ORBIT_RADIUS = 20.0
_STARTS = {"left": (40.0, 48.0), "right": (120.0, 48.0), "top": (80.0, 30.0), "bottom": (80.0, 66.0)}
_CENTER = (80.0, 48.0)
_ORBIT_CENTRES = {"left": (44.0, 48.0), "right": (116.0, 48.0), "top": (80.0, 40.0), "bottom": (80.0, 56.0)}
_BEHIND_TRACK = (18.0, 142.0)
_RETURNING_TRACK = (60.0, 198.0)  # the outer end is far enough out that nothing is seen for two seconds
_RETURNING_START = 100.0
_CROSSING_TRACK = (24.0, 136.0)


@dataclass(frozen=True, kw_only=True)
class Thing:
    """What an object is: a colour, a shape and a size, by name.

    Raises:
        UnknownNameError: for a name that the world does not know.
    """

    colour: str
    shape: str
    size: str = "large"

    def __post_init__(self) -> None:
        _check("colour", self.colour, COLOURS)
        _check("shape", self.shape, SHAPES)
        _check("size", self.size, SIZES)

    @property
    def radius(self) -> float:
        """Half its height, in pixels."""
        return SIZES[self.size]


@dataclass(frozen=True, kw_only=True)
class Scene:
    """Everything there is to see. Every field but `things` is one of the names of this module.

    Raises:
        UnknownNameError: for a name that the world does not know.
        ConfigurationError: for things, speed or camera that do not go with the motion or the texture.
    """

    things: tuple[Thing, ...]
    motion: str = "bouncing sideways"
    speed: str = "slowly"
    place: str = "center"
    background: str = "gray"
    texture: str = "plain"
    camera: str = "still"

    def __post_init__(self) -> None:
        _check("motion", self.motion, (*MOTIONS, *MEMORY_MOTIONS))
        _check("speed", self.speed, SPEEDS)
        _check("place", self.place, PLACES)
        _check("background", self.background, BACKGROUNDS)
        _check("texture", self.texture, TEXTURES)
        _check("camera", self.camera, CAMERAS)
        num_things = 2 if self.motion == "crossing" else 1
        if len(self.things) != num_things:
            raise ConfigurationError(f"{self.motion!r} takes {num_things} things, not {len(self.things)}")
        if self.needs_memory and (self.speed, self.camera) != ("slowly", "still"):
            raise ConfigurationError(
                f"{self.motion!r} goes slowly under a still camera, not {self.speed}, {self.camera}"
            )
        if self.camera != "still" and self.texture == "plain":
            raise ConfigurationError(f"a camera {self.camera} is not seen on a plain background; use a texture")

    @property
    def needs_memory(self) -> bool:
        """Whether this is a memory scene."""
        return self.motion in MEMORY_MOTIONS

    def record(self) -> dict[str, Any]:
        """Everything, as plain values; `Scene.from_record` reads it."""
        return asdict(self)

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> "Scene":
        """What `record` gave."""
        return cls(**{**record, "things": tuple(Thing(**thing) for thing in record["things"])})

    def names(self) -> tuple[str, ...]:
        """Everything named, in a fixed order: what tells this scene from any other."""
        things = tuple(name for thing in self.things for name in (thing.size, thing.colour, thing.shape))
        return (*things, self.motion, self.speed, self.place, self.texture, self.background, self.camera)


@dataclass(frozen=True, kw_only=True)
class Clip:
    """A scene as it is drawn: how fast exactly, and from where.

    Attributes:
        scene: what is seen.
        speed_factor: multiplies the scene's named speed.
        start: centre of the object in frame 0, in pixels, where it is not the one that the scene's place gives.
        start_offset: how far the pattern of the ground lies to the right in frame 0, in pixels.
        delays: for how many seconds the object waits outside before it comes in again the first time, the second, and
            so on; only where it leaves the picture.
    """

    scene: Scene
    speed_factor: float = 1.0
    start: tuple[float, float] | None = None
    start_offset: float = 0.0
    delays: tuple[float, ...] = ()

    @property
    def pixels_per_second(self) -> float:
        """How fast the objects move."""
        return SPEEDS[self.scene.speed] * self.speed_factor

    def centres(self, num_frames: int, *, first_frame: int = 0) -> Tensor:
        """Centres of the objects: float32 [things, frames, 2], x from the left and y from the top, in pixels."""
        seconds = self._seconds(num_frames, first_frame)
        moving = seconds.clone()
        for entry, delay in zip(self.entries(len(self.delays)), self.delays, strict=True):
            moving -= (seconds - entry).clamp(0, delay)
        travelled = moving * self.pixels_per_second
        return torch.stack([_path(self, index, travelled) for index in range(len(self.scene.things))])

    def entries(self, num: int) -> list[float]:
        """The seconds at which the object is due to come in again, still wholly outside, the first `num` times.

        What is later than a delay is later by it; a delay begins when the object is due.

        Raises:
            ConfigurationError: if it never leaves the picture.
        """
        if not num:
            return []
        first, period = _ways_to_entries(self)
        return [(first + index * period) / self.pixels_per_second + sum(self.delays[:index]) for index in range(num)]

    def offsets(self, num_frames: int, *, first_frame: int = 0) -> Tensor:
        """How far the ground's pattern lies to the right [frames], in pixels: the camera pans the other way."""
        direction = {"still": 0.0, "panning left": 1.0, "panning right": -1.0}[self.scene.camera]
        return self.start_offset + direction * PAN_SPEED * self._seconds(num_frames, first_frame)

    def switched(self, scene: Scene, at_frame: int) -> "Clip":
        """What the clip becomes when the prompt switches: the object goes on from where it is, as something else.

        Args:
            scene: what is seen from then on; neither it nor the present one is a memory scene.
            at_frame: the first frame of the new clip, which is its frame 0.
        """
        x, y = self.centres(1, first_frame=at_frame)[0, 0].tolist()
        inside = (min(max(x, _MARGIN), WIDTH - _MARGIN), min(max(y, _MARGIN), HEIGHT - _MARGIN))
        offset = float(self.offsets(1, first_frame=at_frame)) % TEXTURE_PERIOD
        return Clip(scene=scene, speed_factor=self.speed_factor, start=inside, start_offset=offset)

    @staticmethod
    def _seconds(num_frames: int, first_frame: int) -> Tensor:
        return torch.arange(first_frame, first_frame + num_frames) / FRAMES_PER_SECOND


@dataclass(frozen=True, kw_only=True)
class Region:
    """A part of the picture, in pixels."""

    top: int = 0
    left: int = 0
    height: int = HEIGHT
    width: int = WIDTH


def draw(clips: Sequence[Clip], num_frames: int, *, first_frame: int = 0, regions: Sequence[Region] = ()) -> Tensor:
    """Draw clips.

    Args:
        clips: what to draw.
        num_frames: pixel frames per clip, at 16 per second.
        first_frame: the pixel frame to start with; 0 is the start of the clip.
        regions: the part of each clip to draw, all of one size; the whole picture by default.

    Returns:
        uint8 [clips, frames, height, width, 3].
    """
    chosen = regions or [Region()] * len(clips)
    return torch.stack(
        [_draw(clip, num_frames, first_frame, region) for clip, region in zip(clips, chosen, strict=True)]
    )


def coverage(clip: Clip, num_frames: int, *, first_frame: int = 0, region: Region = Region()) -> Tensor:
    """Share of each pixel that each object fills, were it alone: float32 [things, frames, height, width]."""
    centres = clip.centres(num_frames, first_frame=first_frame)
    x, y = _grid(region)
    return torch.stack(
        [
            filled(thing.shape, x - centre[:, None, None, 0], y - centre[:, None, None, 1], thing.radius)
            for thing, centre in zip(clip.scene.things, centres, strict=True)
        ]
    )


def visible(clip: Clip, num_frames: int, *, first_frame: int = 0) -> Tensor:
    """Share of each pixel that shows each object, as nothing stands before it: like `coverage`."""
    shares = coverage(clip, num_frames, first_frame=first_frame)
    if len(shares) == 2:  # the first is in front
        shares[1] *= 1 - shares[0]
    if clip.scene.motion == "passing behind a pillar":
        shares *= 1 - pillar_share()
    return shares


def filled(shape: str, x: Tensor, y: Tensor, radius: float) -> Tensor:
    """Share of a pixel that a shape fills, by the pixel's distance from its centre, all in pixels."""
    return (0.5 - _SIGNED_DISTANCES[shape](x, y, radius)).clamp(0, 1)


def pillar_share(region: Region = Region()) -> Tensor:
    """Share of each pixel that the pillar fills: float32 [1, width]."""
    x, _ = _grid(region)
    return (0.5 - ((x - sum(PILLAR) / 2).abs() - (PILLAR[1] - PILLAR[0]) / 2)).clamp(0, 1)


def ground(clip: Clip, num_frames: int, *, first_frame: int = 0, region: Region = Region()) -> Tensor:
    """The background alone: float32 [frames, height, width, 3] in 0..255."""
    x, y = _grid(region)
    offsets = clip.offsets(num_frames, first_frame=first_frame)[:, None, None]
    pattern = texture(clip.scene.texture, x - offsets, y).expand(num_frames, region.height, region.width)
    return torch.tensor(BACKGROUNDS[clip.scene.background]) + _TONE * pattern[..., None]


def texture(name: str, x: Tensor, y: Tensor) -> Tensor:
    """A pattern's tone in -1..1 at some places, in pixels of the pattern."""
    if name == "plain":
        return torch.zeros_like(x)
    columns, rows = _wave(x), _wave(y)
    return 2 * columns - 1 if name == "striped" else 2 * (columns + rows - 2 * columns * rows) - 1


def _draw(clip: Clip, num_frames: int, first_frame: int, region: Region) -> Tensor:
    picture = ground(clip, num_frames, first_frame=first_frame, region=region)
    shares = coverage(clip, num_frames, first_frame=first_frame, region=region)
    for thing, share in reversed(list(zip(clip.scene.things, shares, strict=True))):  # the first is in front
        picture = torch.lerp(picture, torch.tensor(COLOURS[thing.colour], dtype=torch.float32), share[..., None])
    if clip.scene.motion == "passing behind a pillar":
        colour = torch.tensor(PILLAR_COLOUR, dtype=torch.float32)
        picture = torch.lerp(picture, colour, pillar_share(region)[..., None].expand_as(picture))
    return picture.round().to(torch.uint8)


def _grid(region: Region) -> tuple[Tensor, Tensor]:
    """Pixel centres: x [1, width] and y [height, 1]."""
    x = torch.arange(region.left, region.left + region.width) + 0.5
    y = torch.arange(region.top, region.top + region.height) + 0.5
    return x[None], y[:, None]


def _wave(x: Tensor) -> Tensor:
    """A square wave in 0..1, its edges a pixel wide; 1 in the middle half of each period."""
    along = torch.remainder(x, TEXTURE_PERIOD)
    return (0.5 + TEXTURE_PERIOD / 4 - (along - TEXTURE_PERIOD / 2).abs()).clamp(0, 1)


def _path(clip: Clip, index: int, travelled: Tensor) -> Tensor:
    """Centre [frames, 2] of one object after so many pixels of way [frames]."""
    scene = clip.scene
    if scene.needs_memory:
        along = _memory_track(scene, index, travelled)
        return torch.stack([along, torch.full_like(along, _CENTER[1])], dim=-1)
    x, y = clip.start or _STARTS.get(scene.place, _CENTER)
    verb, direction = scene.motion.split()
    if verb == "circling":
        return _orbit(clip, travelled if direction == "clockwise" else -travelled)
    along_x = direction in ("rightward", "leftward", "sideways")
    here, extent = (x, WIDTH) if along_x else (y, HEIGHT)
    if verb == "bouncing":
        moving = _bounce(travelled, here, _MARGIN, extent - _MARGIN, forward=here <= extent / 2)
    else:
        radius = scene.things[0].radius
        way = travelled if direction in ("rightward", "downward") else -travelled
        moving = torch.remainder(here + radius + way, extent + 2 * radius) - radius
    resting = torch.full_like(moving, y if along_x else x)
    return torch.stack([moving, resting] if along_x else [resting, moving], dim=-1)


def _ways_to_entries(clip: Clip) -> tuple[float, float]:
    """After how many pixels of way the object is about to come in for the first time, and then again each time."""
    scene, radius = clip.scene, clip.scene.things[0].radius
    if scene.motion == "leaving and returning":
        low, high = _RETURNING_TRACK
        return 2 * high - _RETURNING_START - (WIDTH + radius), 2 * (high - low)
    verb, direction = scene.motion.split(maxsplit=1)
    if verb != "moving":
        raise ConfigurationError(f"{scene.motion!r} never leaves the picture, so nothing delays its coming in")
    x, y = clip.start or _STARTS.get(scene.place, _CENTER)
    here, extent = (x, WIDTH) if direction in ("rightward", "leftward") else (y, HEIGHT)
    to_edge = extent - here if direction in ("rightward", "downward") else here
    return to_edge + radius, extent + 2 * radius


def _memory_track(scene: Scene, index: int, travelled: Tensor) -> Tensor:
    """Where along the picture's width an object of a memory scene is."""
    mirrored = scene.place == "right" if scene.motion == "passing behind a pillar" else scene.place == "left"
    if scene.motion == "passing behind a pillar":
        x = _bounce(travelled, _BEHIND_TRACK[0], *_BEHIND_TRACK, forward=True)
    elif scene.motion == "leaving and returning":
        x = _bounce(travelled, _RETURNING_START, *_RETURNING_TRACK, forward=True)
    else:
        x = _bounce(travelled, _CROSSING_TRACK[0], *_CROSSING_TRACK, forward=True)
        mirrored = index == 1
    return WIDTH - x if mirrored else x


def _orbit(clip: Clip, travelled: Tensor) -> Tensor:
    """Clockwise, as it is seen on a screen, for positive ways."""
    if clip.start is None:
        centre, start_angle = _ORBIT_CENTRES.get(clip.scene.place, _CENTER), 0.0
    else:  # the centre lies towards the middle of the picture
        x, y = clip.start
        inwards = math.atan2(_CENTER[1] - y, _CENTER[0] - x) if (x, y) != _CENTER else math.pi
        centre = (x + _ORBIT_RADIUS * math.cos(inwards), y + _ORBIT_RADIUS * math.sin(inwards))
        start_angle = inwards + math.pi
    angle = start_angle + travelled / _ORBIT_RADIUS
    return torch.stack([centre[0] + _ORBIT_RADIUS * angle.cos(), centre[1] + _ORBIT_RADIUS * angle.sin()], dim=-1)


def _bounce(travelled: Tensor, start: float, low: float, high: float, *, forward: bool) -> Tensor:
    """Back and forth between `low` and `high`, from `start` on, upwards first if `forward`."""
    track = high - low
    phase = torch.remainder(travelled + (start - low if forward else 2 * track - (start - low)), 2 * track)
    return low + torch.where(phase < track, phase, 2 * track - phase)


def _circle(x: Tensor, y: Tensor, radius: float) -> Tensor:
    return (x.square() + y.square()).sqrt() - radius


def _square(x: Tensor, y: Tensor, radius: float) -> Tensor:
    return torch.maximum(x.abs(), y.abs()) - radius * 0.95


def _triangle(x: Tensor, y: Tensor, radius: float) -> Tensor:
    inner = radius * 2 / 3  # of the circle inside; its tip is twice as far up
    y = y - 0.5 * inner  # the middle of its height, not its centre of mass, is where the centre is
    return torch.maximum(y, 0.8660254 * x.abs() - 0.5 * y) - inner


def _cross(x: Tensor, y: Tensor, radius: float) -> Tensor:
    x, y = x.abs(), y.abs()
    return torch.maximum(torch.maximum(x, y) - radius, torch.minimum(x, y) - 0.34 * radius)


_SIGNED_DISTANCES = {"circle": _circle, "square": _square, "triangle": _triangle, "cross": _cross}


def _check(
    kind: str, name: str, choices: Sequence[str] | dict[str, object] | dict[str, float] | dict[str, Rgb]
) -> None:
    if name not in choices:
        raise UnknownNameError(kind, name, tuple(choices))
