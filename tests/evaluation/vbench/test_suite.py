"""Prompts, which videos of them, and longer prompts in their place."""

import json
import re

import pytest

from forcing_kv.errors import ConfigurationError, PromptError, UnknownNameError
from forcing_kv.evaluation.vbench.augmented import read_augmented
from forcing_kv.evaluation.vbench.plan import SamplePlan
from forcing_kv.evaluation.vbench.suite import parse_suite, read_suite
from stand_in_vbench import SUITE

CIRCLE, UKIYO, STILL = "a red circle", "A blue square, in the style of Ukiyo", "In a still frame, a façade."


@pytest.fixture
def suite():
    return parse_suite(json.dumps(SUITE).encode(), where="suite.json")


def test_a_text_that_stands_there_twice_is_one_prompt(suite):
    assert suite.entries == (CIRCLE, UKIYO, STILL, UKIYO)
    assert [prompt.text for prompt in suite.prompts] == [CIRCLE, UKIYO, STILL]
    united = {"appearance_style", "overall_consistency", "aesthetic_quality", "imaging_quality"}
    assert suite.prompts[1].dimensions == united
    assert [prompt.text for prompt in suite.chosen(["imaging_quality"])] == [UKIYO]
    assert not suite.is_official
    with pytest.raises(
        ConfigurationError, match="no prompt for scene; it has some for: temporal_flickering, aesthetic"
    ):
        suite.chosen(["scene"])


def test_where_it_is_looked_for(tmp_path):
    content = json.dumps(SUITE)
    checkout = tmp_path / "VBench"
    (checkout / "vbench").mkdir(parents=True)
    file = checkout / "vbench" / "VBench_full_info.json"
    file.write_text(content)
    for place in (file, checkout / "vbench", checkout):
        assert len(read_suite(place).prompts) == 3
    with pytest.raises(ConfigurationError, match=r"VBench_full_info\.json cannot be read: No such file"):
        read_suite(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not valid JSON"),
        ("[]", "is no list of prompts"),
        ('{"a": 1}', "is no list of prompts"),
        ('[{"prompt_en": "a cat"}]', "entry 1: no .* but"),
        ('[{"prompt_en": " ", "dimension": ["color"]}]', "entry 1: no"),
        ('["a cat"]', "entry 1: no"),
        ('[{"prompt_en": "a cat", "dimension": ["Human_Anatomy"]}]', "'Human_Anatomy' is none of VBench 1's"),
        ('[{"prompt_en": "cats/dogs", "dimension": ["color"]}]', "'cats/dogs' cannot be part of a file name"),
    ],
)
def test_what_is_no_suite(content, message):
    with pytest.raises(ConfigurationError, match=message):
        parse_suite(content.encode(), where="suite.json")


def test_how_many_videos_of_what(suite):
    plan = SamplePlan(samples=2, flickering_samples=3, dimensions=("temporal_flickering", "imaging_quality", "color"))
    assert [(prompt.text, index) for prompt, index in plan.videos(suite)] == [
        (CIRCLE, 0), (UKIYO, 0), (STILL, 0), (CIRCLE, 1), (UKIYO, 1), (STILL, 1), (STILL, 2),
    ]  # fmt: skip
    assert plan.file_names(suite, "color") == ["a red circle-0.mp4", "a red circle-1.mp4"]
    assert plan.file_names(suite, "temporal_flickering") == [f"{STILL}-{index}.mp4" for index in range(3)]
    assert SamplePlan(**plan.to_json()) == plan
    assert SamplePlan().samples == 5
    both = parse_suite(
        json.dumps([{"prompt_en": "a", "dimension": ["color", "temporal_flickering"]}]).encode(), where="-"
    )
    assert [plan.num_samples(prompt) for prompt in both.prompts] == [3]


@pytest.mark.parametrize(
    ("setting", "error", "message"),
    [
        ({"samples": 0}, ConfigurationError, "0 samples per prompt: VBench reads 1 to 5"),
        ({"samples": 6}, ConfigurationError, "6 samples per prompt"),
        ({"flickering_samples": 101}, ConfigurationError, "ask for 1 to 100"),
        ({"dimensions": ()}, ConfigurationError, "no dimension is asked for"),
        ({"dimensions": ("hue",)}, UnknownNameError, "'hue'; choose one of"),
    ],
)
def test_plans_that_make_no_sense(setting, error, message):
    with pytest.raises(error, match=message):
        SamplePlan(**setting)


def test_longer_prompts(suite, tmp_path):
    lines, mapping = tmp_path / "long.txt", tmp_path / "long.json"
    lines.write_text(" a circle of the deepest red \nfirst\u2028square\na façade, at rest\nsecond square\n\n")
    by_line = read_augmented(lines, suite, needed=[CIRCLE, UKIYO, STILL])
    assert by_line.texts == {
        CIRCLE: "a circle of the deepest red",
        UKIYO: "first\u2028square",
        STILL: "a façade, at rest",
    }
    mapping.write_text(json.dumps({CIRCLE: "a circle of the deepest red"}))
    assert read_augmented(mapping, suite, needed=[CIRCLE]).texts == {CIRCLE: "a circle of the deepest red"}
    assert by_line.name == "long.txt"
    assert re.fullmatch("[0-9a-f]{64}", by_line.sha256)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"one\ntwo\n", "has 2 lines and the suite 4 entries"),
        (b"one\n\nthree\nfour\n", "long.txt, line 2 is empty"),
        (b"one\n" + b"x" * 10_001 + b"\nthree\nfour", "line 2 has 10001 characters, and at most 10000 are read"),
        (b"\xff\xfe", "not UTF-8 text"),
        (b"{", "is not valid JSON"),
        (b'{"a red circel": "long"}', "'a red circel' is no prompt of the suite"),
        (b'{"a red circle": 3}', "the prompt for 'a red circle' is 3: write a text"),
        (b'{"a red circle": " "}', "the prompt for 'a red circle' is empty"),
        (b'{"a red circle": "long"}', "no prompt for 1 of the 2 that are asked for; the first is 'In a still"),
    ],
)
def test_longer_prompts_that_do_not_fit(suite, tmp_path, content, message):
    (tmp_path / "long.txt").write_bytes(content)
    with pytest.raises(PromptError, match=message):
        read_augmented(tmp_path / "long.txt", suite, needed=[CIRCLE, STILL])


def test_longer_prompts_that_are_not_there(suite, tmp_path):
    with pytest.raises(PromptError, match=r"none\.txt cannot be read: No such file"):
        read_augmented(tmp_path / "none.txt", suite, needed=[])
