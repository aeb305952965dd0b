"""The real training functions at tiny sizes: they learn, and a resumed run equals an uninterrupted one."""

from dataclasses import replace

import pytest
import torch

from forcing_kv.errors import CheckpointError
from forcing_kv.tiny import recipe as stages
from forcing_kv.tiny.latents import ClipGroup, LatentClips, load_group, save_group
from forcing_kv.tiny.recipe import Recipe, Shard
from forcing_kv.tiny.teacher_forcing import full_history
from forcing_kv.tiny.trainer import Schedule, Trainer
from forcing_kv.tiny.transformer import TextAndTransformer, add_transformer_gradients, noise_levels, noised
from forcing_kv.tiny.vae import (
    build_vae,
    clips_of,
    decode_whole,
    encode_moments,
    pixels_of,
    random_clips,
    reconstruction_psnr,
    vae_loss,
)
from forcing_kv.tiny.world import all_scenes
from forcing_kv.wan import TransformerConfig

SMALL = TransformerConfig(
    dim=48, ffn_dim=64, num_layers=2, num_heads=2, in_dim=12, out_dim=12, text_dim=64, text_len=32, freq_dim=16
)


def small_clips():
    generator = torch.Generator().manual_seed(0)
    still = torch.randn(6, 1, 12, 8, 12, generator=generator)
    moving = 0.3 * torch.randn(6, 24, 12, 8, 12, generator=generator)
    return LatentClips([ClipGroup(latents=(still + moving).bfloat16(), scenes=tuple(all_scenes()[::700][:6]))])


def transformer_trainer(path, num_steps):
    schedule = Schedule(num_steps=num_steps, learning_rate=3e-3, warmup_steps=2, muon=True)
    return Trainer(TextAndTransformer(SMALL), schedule, seed=0, checkpoint=path / "transformer.pt")


def run(trainer, clips, num_steps):
    steps = trainer.run(
        lambda generator, step: add_transformer_gradients(trainer.model, clips, generator, step=step, batch_scale=0.1)
    )
    for _ in range(num_steps):
        next(steps)
    trainer.save()


def test_transformer_learns_from_its_first_steps(tmp_path):
    trainer = transformer_trainer(tmp_path, 24)
    run(trainer, small_clips(), 24)
    assert sum(trainer.losses[-6:]) < 0.93 * sum(trainer.losses[:6])


def test_resumed_transformer_training_equals_uninterrupted(tmp_path):
    clips = small_clips()
    whole = transformer_trainer(tmp_path / "whole", 6)
    run(whole, clips, 6)
    first = transformer_trainer(tmp_path / "parts", 6)
    run(first, clips, 3)
    second = transformer_trainer(tmp_path / "parts", 6)
    assert second.resume()
    run(second, clips, 3)
    assert second.losses == whole.losses
    assert all(torch.equal(second.average[name], value) for name, value in whole.average.items())


