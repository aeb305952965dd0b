"""What can be said to the embedded model, and what it understands.

A caption names a scene in one sentence; whatever is not said takes a default, and in a memory scene an object may stay
an "object". `parse` reads any sentence: known words, their synonyms and a few turns of phrase count wherever they
stand, all other words are passed over.
"""

import random
import re
from dataclasses import dataclass
from itertools import islice

from forcing_kv.errors import PromptError
from forcing_kv.tiny.scenes import random_scenes
from forcing_kv.tiny.world import (
    BACKGROUNDS,
    COLOURS,
    MEMORY_MOTIONS,
    PLACES,
    SHAPES,
    SIZES,
    SPEEDS,
    TEXTURES,
    Scene,
    Thing,
)

EXAMPLE = "a large red circle moving right slowly at the left on a striped gray background"

_LEFT_RIGHT = ("left", "right")
_GOES = r"\b(?:mov|go|travel|drift|fly|slid|head)(?:es|s|ing)(?: to)?(?: the)?"
_PANS = r"\b(?:camera )?pan(?:s|ning)?(?: to)?(?: the)?"
PHRASES: tuple[tuple[str, str], ...] = (
    (r"\b(?:counter|anti)[- ]?clockwise\b", "counterclockwise"),
    (r"\b(?:in circles|circles around)\b", "circling"),
    (r"\b(?:up and down|vertically)\b", "vertically"),
    (r"\b(?:left and right|side to side|sideways|horizontally)\b", "sideways"),
    *((rf"{_PANS} {side}(?:wards?)?\b", f"pan{side}") for side in _LEFT_RIGHT),
    *((rf"{_GOES} {way}(?:wards?)?\b", f"moving {way}ward") for way in (*_LEFT_RIGHT, "up", "down")),
)
"""Regular expression -> what it becomes; applied in this order to the lower-case prompt, spaces single.

So that one word means one thing: the place "left" is not the direction, and neither is the camera's.
"""

SYNONYMS: dict[str, tuple[str, ...]] = {
    "circle": ("circles", "ball", "disc", "disk", "dot", "sphere"),
    "square": ("squares", "box", "cube", "block"),
    "triangle": ("triangles", "pyramid", "arrowhead"),
    "cross": ("crosses", "plus"),
    "small": ("little", "tiny"),
    "large": ("big", "huge"),
    "circling": ("orbiting", "orbits"),
    "bouncing": ("bounces",),
    "slowly": ("slow", "calmly"),
    "quickly": ("quick", "fast", "rapidly"),
    "center": ("centre", "middle"),
    "gray": ("grey",),
    "purple": ("violet",),
    "red": ("crimson",),
    "orange": ("amber",),
    "striped": ("stripes", "stripy"),
    "checkered": ("checked", "chequered"),
    "pillar": ("column", "wall"),
    "returning": ("returns", "back"),
    "crossing": ("meeting",),
    "object": ("thing", "something"),
    "objects": ("things", "shapes"),
}
"""Word of the vocabulary -> other words that mean the same; the tokenizer replaces them."""

