"""The real training functions at tiny sizes: they learn, and a resumed run equals an uninterrupted one."""

from dataclasses import replace
from functools import partial
from itertools import islice

import pytest
import torch

from forcing_kv.errors import CheckpointError
from forcing_kv.tiny.scenes import random_scenes
from forcing_kv.tiny.training import recipe as stages
from forcing_kv.tiny.training import transformer as transformer_training
from forcing_kv.tiny.training import vae as vae_training
from forcing_kv.tiny.training.latents import (
    FAR_CHUNKS,
    LONG_CHUNKS,
    MEMORY_CHUNKS,
    START_CHUNKS,
    SWITCHED_CHUNKS,
    ClipGroup,
    LatentClips,
)
from forcing_kv.tiny.training.recipe import SHARDS, Recipe, Shard
from forcing_kv.tiny.training.teacher_forcing import MIX, full_history
from forcing_kv.tiny.training.trainer import Schedule, Trainer
from forcing_kv.tiny.training.transformer import (
    TextAndTransformer,
    add_transformer_gradients,
    draw_sample,
    noise_levels,
    noised,
    weighted_error,
    with_own_history,
)
from forcing_kv.tiny.training.vae import (
    random_clips,
)
from forcing_kv.wan import TransformerConfig

SMALL = TransformerConfig(
    dim=24,
    ffn_dim=32,
    num_layers=2,
    num_heads=2,
    in_dim=3,
    out_dim=3,
    text_dim=64,
    text_len=24,
    freq_dim=16,
    coordinates=True,
)


def small_clips(*kinds):
    """Random latents of scenes that hardly move, in groups of every kind."""
    generator = torch.Generator().manual_seed(0)
    chunks = {
        "first": [0],
        "start": range(START_CHUNKS),
        "pair": [0],
        "switch": range(SWITCHED_CHUNKS),
        "wrap": range(MEMORY_CHUNKS),
        "far": [0, *range(9, 9 + FAR_CHUNKS)],
        "long": range(LONG_CHUNKS),
        "memory": range(MEMORY_CHUNKS),
    }
    groups = []
    for kind in kinds:
        frames = tuple(3 * chunk + frame for chunk in chunks[kind] for frame in range(3))
        still = torch.randn(4, 1, 3, 12, 20, generator=generator)
        moving = 0.3 * torch.randn(4, len(frames), 3, 12, 20, generator=generator)
        groups.append(
            ClipGroup(
                kind=kind,
                frames=frames,
                switch_chunk=2 if kind == "switch" else 0,
                latents=(still + moving).bfloat16(),
                near_object=still[:, :, 0].expand(-1, len(frames), -1, -1) > 1,
                returning=torch.rand(4, len(chunks[kind]), generator=generator) < 0.3,
                overdue=torch.zeros(4, len(chunks[kind]), dtype=torch.bool),
                scenes=tuple(islice(random_scenes(0), 4)),
            )
        )
    return LatentClips(groups)


@pytest.fixture
def first_chunks_only(monkeypatch):
    monkeypatch.setattr(transformer_training, "MIX", {"first": 1.0})


@pytest.fixture
def small_pictures(monkeypatch):
    """Training on small parts of the picture."""
    cut = partial(random_clips, region=(16, 32))
    monkeypatch.setattr(vae_training, "_REGION", (16, 32))
    monkeypatch.setattr(stages, "random_clips", cut)


def transformer_trainer(path, num_steps):
    schedule = Schedule(num_steps=num_steps, learning_rate=5e-3, warmup_steps=2, muon=True)
    return Trainer(TextAndTransformer(SMALL), schedule, seed=0, checkpoint=path / "transformer.pt")


def predicted(model, sample):
    return model(sample.latents, sample.timesteps, sample.ids, sample.mask, sample.layout)


def run(trainer, clips, num_steps, *, batch_scale=0.1):
    steps = trainer.run(
        lambda generator, step: add_transformer_gradients(trainer.model, clips, generator, batch_scale=batch_scale)
    )
    for _ in range(num_steps):
        next(steps)
    trainer.save()


