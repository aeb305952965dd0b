"""Scores a clip of one free object against a scene from its pixels alone: no network, only what the world's rules say.

Only what the prompt says is judged, never the phase of the motion, because a stream's speed may drift: colour, shape
and size of the object; colour, pattern and pan of the ground; the kind of motion and its speed in windows of about five
seconds; and whether there is one object at all whenever it should be seen. A clip may be any piece of a stream.
"""

from dataclasses import asdict, dataclass
from itertools import pairwise

import torch
from torch import Tensor

from forcing_kv.errors import ConfigurationError
from forcing_kv.tiny.scoring.blobs import MIN_AREA, Blobs, find_blobs
from forcing_kv.tiny.scoring.ground import Pattern, find_pattern
from forcing_kv.tiny.scoring.outlines import Fit, Outlines
from forcing_kv.tiny.scoring.paths import MIN_MOVING, Path, shows_motion, shows_speed, turns_fit
from forcing_kv.tiny.world import BACKGROUNDS, COLOURS, FRAMES_PER_SECOND, TEXTURES, Rgb, Scene

ATTRIBUTES = (
    "colour",
    "background",
    "texture",
    "camera",
    "shape",
    "size",
    "motion",
    "speed",
    "visible",
    "moving",
)
"""The fields of a `Score` that are right or wrong."""

MAX_AREA = 1700.0
"""Pixels; the largest object has 1170."""
MAX_REST = 0.15
"""Area of all coloured spots beside an object, as a share of the object's."""

_MOST_FRAMES = 0.9
_MOST_WINDOWS = 0.75
_WINDOW_FRAMES = 80  # 5 s
_MIN_CLEAR_FRAMES = 4  # in a second, to tell a shape
_SELDOM = 0.2
_MIN_PART = 0.5  # of the object, where an edge cuts it that it should not cross
_MAX_OUT_FRAMES = 24  # between leaving the picture and coming in again nothing is seen for up to 0.9 s
_MAX_GROUND_CHANGE = 60.0  # RGB distance; the closest two backgrounds are 84 apart


