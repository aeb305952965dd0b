"""What can be said to the embedded model, and what it understands.

A caption names a scene in one sentence; whatever is not said takes the default of `Scene`. `parse` reads any sentence:
known words and their synonyms count wherever they stand, all other words are passed over. Nine in ten scenes are for
training; the others are held out, chosen by a hash of their seven attributes: no prompt of the evaluation was trained.
"""

import random
import re
import zlib

from forcing_kv.errors import PromptError
from forcing_kv.tiny.world import BACKGROUNDS, COLOURS, MOTIONS, PLACES, SHAPES, SIZES, SPEEDS, Scene, all_scenes

EXAMPLE = "a large red circle moving sideways slowly at the left on a gray background"

SYNONYMS: dict[str, tuple[str, ...]] = {
    "circle": ("ball", "disc", "disk", "dot", "sphere"),
    "square": ("box", "cube", "block"),
    "triangle": ("pyramid", "arrowhead"),
    "small": ("little", "tiny"),
    "large": ("big", "huge"),
    "sideways": ("horizontally",),
    "up": ("upwards", "vertically"),
    "down": ("downwards",),
    "circles": ("circling", "orbiting", "round"),
    "slowly": ("slow", "calmly"),
    "quickly": ("quick", "fast", "rapidly"),
    "center": ("centre", "middle"),
    "gray": ("grey",),
    "purple": ("violet",),
    "red": ("crimson",),
    "orange": ("amber",),
}
"""Word of the vocabulary -> other words that mean the same; the tokenizer replaces them."""

_MOTION_WORDS = {"sideways": "sideways", "up": "up and down", "down": "up and down", "circles": "in circles"}
_WORD_FIELDS: dict[str, tuple[str, str]] = {
    **{word: ("colour", word) for word in COLOURS},
    **{word: ("shape", word) for word in SHAPES},
    **{word: ("size", word) for word in SIZES},
    **{word: ("motion", motion) for word, motion in _MOTION_WORDS.items()},
    **{word: ("speed", word) for word in SPEEDS},
    **{word: ("place", word) for word in PLACES},
    **{word: ("background", word) for word in BACKGROUNDS},
}
_CANONICAL = {synonym: word for word, synonyms in SYNONYMS.items() for synonym in synonyms}
_DEFAULTS = Scene(colour="red", shape="circle")
_HELD_OUT_ONE_IN = 10


def caption(scene: Scene) -> str:
    """The full sentence for a scene, in the grammar's own words."""
    return (
        f"a {scene.size} {scene.colour} {scene.shape} moving {scene.motion} {scene.speed} "
        f"at the {scene.place} on a {scene.background} background"
    )


def varied_caption(scene: Scene, rng: random.Random) -> str:
    """A caption as people type: one in five leaves defaults unsaid, reorders, or has words the model does not know."""
    if rng.random() < 0.8:
        return caption(scene)
    said = dict.fromkeys(("size", "speed", "place", "background", "motion"), True)
    for name in said:
        said[name] = getattr(scene, name) != getattr(_DEFAULTS, name) or rng.random() < 0.5
    head = ["a", *([scene.size] if said["size"] else []), scene.colour, scene.shape]
    moving = ["moving", scene.motion] if said["motion"] else []
    tail = [scene.speed] if said["speed"] else []
    place = ["at", "the", scene.place] if said["place"] else []
    ground = ["on", "a", scene.background, "background"] if said["background"] else []
    parts = [moving, tail, place, ground]
    rng.shuffle(parts)
    words = [*head, *(word for part in parts for word in part)]
    for _ in range(rng.choice((0, 0, 1, 3))):
        words.insert(rng.randrange(len(words) + 1), "<unk>")
    return " ".join(words)


def parse(prompt: str) -> Scene:
    """Understand a prompt as a scene; the first word of each kind counts, unsaid kinds take the default.

    Raises:
        PromptError: if no word of the prompt says anything about the world.
    """
    said: dict[str, str] = {}
    for word in words_of(prompt):
        if word in _WORD_FIELDS:
            name, value = _WORD_FIELDS[word]
            said.setdefault(name, value)
    if not said:
        raise PromptError(
            f"the model 'tiny' knows no word of {prompt!r}; say for example {EXAMPLE!r} "
            "(`forcing-kv prompts` prints more, and the grammar)"
        )
    return Scene(**{**dict(zip(_WORD_FIELD_ORDER, _DEFAULTS.values(), strict=True)), **said})


def words_of(prompt: str) -> list[str]:
    """The prompt's words, lower case, synonyms replaced: what the tokenizer sees."""
    return [_CANONICAL.get(word, word) for word in re.findall(r"[a-z]+", prompt.lower())]


def vocabulary() -> list[str]:
    """Every word that the model was trained on, in a fixed order."""
    words = {word for scene in _one_scene_per_name() for word in caption(scene).split()}
    return sorted(words)


def random_prompts(num: int, seed: int = 0, *, held_out: bool | None = None) -> list[str]:
    """Distinct valid prompts.

    Args:
        num: how many.
        seed: of the choice.
        held_out: True for scenes kept out of training, False for trained ones, None for either.

    Raises:
        PromptError: if there are not so many.
    """
    scenes = [scene for scene in all_scenes() if held_out is None or is_held_out(scene) == held_out]
    if not 0 <= num <= len(scenes):
        raise PromptError(f"{num} prompts asked for; there are {len(scenes)} of this kind")
    return [caption(scene) for scene in random.Random(seed).sample(scenes, num)]


def is_held_out(scene: Scene) -> bool:
    """Whether the scene is kept out of training: one in ten, by a hash of its attributes."""
    return zlib.crc32("/".join(scene.values()).encode()) % _HELD_OUT_ONE_IN == 0


def grammar() -> str:
    """The grammar in words, for people."""
    return "\n".join(
        [
            "a [SIZE] COLOUR SHAPE [moving MOTION] [SPEED] [at the PLACE] [on a BACKGROUND background]",
            "",
            f"  SIZE        {_choices(SIZES, _DEFAULTS.size)}",
            f"  COLOUR      {_choices(COLOURS, _DEFAULTS.colour)}",
            f"  SHAPE       {_choices(SHAPES, _DEFAULTS.shape)}",
            f"  MOTION      {_choices(MOTIONS, _DEFAULTS.motion)}",
            f"  SPEED       {_choices(SPEEDS, _DEFAULTS.speed)}",
            f"  PLACE       {_choices(PLACES, _DEFAULTS.place)}",
            f"  BACKGROUND  {_choices(BACKGROUNDS, _DEFAULTS.background)}",
            "",
            "What is not said takes the value in brackets. Common synonyms are understood, other words passed over.",
        ]
    )


def _choices(names: object, default: str) -> str:
    assert isinstance(names, dict | tuple)
    return " | ".join(f"[{name}]" if name == default else name for name in names)


def _one_scene_per_name() -> list[Scene]:
    """A few scenes in which every name of the world occurs."""
    return [scene for scene in all_scenes() if sum(map(_differs, scene.values(), _DEFAULTS.values())) <= 1]


def _differs(one: str, other: str) -> bool:
    return one != other


_WORD_FIELD_ORDER = ("colour", "shape", "size", "motion", "speed", "place", "background")