def test_transformer_learns_from_its_first_steps(tmp_path, first_chunks_only):
    trainer = transformer_trainer(tmp_path, 40)
    run(trainer, small_clips("first"), 40, batch_scale=0.25)
    assert sum(trainer.losses[-8:]) < 0.9 * sum(trainer.losses[:8])


def test_resumed_transformer_training_equals_uninterrupted(tmp_path, monkeypatch):
    monkeypatch.setattr(transformer_training, "MIX", dict.fromkeys(("first", "start", "switch", "far", "memory"), 1.0))
    clips = small_clips("first", "start", "switch", "far", "memory")
    whole = transformer_trainer(tmp_path / "whole", 6)
    run(whole, clips, 6)
    first = transformer_trainer(tmp_path / "parts", 6)
    run(first, clips, 3)
    second = transformer_trainer(tmp_path / "parts", 6)
    assert second.resume()
    run(second, clips, 3)
    assert second.losses == whole.losses
    assert len(set(whole.losses)) == 6
    for name, value in whole.parameters.items():
        assert torch.equal(second.parameters[name], value), name
        assert torch.equal(second.average[name], whole.average[name]), name


def test_gradients_of_a_step_are_those_of_its_sample(first_chunks_only):
    """As autograd has them in fp32, up to the rounding of weights and products to bf16."""
    model, clips = TextAndTransformer(SMALL), small_clips("first")
    torch.nn.init.normal_(model.transformer.head.head.weight, std=0.02, generator=torch.Generator().manual_seed(1))
    add_transformer_gradients(model, clips, torch.Generator().manual_seed(7), batch_scale=0.1)
    ours = {name: value.grad for name, value in model.named_parameters()}
    assert all(grad is not None and grad.dtype == torch.float32 for grad in ours.values())

    model.zero_grad(set_to_none=True)
    generator = torch.Generator().manual_seed(7)
    torch.multinomial(torch.ones(1), 1, generator=generator)  # the choice of the kind
    sample = draw_sample(model, clips, "first", generator, batch_scale=0.1)
    weighted_error(predicted(model, sample), sample).backward()
    theirs = {name: value.grad for name, value in model.named_parameters()}
    for name in ("transformer.head.head.weight", "transformer.blocks.1.ffn.0.weight", "transformer.head.modulation"):
        error = (ours[name] - theirs[name]).norm() / theirs[name].norm()
        assert 0 < error < 0.05, name


@pytest.mark.parametrize("kind", MIX)
def test_every_kind_of_sample_fits_together(kind):
    model, clips = TextAndTransformer(SMALL), small_clips(kind)
    sample = draw_sample(model, clips, kind, torch.Generator().manual_seed(0), batch_scale=0.01)
    layout = sample.layout
    assert sample.latents.shape == (1, len(layout.frames), 3, 12, 20)
    assert sample.timesteps.shape == (1, len(layout.frames))
    assert sample.target.shape == (1, len(layout.noisy), 3, 12, 20)
    assert sample.weights.shape == (1, len(layout.noisy), 1, 12, 20)
    assert sample.ids.shape == sample.mask.shape == (1, 24)
    assert sample.weights.unique().tolist() == [1, 5]
    with torch.no_grad():
        loss = weighted_error(predicted(model, sample), sample)
    # The head is zero at first, so nothing is predicted.
    torch.testing.assert_close(loss, (sample.target.square() * sample.weights).mean())


