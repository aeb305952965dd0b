import random

import pytest
from click.testing import CliRunner

from forcing_kv.cli.prompts import command
from forcing_kv.errors import PromptError
from forcing_kv.tiny.prompts import (
    EXAMPLE,
    caption,
    grammar,
    is_held_out,
    parse,
    random_prompts,
    varied_caption,
    vocabulary,
)
from forcing_kv.tiny.text import build_tokenizer
from forcing_kv.tiny.world import Scene, all_scenes


def test_every_caption_is_understood_as_its_scene():
    for scene in all_scenes()[::3]:
        assert parse(caption(scene)) == scene


def test_varied_captions_say_the_same():
    rng = random.Random(0)
    texts = set()
    for scene in all_scenes()[::17]:
        text = varied_caption(scene, rng)
        texts.add(len(text.split()))
        assert parse(text) == scene, text
    assert len(texts) > 5  # some are short, some have unknown words


def test_free_text_is_understood_as_far_as_it_goes():
    scene = parse("A tiny YELLOW box, spinning rapidly vertically near the centre!")
    assert scene == Scene(
        colour="yellow", shape="square", size="small", motion="up and down", speed="quickly", place="center"
    )


def test_no_known_word_is_an_error_with_an_example():
    with pytest.raises(PromptError, match=r"knows no word of 'hello there'.*for example"):
        parse("hello there")
    assert parse(EXAMPLE).colour == "red"


def test_one_scene_in_ten_is_held_out_and_all_prompts_of_that_kind_are():
    held_out = [scene for scene in all_scenes() if is_held_out(scene)]
    assert len(held_out) == 412
    prompts = random_prompts(50, seed=3, held_out=True)
    assert len(set(prompts)) == 50
    assert all(is_held_out(parse(prompt)) for prompt in prompts)
    assert not any(is_held_out(parse(prompt)) for prompt in random_prompts(50, seed=3, held_out=False))
    with pytest.raises(PromptError, match="413 prompts asked for; there are 412"):
        random_prompts(413, held_out=True)


def test_vocabulary_covers_every_caption():
    words = set(vocabulary())
    assert all(set(caption(scene).split()) <= words for scene in all_scenes()[::5])
    assert "red" in words
    assert "ball" not in words


def test_grammar_names_every_choice():
    text = grammar()
    assert "[large]" in text
    assert "up and down" in text
    assert "brown" in text


def test_tokenizer_replaces_synonyms_and_marks_unknown_words(tmp_path):
    from transformers import AutoTokenizer

    build_tokenizer().save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    plain = tokenizer("a large red circle at the center").input_ids
    assert tokenizer("A BIG red ball, at the centre!").input_ids == plain
    assert tokenizer.convert_ids_to_tokens(tokenizer("a shiny red").input_ids) == ["a", "<unk>", "red", "</s>"]


def test_the_command_prints_prompts_to_stdout_and_the_grammar_to_stderr():
    result = CliRunner().invoke(command, ["-n", "3", "--seed", "1"])
    assert result.exit_code == 0
    lines = result.stdout.strip().splitlines()
    assert lines == random_prompts(3, 1)
    assert "COLOUR" in result.stderr
