"""Second training of the VAE's decoder, for sharper shapes: the encoder, and so every latent, stays as it is.

It may run after the transformer was trained, or before. The object and its rim weigh more than the flat background, and
the latents get hardly any noise.
"""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from diffusers import AutoencoderKLWan
from torch import Tensor, nn
from torch.nn import functional as F

from forcing_kv.tiny.trainer import Schedule, Trainer
from forcing_kv.tiny.vae import decode_whole, encode_moments, pixels_of, random_clips

DECODER_SCHEDULE = Schedule(num_steps=1200, learning_rate=6e-4, warmup_steps=20, decay_share=0.8)

_PARTS = 2
_LATENT_NOISE = 0.02
_OBJECT_WEIGHT = 4.0


class DecoderOnly(nn.Module):
    """The part of a VAE that is trained here; shares the VAE's modules."""

    def __init__(self, vae: AutoencoderKLWan) -> None:
        super().__init__()
        self.post_quant_conv = vae.post_quant_conv
        self.decoder = vae.decoder


def decoder_trainer(
    vae: AutoencoderKLWan, folder: Path, *, seed: int, schedule: Schedule = DECODER_SCHEDULE
) -> Trainer:
    """A trainer of a trained VAE's decoder that checkpoints to `folder`/vae_decoder.pt."""
    return Trainer(DecoderOnly(vae), schedule, seed=seed, checkpoint=folder / "vae_decoder.pt")


def add_decoder_gradients(
    vae: AutoencoderKLWan, parameters: list[nn.Parameter], generator: torch.Generator, *, device: str = "cpu"
) -> float:
    """Gradients of one step: the mean over two batches, each computed by a thread of its own.

    Returns:
        The loss.
    """
    batches = [random_clips(*((1, 33) if part else (4, 9)), generator) for part in range(_PARTS)]
    seeds = torch.randint(2**31, (_PARTS,), generator=generator).tolist()

    def gradients_of(clips: Tensor, seed: int) -> tuple[float, tuple[Tensor, ...]]:
        loss = decoder_loss(vae, clips, torch.Generator().manual_seed(seed), device=device)
        return float(loss.detach()), torch.autograd.grad(loss, parameters)

    with ThreadPoolExecutor(_PARTS) as threads:
        results = list(threads.map(gradients_of, batches, seeds))
    for index, value in enumerate(parameters):
        value.grad = torch.stack([gradients[index] for _, gradients in results]).mean(0)
    return sum(loss for loss, _ in results) / _PARTS


def decoder_loss(vae: AutoencoderKLWan, clips: Tensor, generator: torch.Generator, *, device: str = "cpu") -> Tensor:
    """Weighted error of decoded clips, uint8 [B, 4F-3, H, W, 3], and of their change over time."""
    pixels = pixels_of(clips).to(device).contiguous(memory_format=torch.channels_last_3d)
    # Without the cache of casted weights, which two threads would share.
    with torch.autocast(torch.device(device).type, dtype=torch.bfloat16, cache_enabled=False):
        with torch.no_grad():
            mean, _ = encode_moments(vae, pixels)
        noise = torch.randn(mean.shape, generator=generator).to(device)
        decoded = decode_whole(vae, mean.float() + _LATENT_NOISE * noise).float()
    error = decoded - pixels
    weights = 1 + _OBJECT_WEIGHT * near_object(pixels)
    change_error = error[:, :, 1:] - error[:, :, :-1]
    return (weights * (error.abs() + 2 * error.square())).mean() + 0.5 * (weights[:, :, 1:] * change_error.abs()).mean()


def near_object(pixels: Tensor) -> Tensor:
    """1 within two pixels of the object, else 0: [B, 3, frames, H, W] -> [B, 1, frames, H, W]."""
    corner = pixels[:, :, :, :1, :1]
    object_mask = ((pixels - corner).abs().amax(dim=1) > 0.1).float()
    return F.max_pool2d(object_mask, 5, stride=1, padding=2)[:, None]
