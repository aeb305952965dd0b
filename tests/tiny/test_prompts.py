"""Captions, what is understood of free text, and what the tokenizer makes of both."""

import random
from itertools import islice

import pytest

from forcing_kv.errors import PromptError
from forcing_kv.tiny.prompts import (
    EXAMPLE,
    PHRASES,
    SYNONYMS,
    caption,
    grammar,
    parse,
    random_prompts,
    varied_caption,
    vocabulary,
    words_of,
)
from forcing_kv.tiny.scenes import is_held_out, random_scenes
from forcing_kv.tiny.training.text import TEXT_LEN, build_tokenizer, token_ids
from forcing_kv.tiny.world import (
    BACKGROUNDS,
    COLOURS,
    MEMORY_MOTIONS,
    MOTIONS,
    PLACES,
    SHAPES,
    SIZES,
    SPEEDS,
    TEXTURES,
    Scene,
    Thing,
)

DEFAULT = Scene(things=(Thing(colour="red", shape="circle"),))


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer()


def scenes(num, seed=0, **settings):
    return list(islice(random_scenes(seed, **settings), num))


def tokens_of(tokenizer, prompt):
    return tokenizer.convert_ids_to_tokens(tokenizer(prompt).input_ids)


# Captions


@pytest.mark.parametrize("memory", [False, True])
def test_every_caption_is_understood_as_its_scene(memory):
    for scene in scenes(1500, memory=memory):
        wish = parse(caption(scene))
        assert (wish.scene, wish.names_things) == (scene, True), caption(scene)


def test_captions_read_like_this():
    free = Scene(
        things=(Thing(colour="orange", shape="cross", size="small"),),
        motion="moving leftward",
        speed="quickly",
        place="top",
        background="white",
        texture="checkered",
        camera="panning right",
    )
    assert caption(free) == (
        "a small orange cross moving left quickly at the top on a checkered white background camera panning right"
    )
    pair = Scene(things=(Thing(colour="green", shape="square"), free.things[0]), motion="crossing")
    assert caption(pair) == "a large green square and a small orange cross crossing on a plain gray background"
    assert caption(pair, named=False) == "two objects crossing on a plain gray background"
    behind = Scene(things=pair.things[:1], motion="passing behind a pillar", place="right", texture="striped")
    assert caption(behind) == "a large green square passing behind a pillar at the right on a striped gray background"
    assert caption(behind, named=False).startswith("an object passing behind a pillar at the right on")


def test_a_memory_scene_may_leave_open_what_the_objects_are():
    for scene in scenes(600, memory=True):
        wish = parse(caption(scene, named=False))
        assert not wish.names_things
        unnamed = scene.record() | {"things": wish.scene.record()["things"]}
        assert wish.scene.record() == unnamed
        assert len(wish.scene.things) == len(scene.things)


@pytest.mark.parametrize("memory", [False, True])
def test_varied_captions_say_the_same(memory):
    rng = random.Random(0)
    unnamed, lengths, unknown, reordered = 0, set(), 0, 0
    for scene in scenes(2500, seed=1, memory=memory):
        text = varied_caption(scene, rng)
        wish = parse(text)
        assert wish.scene.names()[-6:] == scene.names()[-6:], text
        unnamed += not wish.names_things
        if wish.names_things:
            assert wish.scene == scene, text
        lengths.add(len(text.split()))
        unknown += "<unk>" in text
        plain = [caption(scene, named=named) for named in {True, not memory}]
        reordered += text not in plain and "<unk>" not in text
    assert unnamed / 2500 == pytest.approx(0.8 if memory else 0, abs=0.03)
    assert unknown / 2500 == pytest.approx(0.1, abs=0.02)  # one in five, half of those
    assert reordered > 150
    assert len(lengths) > 8


def test_varied_captions_name_what_has_to_be_named():
    rng = random.Random(0)
    for scene in scenes(300, seed=1, memory=True):
        assert parse(varied_caption(scene, rng, named=True)).scene == scene