@pytest.mark.parametrize("kind", ["start", "far", "memory"])
def test_own_history_is_what_the_model_makes_of_the_clip(kind):
    """A model that knows the way back to the clip leaves the clip; one that predicts nothing leaves the noise."""
    model, clips = TextAndTransformer(SMALL), small_clips(kind)
    generator = torch.Generator().manual_seed(3)
    sample = draw_sample(model, clips, kind, generator, batch_scale=0.01)
    first = len(sample.layout.clean)
    made_again = [place for place, frame in enumerate(sample.layout.clean) if frame in sample.layout.noisy]
    assert made_again
    seen = []

    def right_velocity(levelled):
        seen.append(levelled)
        level = float(levelled.timesteps[0, first]) / 1000
        assert torch.equal(levelled.timesteps[:, :first], sample.timesteps[:, :first])
        return (levelled.latents - sample.clean) / level

    own = with_own_history(sample, right_velocity, generator)
    assert float(seen[0].timesteps[0, -1]) in (625.0, pytest.approx(833.333, abs=1e-3))
    torch.testing.assert_close(own.latents[:, made_again], sample.clean[:, made_again], atol=1e-4, rtol=1e-4)
    others = [place for place in range(own.latents.shape[1]) if place not in made_again]
    assert torch.equal(own.latents[:, others], sample.latents[:, others])
    assert torch.equal(own.target, sample.target)

    noisy = with_own_history(sample, lambda levelled: torch.zeros_like(levelled.latents), generator)
    assert (noisy.latents[:, made_again] - sample.clean[:, made_again]).std() > 0.3


# Noise


def test_noise_goes_where_the_layout_says():
    layout = full_history(2, [0, 2, 0], frame_tokens=24)
    latents = torch.randn(3, 15, 12, 8, 12, generator=torch.Generator().manual_seed(0))
    noisy, timesteps, velocity = noised(latents, layout, torch.Generator().manual_seed(1))
    assert (timesteps[:, :6] == 0).all()
    assert (timesteps[:, 6:] > 0).all()
    assert torch.equal(timesteps[:, 6], timesteps[:, 8])  # one level per chunk
    assert not torch.equal(timesteps[:, 6], timesteps[:, 12])  # and one for each of its copies
    sigma = timesteps[:, 6:, None, None, None] / 1000
    torch.testing.assert_close(noisy[:, 6:] - sigma * velocity[:, 6:], latents[:, 6:])
    history_noise = (noisy[:, :6] - latents[:, :6]).flatten(2).norm(dim=2) / velocity[:, :6].flatten(2).norm(dim=2)
    assert history_noise.max() <= 0.15
    assert 0.2 < (history_noise < 1e-6).float().mean() < 0.65  # two in five frames have none
    torch.testing.assert_close(noisy[:, 6:] + (1 - sigma) * velocity[:, 6:], velocity[:, 6:] + latents[:, 6:])


def test_three_in_five_noise_levels_are_the_samplers_and_two_of_those_are_pure_noise():
    levels = noise_levels((4000,), torch.Generator().manual_seed(0))
    visited = torch.isclose(levels[:, None], torch.tensor([1.0, 0.9375, 5 / 6, 0.625]), atol=1e-4).any(dim=1)
    assert visited.float().mean() == pytest.approx(0.6, abs=0.03)
    assert (levels == 1).float().mean() == pytest.approx(0.24, abs=0.03)
    assert levels.min() > 0
    assert levels.max() <= 1
    free = levels[~visited]
    assert free.median() == pytest.approx(0.75, abs=0.03)  # 3 u / (1 + 2 u) at a half


# The recipe


def short_recipe(seed=0):
    short = Schedule(num_steps=2, learning_rate=1e-3)
    return Recipe(
        seed=seed,
        vae=short,
        sharpen=short,
        compiled=False,
        transformer=short,
        decoder=short,
        shards=(Shard(kind="first", num_clips=2, index=0),),
        num_measured_clips=8,
        num_calibration_prompts=2,
        batch_scale=0.05,
    )


def test_the_shards_of_the_recipe_are_all_kinds_under_names_of_their_own():
    assert {shard.kind for shard in SHARDS} == set(MIX)
    assert len({shard.name for shard in SHARDS}) == len(SHARDS)
    assert SHARDS[0].name == "first_000.pt"


def test_a_recipe_of_another_length_seed_and_device():
    recipe = stages.recipe_with(seed=3, num_steps=7, device="cuda")
    assert (recipe.seed, recipe.device) == (3, "cuda")
    schedules = (recipe.vae, recipe.sharpen, recipe.transformer, recipe.decoder)
    assert [schedule.last_step for schedule in schedules] == [7, 7, 7, 7]
    assert recipe.transformer.muon
    assert stages.recipe_with() == Recipe()