_CANONICAL = {synonym: word for word, synonyms in SYNONYMS.items() for synonym in synonyms}
_MOTION_WORDS = {
    "rightward": "moving rightward",
    "leftward": "moving leftward",
    "upward": "moving upward",
    "downward": "moving downward",
    "sideways": "bouncing sideways",
    "vertically": "bouncing vertically",
    "clockwise": "circling clockwise",
    "counterclockwise": "circling counterclockwise",
    "pillar": "passing behind a pillar",
    "returning": "leaving and returning",
    "crossing": "crossing",
}
_WORD_FIELDS: dict[str, tuple[str, str]] = {
    **{word: ("motion", motion) for word, motion in _MOTION_WORDS.items()},
    **{word: ("speed", word) for word in SPEEDS},
    **{word: ("place", word) for word in PLACES},
    **{word: ("background", word) for word in BACKGROUNDS},
    **{word: ("texture", word) for word in TEXTURES},
    "panleft": ("camera", "panning left"),
    "panright": ("camera", "panning right"),
}
_THING_FIELDS: dict[str, tuple[str, str]] = {
    **{word: ("colour", word) for word in COLOURS},
    **{word: ("shape", word) for word in SHAPES},
    **{word: ("size", word) for word in SIZES},
}
_DEFAULT_THINGS = (Thing(colour="red", shape="circle"), Thing(colour="blue", shape="square"))
_DEFAULTS = Scene(things=_DEFAULT_THINGS[:1])
_UNSAYABLE = ("size", "motion", "speed", "place", "background", "texture")
_SAID_IN_FULL = 0.8
_NAMED_IN_MEMORY = 0.2


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What a prompt asks for.

    Attributes:
        scene: all of it; what was not said has its default.
        names_things: whether the prompt says anything about what the objects are; in a memory scene it need not.
    """

    scene: Scene
    names_things: bool


def caption(scene: Scene, *, named: bool = True) -> str:
    """The full sentence for a scene, in the grammar's own words.

    Args:
        scene: what is seen.
        named: whether it says what the objects are; only a memory scene may leave it open.
    """
    head, *rest = _parts(scene, named=named)
    return " ".join([head, *rest])


def varied_caption(scene: Scene, rng: random.Random, *, named: bool = False) -> str:
    """A caption as people type: one in five leaves defaults unsaid, reorders, or has words the model does not know.

    Those of memory scenes mostly leave open what the objects are, so that only the picture tells, unless `named`.
    """
    named = named or not scene.needs_memory or rng.random() < _NAMED_IN_MEMORY
    if rng.random() < _SAID_IN_FULL:
        return caption(scene, named=named)
    unsaid = {name for name in _UNSAYABLE if _is_default(scene, name) and rng.random() < 0.5}
    head, *rest = _parts(scene, named=named, unsaid=unsaid)
    rng.shuffle(rest)
    parts = [head, *rest]
    for _ in range(rng.choice((0, 0, 1, 3))):
        parts.insert(rng.randrange(len(parts) + 1), "<unk>")
    return " ".join(parts)


def parse(prompt: str) -> Wish:
    """Understand a prompt; the first word of each kind counts, unsaid kinds take the default.

    Raises:
        PromptError: if no word of the prompt says anything about the world.
    """
    words = words_of(prompt)
    said: dict[str, str] = {}
    for word in words:
        if word in _WORD_FIELDS:
            said.setdefault(*_WORD_FIELDS[word])
    if "circling" in words:
        said.setdefault("motion", "circling clockwise")
    num_things = 2 if said.get("motion") == "crossing" else 1
    said_of_things = _said_of_things(words, num_things)
    if not said and not any(said_of_things):
        raise PromptError(
            f"the model 'tiny' knows no word of {prompt!r}; say for example {EXAMPLE!r} "
            "(`forcing-kv prompts` prints more, and the grammar)"
        )
    if said.get("motion", _DEFAULTS.motion) in MEMORY_MOTIONS:
        said.pop("speed", None)
        said.pop("camera", None)
    if "camera" in said and said.setdefault("texture", "striped") == "plain":
        said.pop("camera")  # it would not be seen
    things = tuple(
        Thing(**{"colour": default.colour, "shape": default.shape, "size": default.size, **fields})
        for default, fields in zip(_DEFAULT_THINGS, said_of_things, strict=False)
    )
    return Wish(scene=Scene(things=things, **said), names_things=any(said_of_things))


def words_of(prompt: str) -> list[str]:
    """The prompt's words, lower case, phrases and synonyms replaced: what the tokenizer sees."""
    text = re.sub(r"\s+", " ", prompt.lower())
    for pattern, replacement in PHRASES:
        text = re.sub(pattern, replacement, text)
    return [_CANONICAL.get(word, word) for word in re.findall(r"[a-z]+", text)]


def vocabulary() -> list[str]:
    """Every word that the model is trained on, in a fixed order."""
    scenes = [*islice(random_scenes(0), 2000), *islice(random_scenes(0, memory=True), 500)]
    sentences = [caption(scene, named=named) for scene in scenes for named in {True, not scene.needs_memory}]
    return sorted({word for sentence in sentences for word in words_of(sentence)})


