"""The VAE's training at tiny sizes: whole clips as diffusers computes them, what is learned from, resuming."""

import torch

from forcing_kv.tiny.training import vae as vae_training
from forcing_kv.tiny.training.trainer import Schedule, Trainer
from forcing_kv.tiny.training.vae import (
    add_vae_gradients,
    build_vae,
    clips_of,
    decode_whole,
    encode_moments,
    pixels_of,
    random_clips,
    reconstruction_psnr,
    vae_loss,
)
from forcing_kv.tiny.world import HEIGHT, WIDTH, Region, coverage


def test_whole_clip_vae_equals_diffusers():
    vae = build_vae().eval()
    pixels = pixels_of(random_clips(2, 13, torch.Generator().manual_seed(0), region=(32, 48)))
    with torch.no_grad():
        mean, logvar = encode_moments(vae, pixels)
        latents = vae.encode(pixels).latent_dist
        torch.testing.assert_close(mean, latents.mean, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(logvar, latents.logvar, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(decode_whole(vae, mean).clamp(-1, 1), vae.decode(mean).sample, atol=1e-4, rtol=1e-4)
    assert mean.shape == (2, 16, 4, 4, 6)


def test_a_single_frame_is_a_latent_frame():
    vae = build_vae()
    with torch.no_grad():
        mean, _ = encode_moments(vae, torch.zeros(1, 3, 1, 16, 16))
        assert mean.shape == (1, 16, 1, 2, 2)
        assert decode_whole(vae, mean).shape == (1, 3, 1, 16, 16)


def test_vae_learns_from_its_first_steps():
    vae = build_vae()
    clips = random_clips(2, 5, torch.Generator().manual_seed(0), region=(32, 48))
    optimiser = torch.optim.AdamW(vae.parameters(), lr=1e-3)
    losses = []
    for _ in range(8):
        loss = vae_loss(vae, clips, torch.Generator().manual_seed(1))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.9 * losses[0]


def test_resumed_vae_training_equals_uninterrupted(tmp_path, monkeypatch):
    monkeypatch.setattr(vae_training, "_REGION", (16, 32))

    def trained(folder, *parts):
        for num_steps in parts:
            schedule = Schedule(num_steps=4, learning_rate=1e-3)
            trainer = Trainer(build_vae(4), schedule, seed=4, checkpoint=tmp_path / folder / "vae.pt")
            trainer.resume()
            parameters = list(trainer.parameters.values())
            steps = trainer.run(
                lambda generator, step, trainer=trainer, parameters=parameters: add_vae_gradients(
                    trainer.model, parameters, generator
                )
            )
            for _ in range(num_steps):
                next(steps)
            trainer.save()
        return trainer

    whole, parts = trained("whole", 4), trained("parts", 1, 3)
    assert parts.losses == whole.losses
    for name, value in whole.parameters.items():
        assert torch.equal(parts.parameters[name], value), name
        assert torch.equal(parts.average[name], whole.average[name]), name


def test_pixels_and_clips_are_inverse_and_psnr_is_of_the_rounded_picture():
    clips = random_clips(2, 5, torch.Generator().manual_seed(3))
    assert clips.shape == (2, 5, HEIGHT, WIDTH, 3)
    pixels = pixels_of(clips)
    assert (pixels.min() >= -1, pixels.max() <= 1) == (True, True)
    assert torch.equal(clips_of(pixels), clips)
    assert torch.equal(clips_of(pixels * 3), clips_of((pixels * 3).clamp(-1, 1)))
    assert 0 < reconstruction_psnr(build_vae(), clips[:, :, :16, :32]) < 20


def test_random_clips_are_cut_around_an_object(monkeypatch):
    recorded = []

    monkeypatch.setattr(vae_training, "_SWITCH_SHARE", 0)

    def draw(clips, num_frames, *, first_frame, regions):
        recorded.extend(
            (clip, first_frame + num_frames // 2, region) for clip, region in zip(clips, regions, strict=True)
        )
        return torch.zeros(len(clips), num_frames, 1, 1, 3)

    monkeypatch.setattr(vae_training, "draw", draw)
    for seed in range(20):
        random_clips(10, 9, torch.Generator().manual_seed(seed), region=(64, 96))
    seen = 0
    for clip, frame, region in recorded:
        assert (region.height, region.width) == (64, 96)
        assert 0 <= region.top <= HEIGHT - 64
        assert 0 <= region.left <= WIDTH - 96
        inside, whole = (
            float(coverage(clip, 1, first_frame=frame, region=part)[0].sum()) for part in (region, Region())
        )
        seen += inside > 0.9 * whole > 0
    assert seen > 0.75 * len(recorded)  # some are out of the picture
    assert 0.1 < sum(clip.scene.needs_memory for clip, _, _ in recorded) / 200 < 0.4


def test_some_random_clips_switch_where_a_latent_frame_begins():
    num_switched = 0
    for seed in range(60):
        (clip,) = random_clips(1, 13, torch.Generator().manual_seed(seed))
        changes = (clip[1:].float() - clip[:-1].float()).abs().mean(dim=(1, 2, 3))
        if changes.max() > 8:  # another ground; a change of the object alone is not told from motion
            num_switched += 1
            assert int(changes.argmax()) + 1 in (5, 9)
    assert 5 < num_switched < 25
