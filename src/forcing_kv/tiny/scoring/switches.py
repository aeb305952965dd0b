"""Scores a switch of prompts: whether the stream shows what the new prompt asks for, one second later."""

from dataclasses import asdict, dataclass

from torch import Tensor

from forcing_kv.errors import ConfigurationError
from forcing_kv.tiny.scoring.free_scenes import look, share
from forcing_kv.tiny.scoring.paths import shows_motion, shows_speed, turns_fit
from forcing_kv.tiny.world import BACKGROUNDS, COLOURS, FRAMES_PER_SECOND, TEXTURES, Scene

_MOST_FRAMES = 0.9
_MIN_SECONDS_AFTER = 8  # what moves up or down slowly is whole in the picture for 3 s of every 7
_MIN_CLEAR_FRAMES = 8  # through the VAE a cross that moves quickly is told from a circle by half a second of it


@dataclass(frozen=True, kw_only=True)
class SwitchScore:
    """What is right from one second after the switch.

    Attributes:
        followed: colour, background, shape and motion are right.
        background, texture: in nine of ten frames of the second second.
        colour: in nine of ten frames of that second that show the object clearly; if it hardly does, of the first
            frames that do. At the picture's edge the colour of a sliver is that of a blur.
        shape, size: the right one fits best in those frames.
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
        frames: uint8 [frames, HEIGHT, WIDTH, 3], at least 8 s of them after the switch.
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
    shown = _soonest(seen.is_clear)
    fit = seen.outlines.fit(shown)
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
    """The frames [frames] of the first second that are set, or the first half second of set ones if there are fewer."""
    num_soon = int(flags[:FRAMES_PER_SECOND].sum())
    return flags & (flags.cumsum(0) <= max(_MIN_CLEAR_FRAMES, num_soon))