@dataclass(frozen=True, kw_only=True)
class Score:
    """What is right in one clip.

    Attributes:
        colour: right in nine of ten frames that show an object.
        background, texture: right in nine of ten frames.
        camera: pans, or not, as it should in three of four five-second windows; on a plain ground, no pattern is seen.
        shape, size: the right one fits best in three of four seconds that show the object.
        motion: the right kind of path, in the right direction, in three of four five-second windows; what bounces turns
            as often as its speed says.
        speed: the right one is nearest in three of four five-second windows.
        visible: one compact object in nine of ten frames; it may be cut by the picture's edge, and what moves straight
            may be out of the picture for a moment; of anything else at least half must be seen.
        moving: it moves in nine of ten seconds.
        collapsed: in the last quarter the object is gone or stands still, or the background has changed.
        shares: of frames, windows or seconds in which each attribute is right.
        pixels_per_second: median speed of the object.
    """

    colour: bool
    background: bool
    texture: bool
    camera: bool
    shape: bool
    size: bool
    motion: bool
    speed: bool
    visible: bool
    moving: bool
    collapsed: bool
    shares: dict[str, float]
    pixels_per_second: float

    def as_dict(self) -> dict[str, bool | float | dict[str, float]]:
        """For JSON."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class Sighting:
    """A clip after its analysis; what all scores of one object are made of.

    Attributes:
        blobs: the coloured areas.
        pattern: of the ground.
        outlines: of the largest area of each frame.
        is_whole: bool [frames], one compact object that does not touch the picture's edge.
        is_inside: bool [frames], one compact object, of which the edge cuts so little that it tells where it is.
        is_visible: bool [frames], one object, inside or cut; or none, for a moment, where it may be out.
        has_object: bool [frames], one object that has an area.
    """

    blobs: Blobs
    pattern: Pattern
    outlines: Outlines
    is_whole: Tensor
    is_inside: Tensor
    is_visible: Tensor
    has_object: Tensor

    @property
    def path(self) -> Path:
        """Where the object is, known where it is inside."""
        return Path(centre=self.outlines.centre, known=self.is_inside)

    @property
    def is_clear(self) -> Tensor:
        """Frames that tell shape and size: the whole ones, unless the object touches an edge nearly all the time."""
        is_seldom_whole = int(self.is_whole.sum()) < _SELDOM * int(self.is_inside.sum())
        return self.is_inside if is_seldom_whole else self.is_whole

    @property
    def colours(self) -> Tensor:
        """Index of the nearest of `COLOURS` [frames]."""
        return nearest(self.blobs.colour[:, 0], COLOURS)

    @property
    def backgrounds(self) -> Tensor:
        """Index of the nearest of `BACKGROUNDS` [frames]."""
        return nearest(self.blobs.ground_colour, BACKGROUNDS)


def score(frames: Tensor, scene: Scene) -> Score:
    """Score one clip.

    Args:
        frames: uint8 [frames, HEIGHT, WIDTH, 3], at 16 per second, at least a second, from anywhere in a stream. In
            less than 7 s a slowly bouncing object need not turn, and then cannot be told from one that goes straight.
        scene: what was asked for, not a memory scene.

    Raises:
        ConfigurationError: for a memory scene, and if the clip is too short or of another type.
    """
    if scene.needs_memory:
        raise ConfigurationError(f"{scene.motion!r} is a memory scene; use score_memory")
    seen = look(frames, scene)
    windows = _windows(len(frames))
    speeds = Path(centre=seen.outlines.centre, known=seen.has_object).speed_per_second()
    parts = [seen.path.part(span) for span in windows]
    fits = _fits_per_second(seen)
    thing = scene.things[0]
    camera = None if scene.texture == "plain" else scene.camera
    shares = {
        "colour": share(seen.colours[seen.has_object] == list(COLOURS).index(thing.colour)),
        "background": share(seen.backgrounds == list(BACKGROUNDS).index(scene.background)),
        "texture": share(seen.pattern.texture == TEXTURES.index(scene.texture)),
        "camera": _mean([seen.pattern.camera(span) == camera for span in windows]),
        "shape": _mean([fit.shape == thing.shape for fit in fits]),
        "size": _mean([fit.size == thing.size for fit in fits]),
        "motion": _mean([shows_motion(part, scene.motion) for part in parts]),
        "speed": _mean([shows_speed(part, scene.speed) for part in parts]),
        "visible": share(seen.is_visible),
        "moving": share(speeds >= MIN_MOVING),
    }
    by_window = ("camera", "shape", "size", "motion", "speed")
    right = {name: shares[name] >= (_MOST_WINDOWS if name in by_window else _MOST_FRAMES) for name in ATTRIBUTES}
    right["motion"] = right["motion"] and turns_fit(seen.path, scene.motion)
    return Score(
        **right,
        collapsed=_collapsed(seen),
        shares={name: round(value, 4) for name, value in shares.items()},
        pixels_per_second=round(seen.path.speed(), 2),
    )


def look(frames: Tensor, scene: Scene) -> Sighting:
    """Analyse a clip of one free object.

    Args:
        frames: as for `score`.
        scene: what was asked for; only which edges the object may cross matters.

    Raises:
        ConfigurationError: if the clip is too short or of another type.
    """
    blobs = find_blobs(frames)
    may_leave = scene.motion.startswith("moving")
    rest = blobs.total_area - blobs.area[:, 0]
    is_one = is_compact(blobs, 0) & (rest <= MAX_REST * blobs.area[:, 0])
    is_whole = is_one & ~blobs.is_cut[:, 0]
    is_inside = is_one & ~blobs.at_border[:, 0, _crossed_edges(scene.motion)].any(dim=-1)
    at_border = blobs.is_cut[:, 0] & (blobs.total_area <= MAX_AREA)
    if may_leave:  # it may come in at one side before it has quite left by the other
        rest = rest - blobs.area[:, 1] * blobs.is_cut[:, 1]
    elif bool(is_whole.any()):
        is_large = blobs.area[:, 0] >= _MIN_PART * blobs.area[is_whole, 0].median()
        is_inside, at_border = is_inside & is_large, at_border & is_large
    at_border &= rest <= MAX_REST * blobs.total_area
    is_visible = is_whole | is_inside | at_border
    if may_leave:
        is_visible = is_visible | _is_out(blobs.total_area < MIN_AREA, at_border)
    return Sighting(
        blobs=blobs,
        pattern=find_pattern(blobs),
        outlines=Outlines(frames, blobs),
        is_whole=is_whole,
        is_inside=is_inside,
        is_visible=is_visible,
        has_object=(is_whole | is_inside | at_border) & (blobs.area[:, 0] >= MIN_AREA),
    )


def is_compact(blobs: Blobs, which: int) -> Tensor:
    """Whether an area of each frame is about as large, as wide and as full as an object: bool [frames]."""
    area, box = blobs.area[:, which], blobs.box[:, which]
    width, height = box[:, 2] - box[:, 0], box[:, 3] - box[:, 1]
    is_full = area >= 0.35 * width * height
    is_square = torch.maximum(width, height) <= 2.2 * torch.minimum(width, height)
    fits = (area >= MIN_AREA) & (area <= MAX_AREA)
    return fits & (blobs.is_cut[:, which] | (is_full & is_square))


def nearest(colours: Tensor, names: dict[str, Rgb]) -> Tensor:
    """Index of the nearest named colour: [n, 3] -> [n]."""
    return torch.cdist(colours.float(), torch.tensor(list(names.values()), dtype=torch.float32)).argmin(dim=-1)


def share(flags: Tensor) -> float:
    """Share of flags that are set; 0 if there are none."""
    return float(flags.float().mean()) if len(flags) else 0.0


def runs(flags: Tensor) -> list[slice]:
    """Where flags [n] are set, as slices of neighbours."""
    padded = torch.cat([torch.zeros(1), flags.float(), torch.zeros(1)])
    change = padded[1:] - padded[:-1]
    starts, stops = (change > 0).nonzero()[:, 0].tolist(), (change < 0).nonzero()[:, 0].tolist()
    return [slice(start, stop) for start, stop in zip(starts, stops, strict=True)]


def _is_out(is_empty: Tensor, at_border: Tensor) -> Tensor:
    """Frames [frames] in which the object has left the picture: a short while after it was seen at its edge."""
    out = torch.zeros_like(is_empty)
    for run in runs(is_empty):
        left = run.start == 0 or bool(at_border[run.start - 1])
        returns = run.stop == len(is_empty) or bool(at_border[run.stop])
        out[run] = left and returns and run.stop - run.start <= _MAX_OUT_FRAMES
    return out


def _windows(num_frames: int) -> list[slice]:
    """Windows of about five seconds that have every frame once."""
    num = max(1, round(num_frames / _WINDOW_FRAMES))
    bounds = [round(num_frames * index / num) for index in range(num + 1)]
    return [slice(start, stop) for start, stop in pairwise(bounds)]


def _fits_per_second(seen: Sighting) -> list[Fit]:
    """What the object looks like in each second that shows it for long enough."""
    fits = []
    for start in range(0, len(seen.is_clear), FRAMES_PER_SECOND):
        chosen = torch.zeros_like(seen.is_clear)
        chosen[start : start + FRAMES_PER_SECOND] = seen.is_clear[start : start + FRAMES_PER_SECOND]
        fit = seen.outlines.fit(chosen) if int(chosen.sum()) >= _MIN_CLEAR_FRAMES else None
        fits += [fit] if fit else []
    return fits


def _crossed_edges(motion: str) -> list[int]:
    """The edges of the picture, as in `Blobs.at_border`, that may hide where the object is: it can be well beyond them.

    What bounces turns before any edge, and what moves straight goes along the two others.
    """
    if motion.startswith("bouncing"):
        return []
    if motion.startswith("circling"):
        return [0, 1, 2, 3]
    return [0, 2] if motion.endswith(("rightward", "leftward")) else [1, 3]


def _collapsed(seen: Sighting) -> bool:
    """Whether the last quarter shows no object, a still one, or another background than the first second."""
    late = slice(len(seen.is_visible) * 3 // 4, None)
    speeds = Path(centre=seen.outlines.centre[late], known=seen.has_object[late]).speed_per_second()
    ground = seen.blobs.ground_colour
    change = (ground[late] - ground[:FRAMES_PER_SECOND].median(dim=0).values).norm(dim=-1).median()
    is_gone = share(seen.is_visible[late]) < 0.5 or not bool(seen.has_object[late].any())
    is_frozen = len(speeds) > 0 and float(speeds.median()) < MIN_MOVING
    return is_gone or is_frozen or float(change) > _MAX_GROUND_CHANGE


def _mean(flags: list[bool]) -> float:
    return sum(flags) / len(flags) if flags else 0.0