def random_prompts(num: int, seed: int = 0, *, memory: bool = False, held_out: bool | None = None) -> list[str]:
    """Distinct valid prompts.

    Args:
        num: how many.
        seed: of the choice.
        memory: prompts of memory scenes, which do not say what the objects are; distinct scenes, so texts may repeat.
        held_out: True for scenes kept out of training, False for trained ones, None for either.
    """
    scenes = islice(random_scenes(seed, memory=memory, held_out=held_out), num)
    return [caption(scene, named=not memory) for scene in scenes]


def grammar() -> str:
    """The grammar in words, for people."""
    things = _DEFAULT_THINGS[0]
    return "\n".join(
        [
            "a [SIZE] COLOUR SHAPE [MOTION] [SPEED] [at the PLACE] [on a [TEXTURE] BACKGROUND background] [CAMERA]",
            "",
            f"  SIZE        {_choices(SIZES, things.size)}",
            f"  COLOUR      {_choices(COLOURS, things.colour)}",
            f"  SHAPE       {_choices(SHAPES, things.shape)}",
            "  MOTION      moving right | moving left | moving up | moving down | [bouncing sideways]",
            "              | bouncing vertically | circling clockwise | circling counterclockwise",
            f"  SPEED       {_choices(SPEEDS, _DEFAULTS.speed)}",
            f"  PLACE       {_choices(PLACES, _DEFAULTS.place)}    (where it starts)",
            f"  TEXTURE     {_choices(TEXTURES, _DEFAULTS.texture)}",
            f"  BACKGROUND  {_choices(BACKGROUNDS, _DEFAULTS.background)}",
            "  CAMERA      camera panning left | camera panning right    (on a striped or checkered background)",
            "",
            'Memory scenes, where only old frames tell what an object was (say what it is, or just "an object"):',
            "",
            "  OBJECT passing behind a pillar [at the left | right] [on a [TEXTURE] BACKGROUND background]",
            "  OBJECT leaving and returning [at the left | right] [on a ...]",
            "  OBJECT and OBJECT crossing [on a ...]    or: two objects crossing ...",
            "",
            "What is not said takes the value in brackets. Common synonyms are understood, other words passed over.",
        ]
    )


def _parts(scene: Scene, *, named: bool, unsaid: frozenset[str] | set[str] = frozenset()) -> list[str]:
    """The sentence in parts: the objects first, the rest in any order."""
    if named:
        head = " and ".join(f"a {thing.size} {thing.colour} {thing.shape}" for thing in scene.things)
        head = head.replace(f"a {_DEFAULT_THINGS[0].size} ", "a ", 1) if "size" in unsaid else head
    else:
        head = "two objects" if len(scene.things) == 2 else "an object"
    verb, _, direction = scene.motion.partition(" ")
    motion = f"{verb} {direction.removesuffix('ward')}" if verb == "moving" else scene.motion
    ground = f"{scene.background} background"
    parts = {
        "motion": motion,
        "speed": "" if scene.needs_memory else scene.speed,
        "place": "" if scene.motion == "crossing" else f"at the {scene.place}",
        "background": f"on a {ground}" if "texture" in unsaid else f"on a {scene.texture} {ground}",
        "camera": "" if scene.camera == "still" else f"camera {scene.camera}",
    }
    return [head, *(text for name, text in parts.items() if text and name not in unsaid)]


def _is_default(scene: Scene, name: str) -> bool:
    """Whether leaving this unsaid means the same."""
    if name == "size":
        return scene.things[0].size == _DEFAULT_THINGS[0].size
    if name == "background":  # the texture is said with it
        return scene.background == _DEFAULTS.background and scene.texture == _DEFAULTS.texture
    if name == "texture":
        return scene.texture == _DEFAULTS.texture
    return bool(getattr(scene, name) == getattr(_DEFAULTS, name))


def _said_of_things(words: list[str], num_things: int) -> list[dict[str, str]]:
    """What is said of each object: of two, the words before and after "and"."""
    middle = words.index("and") if num_things == 2 and "and" in words else len(words)
    parts = [words[:middle], words[middle:]][:num_things]
    said: list[dict[str, str]] = [{} for _ in parts]
    for part, fields in zip(parts, said, strict=True):
        for word in part:
            if word in _THING_FIELDS:
                fields.setdefault(*_THING_FIELDS[word])
    return said


def _choices(names: object, default: str) -> str:
    assert isinstance(names, dict | tuple)
    return " | ".join(f"[{name}]" if name == default else name for name in names)
