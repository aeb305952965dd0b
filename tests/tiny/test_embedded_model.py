"""The model that lies in the package: what it is, and that it is worth what its `scores.json` says.

The shares on file are over many videos; a few are made anew here, of the same prompts and noise, and scored over the
same seconds. As many of them may be wrong as would be, once in two thousand times, if the true share were the lower end
of the interval on file: what is wrong more often than that is not chance.
"""

import json

import pytest

from forcing_kv.models import read_head_map
from forcing_kv.models.weights import weights_sha256
from forcing_kv.models.zoo import EMBEDDED_MODELS
from forcing_kv.pipeline import VideoPipeline
from forcing_kv.tiny.scoring.evaluate import evaluate
from forcing_kv.tiny.scoring.parts import DRAWN, FREE, FREE_SOON, Evaluation
from forcing_kv.tiny.scoring.shares import chance_of_at_most

FOLDER = EMBEDDED_MODELS["tiny"]
CHANCE = 0.0005


@pytest.fixture(scope="module")
def record():
    return json.loads((FOLDER / "scores.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def pipeline(record):
    return VideoPipeline.from_pretrained("tiny", device="cpu", dtype=record["dtype"])


def test_it_is_small_and_tells_nothing_of_the_machine_it_was_trained_on():
    files = [path for path in FOLDER.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 12_000_000
    for path in files:
        if path.suffix == ".json":
            text = path.read_text(encoding="utf-8")
            assert not any(place in text for place in ("/home", "/root", "/tmp", "/work"))


def test_its_head_map_is_measured(pipeline):
    head_map = read_head_map(FOLDER)
    assert head_map is not None
    config = pipeline.transformer.config
    assert (head_map.num_layers, head_map.num_heads) == (config.num_layers, config.num_heads)
    assert head_map.scores is not None
    for roles, scores in zip(head_map.roles, head_map.scores, strict=True):
        assert roles == "".join("s" if value >= 0.8 else "d" for value in scores)
    assert head_map.provenance["num_chunks"] >= 4


def test_its_training_is_on_record():
    record = json.loads((FOLDER / "training.json").read_text(encoding="utf-8"))
    assert set(record) >= {"seed", "data", "stages", "hardware", "versions"}
    losses = record["stages"]["transformer"]["loss"]
    assert losses[-1] < 0.2 * losses[0]


def test_its_scores_are_those_of_these_weights(record, pipeline):
    assert (record["format"], record["version"]) == ("forcing-kv-tiny-scores", 1)
    assert record["weights_sha256"] == weights_sha256(pipeline.transformer)
    assert record["evaluation"]["num_prompts"] >= 128


def test_it_is_worth_what_its_scores_say(record, pipeline):
    """The first seconds of eight prompts, under every policy on file."""
    seconds = record["evaluation"]["short_seconds"]
    few = Evaluation(
        policies=tuple(record["evaluation"]["policies"]),
        num_prompts=8,
        seconds=seconds,
        long_seconds=seconds,
        num_memory_prompts=0,
        num_switches=0,
        batch_size=8,
        seed=record["evaluation"]["seed"],
    )
    sources = evaluate(pipeline, few)["parts"][FREE]["sources"]
    assert all(value["share"] == 1 for value in sources[DRAWN]["shares"].values())
    unlikely = {}
    for policy in few.policies:
        for name, value in sources[policy]["shares"].items():
            lowest = record["parts"][FREE_SOON]["sources"][policy]["shares"][name]["interval_95"][0]
            num_right = round(value["share"] * value["num_videos"])
            if chance_of_at_most(num_right, value["num_videos"], lowest) < CHANCE:
                unlikely[policy, name] = (num_right, value["num_videos"], lowest)
    assert not unlikely
