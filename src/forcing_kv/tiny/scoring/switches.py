"""Scores a switch of prompts: whether the stream shows what the new prompt asks for, one second later."""

from dataclasses import asdict, dataclass

from torch import Tensor

from forcing_kv.errors import ConfigurationError
from forcing_kv.tiny.scoring.free_scenes import look, share
from forcing_kv.tiny.scoring.paths import shows_motion, shows_speed, turns_fit
from forcing_kv.tiny.world import BACKGROUNDS, COLOURS, FRAMES_PER_SECOND, TEXTURES, Scene

_MOST_FRAMES = 0.9
_MIN_SECONDS_AFTER = 5


@dataclass(frozen=True, kw_only=True)
class SwitchScore:
    """What is right from one second after the switch.

    Attributes:
        followed: colour, background, shape and motion are right.
        colour, background, texture: in nine of ten frames of the second second.
        shape, size: the right one fits best in that second; if that hardly shows the object, in the first frames
            that do.
        motion, speed: over all frames after the first second.
    """

    followed: bool
    colour: bool
    background: bool
    texture: bool
    shape: bool
    size: bool
    motion: bool
    speed: bool

    def as_dict(self) -> dict[str, bool]:
        """For JSON."""
        return asdict(self)


def score_switch(frames: Tensor, after: Scene, switch_frame: int) -> SwitchScore:
    """Score one switch.

    Args:
        frames: uint8 [frames, HEIGHT, WIDTH, 3], at least 5 s of them after the switch.
        after: what was asked for from then on, not a memory scene.
        switch_frame: the first frame made under the new prompt.

    Raises:
        ConfigurationError: for a memory scene, and if the clip is too short or of another type.
    """
    if after.needs_memory:
        raise ConfigurationError(f"{after.motion!r} is a memory scene, in which nothing can be switched to")
    if len(frames) < switch_frame + _MIN_SECONDS_AFTER * FRAMES_PER_SECOND:
        raise ConfigurationError(
            f"{len(frames) - switch_frame} frames after the switch are too few to see the new motion; "
            f"need {_MIN_SECONDS_AFTER * FRAMES_PER_SECOND}"
        )
    seen = look(frames[switch_frame + FRAMES_PER_SECOND :], after)
    soon = slice(FRAMES_PER_SECOND)
    thing = after.things[0]
    shown = _soonest(seen.has_object)
    fit = seen.outlines.fit(_soonest(seen.is_clear))
    colour = share(seen.colours[shown] == list(COLOURS).index(thing.colour)) >= _MOST_FRAMES
    background = share(seen.backgrounds[soon] == list(BACKGROUNDS).index(after.background)) >= _MOST_FRAMES
    shape = fit is not None and fit.shape == thing.shape
    motion = shows_motion(seen.path, after.motion) and turns_fit(seen.path, after.motion)
    return SwitchScore(
        followed=colour and background and shape and motion,
        colour=colour,
        background=background,
        texture=share(seen.pattern.texture[soon] == TEXTURES.index(after.texture)) >= _MOST_FRAMES,
        shape=shape,
        size=fit is not None and fit.size == thing.size,
        motion=motion,
        speed=shows_speed(seen.path, after.speed),
    )


def _soonest(flags: Tensor) -> Tensor:
    """The frames [frames] of the first second that are set, or the first four set ones if there are fewer."""
    num_soon = int(flags[:FRAMES_PER_SECOND].sum())
    return flags & (flags.cumsum(0) <= max(4, num_soon))