@pytest.mark.parametrize("memory", [False, True])
def test_prompts_are_captions_of_distinct_scenes_on_the_side_that_is_asked_for(memory):
    for held_out in (True, False):
        prompts = random_prompts(60, seed=3, memory=memory, held_out=held_out)
        chosen = scenes(60, seed=3, memory=memory, held_out=held_out)
        assert prompts == [caption(scene, named=not memory) for scene in chosen]
        assert all(is_held_out(scene) == held_out for scene in chosen)
        assert all(parse(prompt).names_things != memory for prompt in prompts)
        if not memory:
            assert len(set(prompts)) == 60
            assert all(is_held_out(parse(prompt).scene) == held_out for prompt in prompts)
    assert random_prompts(5, seed=3) != random_prompts(5, seed=4)


# Free text


@pytest.mark.parametrize(
    ("prompt", "names"),
    [
        ("a red circle", {}),
        ("moves to the left", {"motion": "moving leftward"}),
        ("at the left, going to the right", {"place": "left", "motion": "moving rightward"}),
        ("to the left", {"place": "left"}),
        ("it heads upwards FAST", {"motion": "moving upward", "speed": "quickly"}),
        ("slides down", {"motion": "moving downward"}),
        ("goes up and down", {"motion": "bouncing vertically"}),
        ("from left and right", {"motion": "bouncing sideways"}),
        ("side to side", {"motion": "bouncing sideways"}),
        ("bouncing vertically", {"motion": "bouncing vertically"}),
        ("circles around", {"motion": "circling clockwise"}),
        ("going in circles, counter clockwise", {"motion": "circling counterclockwise"}),
        ("orbiting anti-clockwise", {"motion": "circling counterclockwise"}),
        ("circling counterclockwise", {"motion": "circling counterclockwise"}),
        ("at the centre on grey", {"place": "center", "background": "gray"}),
        ("on stripes, camera pans to the right", {"texture": "striped", "camera": "panning right"}),
        ("panning left", {"texture": "striped", "camera": "panning left"}),  # a pattern, for the pan to be seen
        ("on a plain ground, camera panning left", {}),  # nothing would be seen of it
        ("behind a wall, fast", {"motion": "passing behind a pillar"}),  # memory scenes go slowly
        ("leaves and comes back", {"motion": "leaving and returning"}),
        ("at the left, then at the right", {"place": "left"}),  # the first word of a kind counts
        ("on a white and a black background", {"background": "white"}),
    ],
)
def test_free_text_is_understood_as_far_as_it_goes(prompt, names):
    wish = parse(f"qwertz {prompt} qwertz")
    assert wish.scene.record() == DEFAULT.record() | names
    assert wish.names_things == (prompt == "a red circle")


def test_things_are_understood_in_any_words():
    wish = parse("A tiny YELLOW box, spinning rapidly vertically near the middle!")
    assert wish.scene == Scene(
        things=(Thing(colour="yellow", shape="square", size="small"),), motion="bouncing vertically", speed="quickly"
    )
    two = parse("a huge violet plus and something amber, meeting on white")
    assert two.scene == Scene(
        things=(Thing(colour="purple", shape="cross"), Thing(colour="orange", shape="square")),
        motion="crossing",
        background="white",
    )
    assert two.names_things
    half = parse("crossing, a small blue ball")
    assert half.scene.things[0] == Thing(colour="blue", shape="circle", size="small")
    assert half.scene.things[1] == Thing(colour="blue", shape="square")


def test_no_known_word_is_an_error_with_an_example():
    with pytest.raises(PromptError, match=r"knows no word of 'hello there'.*for example 'a large red circle"):
        parse("hello there")
    for prompt in ("", "a background", "<unk>"):
        with pytest.raises(PromptError):
            parse(prompt)
    example = parse(EXAMPLE).scene
    assert caption(example) == EXAMPLE


# Words and tokens


def test_vocabulary_is_every_word_of_the_grammar_and_no_other():
    names = [*COLOURS, *SHAPES, *SIZES, *SPEEDS, *PLACES, *BACKGROUNDS, *TEXTURES]
    motions = {word for motion in (*MOTIONS, *MEMORY_MOTIONS) for word in motion.split()}
    filling = {"a", "an", "at", "the", "on", "background", "two", "object", "objects"}
    words = vocabulary()
    assert set(words) == {*names, *motions, *filling, "panleft", "panright"}
    assert words == sorted(words)
    assert len(words) == 55


