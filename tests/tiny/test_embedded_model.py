"""The model that lies in the package."""

import json

import pytest

from forcing_kv.models import read_head_map
from forcing_kv.models.zoo import EMBEDDED_MODELS
from forcing_kv.pipeline import VideoPipeline
from forcing_kv.tiny.prompts import parse
from forcing_kv.tiny.scorer import score

FOLDER = EMBEDDED_MODELS["tiny"]


def test_it_is_small_and_tells_nothing_of_the_machine_it_was_trained_on():
    files = [path for path in FOLDER.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 12_000_000
    for path in files:
        if path.suffix == ".json":
            text = path.read_text(encoding="utf-8")
            assert not any(place in text for place in ("/home", "/root", "/tmp", "/work"))


def test_its_head_map_is_measured():
    head_map = read_head_map(FOLDER)
    assert head_map is not None
    assert (head_map.num_layers, head_map.num_heads) == (6, 6)
    assert head_map.scores is not None
    for roles, scores in zip(head_map.roles, head_map.scores, strict=True):
        assert roles == "".join("s" if value >= 0.8 else "d" for value in scores)
    assert head_map.provenance["num_chunks"] >= 4


def test_its_training_is_on_record():
    record = json.loads((FOLDER / "training.json").read_text(encoding="utf-8"))
    assert set(record) >= {"seed", "data", "stages", "hardware", "versions"}
    losses = record["stages"]["transformer"]["loss"]
    assert losses[-1] < 0.2 * losses[0]


@pytest.mark.parametrize("policy", ["full", "forcing-kv"])
def test_it_shows_what_it_is_told(policy):
    prompts = [
        "a large red circle moving sideways slowly at the left on a white background",
        "a big purple ball moving in circles quickly on a gray background",
    ]
    pipeline = VideoPipeline.from_pretrained("tiny")
    for video, prompt in zip(pipeline.generate(prompts, num_frames=80, policy=policy, seed=0), prompts, strict=True):
        result = score(video, parse(prompt))
        assert result.colour
        assert result.background
        assert result.visible
        assert result.moving
        assert not result.collapsed
