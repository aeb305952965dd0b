"""Models that know their world: what is right in a video of theirs can be judged by rule, without a reference.

A world is found by the name of the model whose prompts speak of it. Another model that has one gets a class here and a
line in `WORLDS`.
"""

from collections.abc import Callable
from typing import Protocol

from torch import Tensor

from forcing_kv.errors import ConfigurationError, PromptError
from forcing_kv.tiny.prompts import parse
from forcing_kv.tiny.scoring.free_scenes import ATTRIBUTES
from forcing_kv.tiny.scoring.memory_scenes import MEMORY_SECONDS
from forcing_kv.tiny.scoring.rights import free_rights, memory_rights
from forcing_kv.tiny.scoring.shares import Rights
from forcing_kv.tiny.world import FRAMES_PER_SECOND, HEIGHT, WIDTH, Scene

Judge = Callable[[Tensor], Rights]
"""From a whole video, uint8 [frames, H, W, 3], to what is right in it."""


class World(Protocol):
    """Rules for what is to be seen."""

    def check(self, *, width: int, height: int, fps: float, num_frames: int) -> None:
        """Refuses videos that the rules are not made for.

        Raises:
            ConfigurationError: As said; the message gives the reason.
        """
        ...

    def judge(self, prompt: str, *, num_frames: int) -> Judge:
        """What judges the videos of a prompt.

        Raises:
            PromptError: The rules do not cover the prompt; the message gives the reason.
        """
        ...


class TinyWorld:
    """The world of the embedded model (docs/tiny.md): coloured shapes on the move.

    A free scene is judged by what the prompt says and whether the object stays; a memory scene by whether what comes
    back is what went.
    """

    def check(self, *, width: int, height: int, fps: float, num_frames: int) -> None:
        """See `World.check`."""
        if (width, height, fps) != (WIDTH, HEIGHT, FRAMES_PER_SECOND):
            raise ConfigurationError(
                f"videos of {width}x{height} at {fps:g} frames per second are outside the world, which is "
                f"{WIDTH}x{HEIGHT} at {FRAMES_PER_SECOND}"
            )
        if num_frames < FRAMES_PER_SECOND:
            raise ConfigurationError(f"{num_frames} frames are too short to be judged: {FRAMES_PER_SECOND} are needed")

    def judge(self, prompt: str, *, num_frames: int) -> Judge:
        """See `World.judge`."""
        scene = parse(prompt).scene
        if not scene.needs_memory:
            return lambda frames: _free(frames, scene)
        if num_frames < MEMORY_SECONDS * FRAMES_PER_SECOND:
            raise PromptError(
                f"a memory scene is judged over at least {MEMORY_SECONDS:g} seconds, for what went to have come back"
            )
        return lambda frames: _memory(frames, scene)


WORLDS: dict[str, Callable[[], World]] = {"tiny": TinyWorld}
"""Name of a model -> its world."""


def _free(frames: Tensor, scene: Scene) -> Rights:
    rights, _ = free_rights(frames, scene)
    return {name: rights[name] for name in (*ATTRIBUTES, "no collapse")}


def _memory(frames: Tensor, scene: Scene) -> Rights:
    rights, _ = memory_rights(frames, scene)
    names = {
        "seen": "object seen",
        "came back": "came back",
        "colour": "kept colour",
        "shape": "kept shape",
        "size": "kept size",
        "not swapped": "not swapped",
    }
    return {ours: rights[theirs] for theirs, ours in names.items()}