def test_synonyms_and_phrases_lead_to_words_of_the_vocabulary_and_are_none():
    words = set(vocabulary())
    assert set(SYNONYMS) <= words
    replaced = [synonym for synonyms in SYNONYMS.values() for synonym in synonyms]
    assert not words & set(replaced)
    assert len(set(replaced)) == len(replaced)
    assert {word for _, replacement in PHRASES for word in replacement.split()} <= words


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ("it moves to the left", "it moving leftward"),
        ("Camera pans right", "panright"),
        ("the camera panning to the right side", "the panright side"),
        ("PANNING   LEFT", "panleft"),
        ("moving upwards", "moving upward"),
        ("moving\n up", "moving upward"),
        ("a Ball, at the Left-hand side", "a circle at the left hand side"),
        ("counter-clockwise", "counterclockwise"),
        ("anticlockwise", "counterclockwise"),
        ("up and down; left and right", "vertically sideways"),
        ("3 red disks", "red disks"),
        ("a big red disk", "a large red circle"),
        ("the object comes back behind the column", "the object comes returning behind the pillar"),
        ("blacker than black", "blacker than black"),
    ],
)
def test_phrases_and_synonyms_become_words(tokenizer, prompt, words):
    assert words_of(prompt) == words.split()
    known = set(vocabulary())
    expected = [word if word in known else "<unk>" for word in words.split()]
    assert tokens_of(tokenizer, prompt) == [*expected, "</s>"]


@pytest.mark.parametrize("memory", [False, True])
def test_the_tokenizer_sees_the_words_and_knows_all_of_a_caption(tokenizer, memory):
    for scene in scenes(300, seed=2, memory=memory):
        for named in {True, not memory}:
            text = caption(scene, named=named)
            assert tokens_of(tokenizer, text) == [*words_of(text), "</s>"]
            assert "<unk>" not in tokens_of(tokenizer, text)


def test_unknown_words_are_one_token_also_where_captions_have_them(tokenizer):
    assert tokens_of(tokenizer, "a <unk> shiny red") == ["a", "<unk>", "<unk>", "red", "</s>"]


def test_no_caption_is_cut(tokenizer):
    rng = random.Random(4)
    texts = []
    for scene in [*scenes(2000), *scenes(1000, memory=True)]:
        texts += [caption(scene), varied_caption(scene, rng)]
    lengths = [len(ids) for ids in tokenizer(texts).input_ids]
    longest = max(len(words_of(caption(scene))) for scene in scenes(2000))
    # Every part said, three unknown words, and the end.
    assert max(lengths) <= longest + 3 + 1 <= TEXT_LEN
    ids, mask = token_ids(tokenizer, [EXAMPLE, "a red circle"])
    assert ids.shape == mask.shape == (2, TEXT_LEN)
    assert mask.sum(dim=1).tolist() == [len(EXAMPLE.split()) + 1, 4]
    assert (ids[mask == 0] == 0).all()


def test_the_tokenizer_survives_the_disk(tokenizer, tmp_path):
    from transformers import AutoTokenizer

    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    for prompt in ["A BIG red ball, at the centre, goes to the left", "camera pans right <unk> up and down"]:
        assert loaded(prompt).input_ids == tokenizer(prompt).input_ids
    assert loaded.model_max_length == TEXT_LEN


def test_grammar_names_every_choice_and_every_default():
    text = grammar()
    for name in (*COLOURS, *SHAPES, *SIZES, *SPEEDS, *PLACES, *BACKGROUNDS, *TEXTURES, *MEMORY_MOTIONS):
        assert name in text, name
    for motion in MOTIONS:
        assert motion.removesuffix("ward") in text
    defaults = DEFAULT.things[0].size, DEFAULT.motion, DEFAULT.speed, DEFAULT.place, DEFAULT.background, DEFAULT.texture
    assert all(f"[{default}]" in text for default in defaults)


def test_shapes_in_the_plural_are_shapes():
    assert [thing.shape for thing in parse("two crosses crossing").scene.things] == ["cross", "square"]
    assert parse("two circles crossing").scene.motion == "crossing"
    assert parse("two circles crossing").names_things
