"""From a working folder to a model folder that runs."""

import json
from dataclasses import replace
from functools import partial

import pytest
import torch

from forcing_kv import VideoPipeline
from forcing_kv.models import read_head_map
from forcing_kv.tiny.training import export, recipe
from forcing_kv.tiny.training.latents import KINDS
from forcing_kv.tiny.training.recipe import SHARDS, Recipe, Shard
from forcing_kv.tiny.training.trainer import Schedule
from forcing_kv.tiny.training.vae import random_clips

SHORT = Schedule(num_steps=1, learning_rate=1e-3)
RECIPE = Recipe(
    vae=SHORT,
    sharpen=SHORT,
    transformer=SHORT,
    compiled=False,
    decoder=SHORT,
    shards=(Shard(kind="first", num_clips=2, index=0),),
    num_measured_clips=8,
    num_calibration_prompts=1,
    batch_scale=0.05,
)


def test_all_stages_end_in_a_model_that_makes_videos(tmp_path, monkeypatch):
    cut = partial(random_clips, region=(16, 32))
    monkeypatch.setattr("forcing_kv.tiny.training.vae._REGION", (16, 32))
    monkeypatch.setattr("forcing_kv.tiny.training.recipe.random_clips", cut)
    monkeypatch.setattr("forcing_kv.tiny.training.transformer.MIX", {"first": 1.0})
    monkeypatch.setattr(export, "_CALIBRATION_CHUNKS", 4)
    list(recipe.train_vae(tmp_path, RECIPE, max_seconds=60))
    list(recipe.sharpen_vae(tmp_path, RECIPE, max_seconds=60))
    recipe.encode_training_set(tmp_path, RECIPE)
    list(recipe.train_transformer(tmp_path, RECIPE, max_seconds=60))
    list(recipe.train_decoder(tmp_path, RECIPE, max_seconds=60))
    folder = export.export_model(
        tmp_path, tmp_path / "model", recipe=RECIPE, hardware="an abacus", notes=["made by a test"]
    )

    pipeline = VideoPipeline.from_pretrained(folder, dtype="float32")
    assert pipeline.preset.default_resolution == (160, 96)
    assert pipeline.transformer.config.coordinates
    trained = recipe.load_averaged(tmp_path).transformer.state_dict()
    for name, value in pipeline.transformer.released_weights():
        assert torch.equal(value, trained[name].bfloat16().float()), name
    chunk = next(iter(pipeline.stream("a red circle moving right", policy="full")))
    assert chunk.frames.shape == (1, 9, 96, 160, 3)

    head_map = read_head_map(folder)
    assert (head_map.model, head_map.num_layers, head_map.num_heads) == ("tiny", 6, 6)
    record = json.loads((folder / "training.json").read_text())
    assert (record["hardware"], record["notes"], record["seed"]) == ("an abacus", ["made by a test"], 0)
    assert record["data"]["clips_by_kind"] == {kind: 2 if kind == "first" else 0 for kind in KINDS}
    assert {stage["steps_taken"] for stage in record["stages"].values()} == {1}


@pytest.mark.parametrize(
    ("shards", "num_frames"),
    [
        (SHARDS, 240),
        (tuple(shard for shard in SHARDS if shard.kind != "long"), 21),
        ((replace(SHARDS[0], num_chunks=30), SHARDS[-1]), 240),
        ((replace(SHARDS[-1], num_chunks=30),), 90),
    ],
)
def test_trained_frames_are_those_of_the_longest_stream(shards, num_frames):
    assert export.trained_frames(shards) == num_frames
