"""Which scenes there are, and which of them are kept out of training.

There are 108 thousand scenes with one freely moving object and 25 thousand that need memory; they are drawn at random,
never listed. One in ten, chosen by a hash of everything in the scene, is held out: all evaluations use those only.
"""

import random
import zlib
from collections.abc import Iterator, Sequence

from forcing_kv.tiny.world import (
    BACKGROUNDS,
    CAMERAS,
    COLOURS,
    MEMORY_MOTIONS,
    MOTIONS,
    PLACES,
    SHAPES,
    SIZES,
    SPEED_JITTER,
    SPEEDS,
    TEXTURES,
    Clip,
    Scene,
    Thing,
)

_HELD_OUT_ONE_IN = 10
_PANNING_SHARE = 0.5  # of the scenes with a pattern


def random_scene(
    rng: random.Random, *, memory: bool = False, motions: Sequence[str] = (), shapes: Sequence[str] = SHAPES
) -> Scene:
    """Any scene, held out or not.

    Args:
        rng: of the choice.
        memory: a memory scene instead of one free object.
        motions: those to choose from, where not all of the free or the memory scenes'; one named twice comes twice as
            often.
        shapes: of the objects, likewise.
    """
    motion = rng.choice(motions or (MEMORY_MOTIONS if memory else MOTIONS))
    memory = motion in MEMORY_MOTIONS
    first = random_thing(rng, shapes)
    texture = rng.choice(TEXTURES)
    return Scene(
        things=(first, _other_thing(rng, first, shapes)) if motion == "crossing" else (first,),
        motion=motion,
        speed="slowly" if memory else rng.choice(tuple(SPEEDS)),
        place=rng.choice(_places(motion)),
        background=rng.choice(tuple(BACKGROUNDS)),
        texture=texture,
        camera="still" if memory or texture == "plain" or rng.random() > _PANNING_SHARE else rng.choice(CAMERAS[1:]),
    )


def random_thing(rng: random.Random, shapes: Sequence[str] = SHAPES) -> Thing:
    """Any object of some shapes."""
    return Thing(colour=rng.choice(tuple(COLOURS)), shape=rng.choice(shapes), size=rng.choice(tuple(SIZES)))


def random_scenes(seed: int, *, memory: bool = False, held_out: bool | None = None) -> Iterator[Scene]:
    """Endless distinct scenes.

    Args:
        seed: of the choice.
        memory: memory scenes instead of the others.
        held_out: True for scenes kept out of training, False for trained ones, None for either.
    """
    rng = random.Random(seed)
    seen: set[Scene] = set()
    while True:
        scene = random_scene(rng, memory=memory)
        if scene not in seen and (held_out is None or is_held_out(scene) == held_out):
            seen.add(scene)
            yield scene


def is_held_out(scene: Scene) -> bool:
    """Whether the scene is kept out of training: one in ten, by a hash of everything in it."""
    return zlib.crc32("/".join(scene.names()).encode()) % _HELD_OUT_ONE_IN == 0


def random_clip(
    rng: random.Random, *, memory: bool = False, motions: Sequence[str] = (), shapes: Sequence[str] = SHAPES
) -> Clip:
    """A clip of a scene that is for training, at a random speed; of what scenes, see `random_scene`."""
    scene = random_scene(rng, memory=memory, motions=motions, shapes=shapes)
    while is_held_out(scene):
        scene = random_scene(rng, memory=memory, motions=motions, shapes=shapes)
    return Clip(scene=scene, speed_factor=1 + SPEED_JITTER * rng.uniform(-1, 1))


def _places(motion: str) -> tuple[str, ...]:
    """The places that make a difference to a motion."""
    if motion == "crossing":
        return ("center",)
    return ("left", "right") if motion in MEMORY_MOTIONS else PLACES


def _other_thing(rng: random.Random, first: Thing, shapes: Sequence[str]) -> Thing:
    """A second object of another colour."""
    other = random_thing(rng, shapes)
    while other.colour == first.colour:
        other = random_thing(rng, shapes)
    return other
