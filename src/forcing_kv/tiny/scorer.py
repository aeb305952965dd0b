"""Scores a clip against a scene from its pixels alone: no network, only what the world's rules say must be seen.

The background is the median of the picture's border; the object is what differs from it, as connected areas. Colour is
that of the object's inside, shape the one of the three outlines of its size that fits it best, motion the path of its
centre.
"""

from dataclasses import asdict, dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from forcing_kv.errors import ConfigurationError
from forcing_kv.tiny.blobs import Blobs, find_blobs
from forcing_kv.tiny.world import BACKGROUNDS, COLOURS, FRAMES_PER_SECOND, SHAPES, Rgb, Scene

_RIGHT_SHARE = 0.9  # of frames that must show the right colour, background, or one object
_WINDOW_FRAMES = 80  # 5 s: about one turn of the slowest circle
_MIN_PIXELS_PER_SECOND = 5.0  # the slowest named speed is 16
_MAX_BACKGROUND_CHANGE = 60.0  # RGB distance; the closest two backgrounds are 85 apart


@dataclass(frozen=True, kw_only=True)
class Score:
    """What is right in one clip.

    Attributes:
        colour, background: right in nine of ten frames (colour: of those that show an object).
        shape: the right one fits best over all frames that show an object.
        motion: the right kind of path in three of four five-second windows.
        visible: one compact object in nine of ten frames.
        moving: it moves in nine of ten seconds.
        collapsed: in the last quarter the object is gone or stands still, or the background has changed.
        visible_share: share of frames with one compact object.
        pixels_per_second: mean speed of the object.
    """

    colour: bool
    background: bool
    shape: bool
    motion: bool
    visible: bool
    moving: bool
    collapsed: bool
    visible_share: float
    pixels_per_second: float

    def as_dict(self) -> dict[str, bool | float]:
        """For JSON."""
        return asdict(self)


def score(frames: Tensor, scene: Scene) -> Score:
    """Score one clip.

    Args:
        frames: uint8 [frames, HEIGHT, WIDTH, 3], at 16 per second, at least a second.
        scene: what was asked for.

    Raises:
        ConfigurationError: if the clip is shorter than a second or of another type.
    """
    if frames.dtype != torch.uint8 or frames.dim() != 4 or len(frames) < FRAMES_PER_SECOND:
        raise ConfigurationError(
            f"a clip of {frames.dtype} {tuple(frames.shape)} cannot be scored; "
            f"need uint8 [frames >= {FRAMES_PER_SECOND}, height, width, 3]"
        )
    blobs = find_blobs(frames)
    seen = blobs.visible
    visible_share = float(seen.float().mean())
    speeds = _speed_per_second(blobs)
    backgrounds = _nearest(blobs.background, BACKGROUNDS)
    colours = _nearest(blobs.colour[seen], COLOURS)
    return Score(
        colour=_share(colours == list(COLOURS).index(scene.colour)) >= _RIGHT_SHARE,
        background=_share(backgrounds == list(BACKGROUNDS).index(scene.background)) >= _RIGHT_SHARE,
        shape=_nearest_shape(blobs) == scene.shape,
        motion=_motion_share(blobs, scene.motion) >= 0.75,
        visible=visible_share >= _RIGHT_SHARE,
        moving=_share(speeds >= _MIN_PIXELS_PER_SECOND) >= _RIGHT_SHARE,
        collapsed=_collapsed(blobs, speeds),
        visible_share=visible_share,
        pixels_per_second=float(speeds.mean()) if len(speeds) else 0.0,
    )


def motion_of(centres: Tensor) -> str | None:
    """The motion class of a path [frames, 2] in pixels, or None if it is none of them."""
    if len(centres) < FRAMES_PER_SECOND:
        return None
    spread_x, spread_y = centres.std(dim=0).tolist()
    if max(spread_x, spread_y) < 3:
        return None
    if spread_y < 0.3 * spread_x:
        return "sideways"
    if spread_x < 0.3 * spread_y:
        return "up and down"
    radius = (centres - (centres.amax(0) + centres.amin(0)) / 2).norm(dim=-1)
    return "in circles" if float(radius.std()) < 0.3 * float(radius.mean()) else None


def _motion_share(blobs: Blobs, motion: str) -> float:
    """Share of windows whose path is of this kind."""
    num_frames = len(blobs.visible)
    num_windows = max(1, num_frames // _WINDOW_FRAMES)
    right = 0
    for window in range(num_windows):
        span = slice(
            window * _WINDOW_FRAMES, num_frames if window + 1 == num_windows else (window + 1) * _WINDOW_FRAMES
        )
        right += motion_of(blobs.centre[span][blobs.visible[span]]) == motion
    return right / num_windows


def _speed_per_second(blobs: Blobs) -> Tensor:
    """Length of the path in each whole second [seconds], in pixels, between frames that both show the object.

    The path is smoothed over five frames first: a trembling object does not move.
    """
    weight = blobs.visible.float()
    smooth = _sum_of_five(blobs.centre * weight[:, None]) / _sum_of_five(weight[:, None]).clamp_min(1)
    steps = (smooth[1:] - smooth[:-1]).norm(dim=-1)
    steps = steps * (blobs.visible[1:] & blobs.visible[:-1])
    num_seconds = (len(steps) + 1) // FRAMES_PER_SECOND
    return torch.stack([part.sum() for part in steps[: num_seconds * FRAMES_PER_SECOND].split(FRAMES_PER_SECOND)])


def _sum_of_five(values: Tensor) -> Tensor:
    """Sum over five neighbouring frames: [frames, n] -> the same shape."""
    sums = 5 * F.avg_pool1d(values.T[None], 5, stride=1, padding=2)
    return sums[0].T


def _collapsed(blobs: Blobs, speeds: Tensor) -> bool:
    """Whether the last quarter shows no object, a still one, or another background than the first second."""
    late = slice(len(blobs.visible) * 3 // 4, None)
    early_background = blobs.background[:FRAMES_PER_SECOND].median(dim=0).values
    change = (blobs.background[late] - early_background).norm(dim=-1)
    gone = float(blobs.visible[late].float().mean()) < 0.5
    frozen = float(speeds[len(speeds) * 3 // 4 :].median()) < _MIN_PIXELS_PER_SECOND
    return gone or frozen or float(change.median()) > _MAX_BACKGROUND_CHANGE


def _nearest(colours: Tensor, names: dict[str, Rgb]) -> Tensor:
    """Index of the nearest named colour: [frames, 3] -> [frames]."""
    palette = torch.tensor(list(names.values()), dtype=torch.float32)
    return torch.cdist(colours.float(), palette).argmin(dim=-1)


def _nearest_shape(blobs: Blobs) -> str | None:
    """The shape that fits best over all frames that show the object."""
    if not bool(blobs.visible.any()):
        return None
    return SHAPES[int(blobs.shape_errors[blobs.visible].mean(dim=0).argmin())]


def _share(flags: Tensor) -> float:
    return float(flags.float().mean()) if len(flags) else 0.0