def test_the_seed_decides_every_weight(tmp_path, small_pictures, first_chunks_only):
    def trained(name, seed):
        folder, recipe = tmp_path / name, short_recipe(seed)
        list(stages.train_vae(folder, recipe, max_seconds=60))
        list(stages.sharpen_vae(folder, recipe, max_seconds=60))
        stages.encode_training_set(folder, recipe)
        list(stages.train_transformer(folder, recipe, max_seconds=60))
        list(stages.train_decoder(folder, recipe, max_seconds=60))
        return {**stages.load_vae(folder).state_dict(), **dict(stages.load_averaged(folder).named_parameters())}

    first, again, other = trained("first", 0), trained("again", 0), trained("other", 1)
    assert all(torch.equal(value, again[name]) for name, value in first.items())
    assert sum(torch.equal(value, other[name]) for name, value in first.items()) < len(first) / 2


def test_all_stages_run_from_an_empty_folder_and_complain_out_of_order(tmp_path, small_pictures, first_chunks_only):
    recipe = short_recipe()
    with pytest.raises(CheckpointError, match="run the stage 'vae' first"):
        stages.encode_training_set(tmp_path, recipe)
    with pytest.raises(CheckpointError, match="run the stage 'vae' first"):
        next(stages.sharpen_vae(tmp_path, recipe, max_seconds=60))
    assert [state.step for state in stages.train_vae(tmp_path, recipe, max_seconds=60)] == [1, 2]
    roughly = stages.load_vae(tmp_path).state_dict()
    assert [state.step for state in stages.sharpen_vae(tmp_path, recipe, max_seconds=60)] == [1, 2]
    assert not torch.equal(roughly["quant_conv.weight"], stages.load_vae(tmp_path).state_dict()["quant_conv.weight"])
    with pytest.raises(
        CheckpointError, match=r"lacks 1 of 1 files, the first is first_000.pt; run the stage 'latents'"
    ):
        stages.load_training_set(tmp_path, recipe)
    done = []
    stages.encode_training_set(tmp_path, recipe, report=lambda *counts: done.append(counts))
    assert done == [(1, 1)]
    latents = stages.load_training_set(tmp_path, recipe).groups[0].latents.float()
    assert latents.shape == (2, 3, 16, 12, 20)
    assert latents.std() == pytest.approx(1.0, abs=0.6)
    with pytest.raises(CheckpointError, match="run the stage 'transformer' first"):
        stages.load_averaged(tmp_path)
    assert len(list(stages.train_transformer(tmp_path, recipe, max_seconds=60))) == 2
    model = stages.load_averaged(tmp_path)
    assert sum(value.numel() for value in model.parameters()) < 5_000_000
    before = stages.load_vae(tmp_path).state_dict()
    assert len(list(stages.train_decoder(tmp_path, recipe, max_seconds=60))) == 2
    after = stages.load_vae(tmp_path).state_dict()
    changed = {name.split(".")[0] for name, value in before.items() if not torch.equal(value, after[name])}
    assert changed == {"decoder", "post_quant_conv"}
    assert not list(stages.train_vae(tmp_path, replace(recipe), max_seconds=60))  # done already


def test_shards_that_are_there_are_kept(tmp_path, small_pictures, monkeypatch):
    recipe = short_recipe()
    list(stages.train_vae(tmp_path, recipe, max_seconds=60))
    stages.encode_training_set(tmp_path, recipe)
    path = tmp_path / "latents" / "first_000.pt"
    before = path.read_bytes()
    seeds = []

    def encode(vae, kind, num_clips, *, seed, num_chunks):
        seeds.append((kind, num_clips, seed, num_chunks))
        return stages.load_group(path)

    monkeypatch.setattr(stages, "encode_group", encode)
    more = (*recipe.shards, Shard(kind="start", num_clips=3, index=2), Shard(kind="first", num_clips=1, index=1))
    stages.encode_training_set(tmp_path, replace(recipe, seed=5, shards=more))
    assert path.read_bytes() == before
    assert seeds == [("start", 3, 5_001_002, None), ("first", 1, 5_000_001, None)]
