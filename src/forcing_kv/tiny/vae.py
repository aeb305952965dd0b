"""The small VAE of the embedded model: a diffusers `AutoencoderKLWan` with stride (4, 8, 8), and its training.

Pixels are folded 2x2 into channels first (`patch_size`), so the convolutions run at half resolution, which makes it
cheap on a CPU. Frame 0 is a latent frame of its own; every later latent frame holds four pixel frames. For training,
all later frames go through each network in one call, which gives the same as diffusers' loop over latent frames.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import patchify, unpatchify
from torch import Tensor, nn
from torch.nn import functional as F

from forcing_kv.tiny.trainer import Schedule, Trainer
from forcing_kv.tiny.world import HEIGHT, WIDTH, Scene, all_scenes, draw

LATENT_CHANNELS = 12
LATENT_ROWS = HEIGHT // 8
LATENT_COLS = WIDTH // 8

VAE_SCHEDULE = Schedule(num_steps=3200, stop_step=2856, learning_rate=7e-4, decay_share=0.6)

_KL_WEIGHT = 1e-4
_LOGVAR_START = -6.0
_PATCH = 2


def build_vae(seed: int = 0) -> AutoencoderKLWan:
    """An untrained VAE: 1.5 M parameters, fp32, on the CPU."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        vae = AutoencoderKLWan(
            base_dim=24,
            decoder_base_dim=24,
            z_dim=LATENT_CHANNELS,
            dim_mult=[1, 2, 2],
            num_res_blocks=1,
            temperal_downsample=[True, True],
            is_residual=True,
            patch_size=_PATCH,
            in_channels=3 * _PATCH**2,
            out_channels=3 * _PATCH**2,
            latents_mean=[0.0] * LATENT_CHANNELS,
            latents_std=[1.0] * LATENT_CHANNELS,
            scale_factor_spatial=8,
        )
    with torch.no_grad():
        bias = vae.quant_conv.bias
        vae.quant_conv.weight[LATENT_CHANNELS:] *= 0.1
        bias[LATENT_CHANNELS:] = _LOGVAR_START
    return channels_last(vae)


def channels_last(module: nn.Module) -> nn.Module:
    """Lay convolution weights out channels-last, in place: several times quicker in bf16 on a CPU."""
    for parameter in module.parameters():
        if parameter.dim() == 5:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last_3d)
        elif parameter.dim() == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    return module


def pixels_of(clips: Tensor) -> Tensor:
    """uint8 [B, frames, H, W, 3] -> float32 [B, 3, frames, H, W] in -1..1."""
    return (clips.float() / 127.5 - 1).permute(0, 4, 1, 2, 3)


def clips_of(pixels: Tensor) -> Tensor:
    """Float [B, 3, frames, H, W] in -1..1 -> uint8 [B, frames, H, W, 3]."""
    return ((pixels.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 4, 1)


def encode_moments(vae: AutoencoderKLWan, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Encode whole clips.

    Args:
        vae: the VAE.
        pixels: [B, 3, 4F-3, H, W] in -1..1.

    Returns:
        Mean and log variance, each [B, channels, F, H/8, W/8], not standardised.
    """
    folded = patchify(pixels, patch_size=_PATCH)
    caches: list[Tensor | None] = [None] * 64
    parts = [vae.encoder(folded[:, :, :1], feat_cache=caches, feat_idx=[0])]
    if folded.shape[2] > 1:
        parts.append(vae.encoder(folded[:, :, 1:], feat_cache=caches, feat_idx=[0]))
    mean, logvar = vae.quant_conv(torch.cat(parts, dim=2)).chunk(2, dim=1)
    return mean, logvar.clamp(-30, 20)


def decode_whole(vae: AutoencoderKLWan, latents: Tensor) -> Tensor:
    """Decode whole clips: [B, channels, F, H/8, W/8], not standardised -> [B, 3, 4F-3, H, W], not clamped."""
    hidden = vae.post_quant_conv(latents)
    caches: list[Tensor | None] = [None] * 64
    parts = [vae.decoder(hidden[:, :, :1], feat_cache=caches, feat_idx=[0], first_chunk=True)]
    if hidden.shape[2] > 1:
        parts.append(vae.decoder(hidden[:, :, 1:], feat_cache=caches, feat_idx=[0]))
    pixels: Tensor = unpatchify(torch.cat(parts, dim=2), patch_size=_PATCH)
    return pixels


def vae_trainer(folder: Path, *, seed: int, schedule: Schedule = VAE_SCHEDULE) -> Trainer:
    """A trainer of a fresh VAE that checkpoints to `folder`/vae.pt."""
    return Trainer(build_vae(seed), schedule, seed=seed, checkpoint=folder / "vae.pt")


def vae_loss(vae: AutoencoderKLWan, generator: torch.Generator, *, device: str = "cpu") -> Tensor:
    """The loss of one random batch: pixels, their change over time, and a little pressure on the latents' scale.

    Most batches are four short clips; some are two longer ones, because a stream never ends.
    """
    long = float(torch.rand((), generator=generator)) < 0.3
    clips = random_clips(2 if long else 4, 21 if long else 9, generator)
    pixels = pixels_of(clips).to(device).contiguous(memory_format=torch.channels_last_3d)
    with torch.autocast(torch.device(device).type, dtype=torch.bfloat16):
        mean, logvar = encode_moments(vae, pixels)
        mean, logvar = mean.float(), logvar.float()
        noise = torch.randn(mean.shape, generator=generator).to(mean.device)
        decoded = decode_whole(vae, mean + (0.5 * logvar).exp() * noise).float()
    error = decoded - pixels
    change_error = error[:, :, 1:] - error[:, :, :-1]
    divergence = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
    return error.abs().mean() + 2 * error.square().mean() + 0.5 * change_error.abs().mean() + _KL_WEIGHT * divergence


def random_clips(num_clips: int, num_frames: int, generator: torch.Generator) -> Tensor:
    """Draw random scenes from random moments on: uint8 [clips, frames, H, W, 3]."""
    scenes = all_scenes()
    picks = torch.randint(len(scenes), (num_clips,), generator=generator).tolist()
    first_frame = int(torch.randint(320, (), generator=generator))
    factors = (0.9 + 0.2 * torch.rand(num_clips, generator=generator)).tolist()
    chosen: Sequence[Scene] = [scenes[pick] for pick in picks]
    return draw(chosen, num_frames, speed_factors=factors, first_frame=first_frame)


@torch.no_grad()
def reconstruction_psnr(vae: AutoencoderKLWan, clips: Tensor) -> float:
    """Mean peak signal-to-noise ratio over clips in dB, computed in fp32 from the rounded pictures.

    Args:
        vae: the VAE.
        clips: uint8 [B, 4F-3, H, W, 3].
    """
    decoded = clips_of(decode_whole(vae, encode_moments(vae, pixels_of(clips))[0]))
    error = F.mse_loss(decoded.float(), clips.float(), reduction="none").flatten(1).mean(1)
    return float((10 * torch.log10(255.0**2 / error.clamp_min(1e-6))).mean())