def test_whole_clip_vae_equals_diffusers(tmp_path):
    vae = build_vae().eval()
    pixels = pixels_of(random_clips(1, 13, torch.Generator().manual_seed(0)))
    with torch.no_grad():
        mean, _ = encode_moments(vae, pixels)
        torch.testing.assert_close(mean, vae.encode(pixels).latent_dist.mean, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(decode_whole(vae, mean).clamp(-1, 1), vae.decode(mean).sample, atol=1e-4, rtol=1e-4)


def test_vae_learns_from_its_first_steps():
    vae = build_vae()
    optimiser = torch.optim.AdamW(vae.parameters(), lr=1e-3)
    losses = []
    for _ in range(6):
        loss = vae_loss(vae, torch.Generator().manual_seed(1))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.9 * losses[0]


def test_pixels_and_clips_are_inverse_and_psnr_is_of_the_rounded_picture():
    clips = random_clips(2, 5, torch.Generator().manual_seed(3))
    assert torch.equal(clips_of(pixels_of(clips)), clips)
    assert 0 < reconstruction_psnr(build_vae(), clips) < 20


def test_noise_goes_where_the_layout_says():
    layout = full_history(2, [0, 2], frame_tokens=24)
    latents = torch.randn(3, 12, 12, 8, 12, generator=torch.Generator().manual_seed(0))
    noisy, timesteps, velocity = noised(latents, layout, torch.Generator().manual_seed(1))
    assert (timesteps[:, :6] == 0).all()
    assert (timesteps[:, 6:] > 0).all()
    assert torch.equal(timesteps[:, 6], timesteps[:, 8])  # one level per chunk
    sigma = timesteps[:, 6:, None, None, None] / 1000
    torch.testing.assert_close(noisy[:, 6:] - sigma * velocity[:, 6:], latents[:, 6:])
    assert (noisy[:, :6] - latents[:, :6]).abs().mean() < 0.2


def test_three_in_five_noise_levels_are_the_samplers():
    levels = noise_levels((4000,), torch.Generator().manual_seed(0))
    visited = torch.isclose(levels[:, None], torch.tensor([1.0, 0.9375, 5 / 6, 0.625]), atol=1e-4).any(dim=1)
    assert visited.float().mean() == pytest.approx(0.6, abs=0.03)
    assert levels.min() > 0
    assert levels.max() <= 1


def test_latent_groups_survive_the_disk_and_joined_groups_are_sampled(tmp_path):
    group = small_clips().groups[0]
    save_group(group, tmp_path / "a.pt")
    loaded = load_group(tmp_path / "a.pt")
    assert torch.equal(loaded.latents, group.latents)
    assert loaded.scenes == group.scenes
    clips = LatentClips([loaded, group])
    assert len(clips.groups[0].scenes) == 12
    latents, weights, captions = clips.sample(5, [0, 7, 23], torch.Generator().manual_seed(0))
    assert latents.shape == weights.shape == (5, 3, 12, 8, 12)
    assert len(captions) == 5
    assert weights.min() >= 1
    assert weights.max() <= 5


def short_recipe(seed=0):
    short = Schedule(num_steps=2, learning_rate=1e-3)
    return Recipe(
        seed=seed,
        vae=short,
        transformer=short,
        decoder=short,
        shards=(Shard(num_clips=2, num_frames=24, index=0),),
        num_measured_clips=8,
        num_calibration_prompts=2,
        batch_scale=0.05,
    )


def test_the_seed_decides_every_weight(tmp_path):
    def trained(name, seed):
        folder, recipe = tmp_path / name, short_recipe(seed)
        list(stages.train_vae(folder, recipe, max_seconds=60))
        stages.encode_training_set(folder, recipe)
        list(stages.train_transformer(folder, recipe, max_seconds=60))
        list(stages.train_decoder(folder, recipe, max_seconds=60))
        return {**stages.load_vae(folder).state_dict(), **dict(stages.load_averaged(folder).named_parameters())}

    first, again, other = trained("first", 0), trained("again", 0), trained("other", 1)
    assert all(torch.equal(value, again[name]) for name, value in first.items())
    assert sum(torch.equal(value, other[name]) for name, value in first.items()) < len(first) / 2


def test_all_stages_run_from_an_empty_folder_and_complain_out_of_order(tmp_path):
    recipe = short_recipe()
    with pytest.raises(CheckpointError, match="run the stage 'vae' first"):
        stages.encode_training_set(tmp_path, recipe)
    assert [state.step for state in stages.train_vae(tmp_path, recipe, max_seconds=60)] == [1, 2]
    with pytest.raises(
        CheckpointError, match=r"lacks 1 of 1 files, the first is clips_24_00.pt; run the stage 'latents'"
    ):
        stages.load_training_set(tmp_path, recipe)
    stages.encode_training_set(tmp_path, recipe)
    latents = stages.load_training_set(tmp_path, recipe).groups[0].latents.float()
    assert latents.std() == pytest.approx(1.0, abs=0.6)
    with pytest.raises(CheckpointError, match="run the stage 'transformer' first"):
        stages.load_averaged(tmp_path)
    assert len(list(stages.train_transformer(tmp_path, recipe, max_seconds=60))) == 2
    model = stages.load_averaged(tmp_path)
    assert sum(value.numel() for value in model.parameters()) < 4_100_000
    before = stages.load_vae(tmp_path).state_dict()
    assert len(list(stages.train_decoder(tmp_path, recipe, max_seconds=60))) == 2
    after = stages.load_vae(tmp_path).state_dict()
    changed = {name.split(".")[0] for name, value in before.items() if not torch.equal(value, after[name])}
    assert changed == {"decoder", "post_quant_conv"}
    assert not list(stages.train_vae(tmp_path, replace(recipe), max_seconds=60))  # done already
