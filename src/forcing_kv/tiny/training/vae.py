"""The small VAE of the embedded model: a diffusers `AutoencoderKLWan` with stride (4, 8, 8), and its training.

Pixels are folded 2x2 into channels first (`patch_size`), so the convolutions run at half resolution, which makes it
cheap on a CPU. Frame 0 is a latent frame of its own; every later latent frame holds four pixel frames. For training,
all later frames go through each network in one call, which gives the same as diffusers' loop over latent frames.
Training sees parts of the picture, near the objects, because the rest of it is soon learned.
"""

import random

import torch
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import patchify, unpatchify
from torch import Tensor, nn
from torch.nn import functional as F

from forcing_kv.models.components import channels_last
from forcing_kv.tiny.scenes import random_clip
from forcing_kv.tiny.training.trainer import Schedule, add_mean_gradients
from forcing_kv.tiny.world import HEIGHT, WIDTH, Clip, Region, draw

LATENT_CHANNELS = 16
LATENT_ROWS = HEIGHT // 8
LATENT_COLS = WIDTH // 8

VAE_SCHEDULE = Schedule(num_steps=3200, learning_rate=8e-4, decay_share=0.6)
SHARPEN_SCHEDULE = Schedule(num_steps=1500, learning_rate=4e-4, decay_share=0.8)
DECODER_SCHEDULE = Schedule(num_steps=1500, learning_rate=4e-4, decay_share=0.8)
OBJECT_WEIGHT = 5.0
"""How much more an object and its rim count than the ground, once the VAE is roughly trained."""

_KL_WEIGHT = 1e-4
_LOGVAR_START = -6.0
_PATCH = 2
_PARTS = 2
_MEMORY_SHARE = 0.25
_SWITCH_SHARE = 0.3
_PIXEL_GROUP = 4
_REGION = (64, 96)
_COLOURFUL = 0.8  # spread of the channels, in pixels of -1..1: every object's is above 1, every background's below 0.6


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
    channels_last(vae)
    return vae


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


def add_vae_gradients(
    vae: AutoencoderKLWan,
    parameters: list[nn.Parameter],
    generator: torch.Generator,
    *,
    object_weight: float = 0.0,
    device: str = "cpu",
) -> float:
    """Gradients of one step: the mean over two batches, short clips and longer ones, because a stream never ends.

    Args:
        vae: the VAE.
        parameters: those that are trained.
        generator: of clips and noise.
        object_weight: how much more an object and its rim count than the ground.
        device: where the VAE is.

    Returns:
        The loss.
    """
    seeds = torch.randint(2**31, (_PARTS,), generator=generator).tolist()

    def loss_of(part: int) -> Tensor:
        own = torch.Generator().manual_seed(seeds[part])
        clips = random_clips(*((1, 21) if part else (3, 9)), own, region=_REGION)
        return vae_loss(vae, clips, own, object_weight=object_weight, device=device)

    return add_mean_gradients(parameters, loss_of, _PARTS)


class DecoderOnly(nn.Module):
    """The part of a VAE that may still be trained when there are latents; shares the VAE's modules."""

    def __init__(self, vae: AutoencoderKLWan) -> None:
        super().__init__()
        self.post_quant_conv = vae.post_quant_conv
        self.decoder = vae.decoder


def vae_loss(
    vae: AutoencoderKLWan,
    clips: Tensor,
    generator: torch.Generator,
    *,
    object_weight: float = 0.0,
    device: str = "cpu",
) -> Tensor:
    """Error of the pixels, of their change over time, and a little pressure on the latents' scale; clips are uint8."""
    pixels = pixels_of(clips).to(device).contiguous(memory_format=torch.channels_last_3d)
    # Without the cache of casted weights, which two threads would share.
    with torch.autocast(torch.device(device).type, dtype=torch.bfloat16, cache_enabled=False):
        mean, logvar = encode_moments(vae, pixels)
        mean, logvar = mean.float(), logvar.float()
        noise = torch.randn(mean.shape, generator=generator).to(mean.device)
        decoded = decode_whole(vae, mean + (0.5 * logvar).exp() * noise).float()
    error = decoded - pixels
    change_error = error[:, :, 1:] - error[:, :, :-1]
    divergence = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
    weights = 1 + object_weight * near_object(pixels)
    of_pixels = (weights * (error.abs() + 2 * error.square())).mean()
    of_change = (weights[:, :, 1:] * change_error.abs()).mean()
    return of_pixels + 0.5 * of_change + _KL_WEIGHT * divergence


def near_object(pixels: Tensor) -> Tensor:
    """1 within two pixels of anything colourful, else 0: [B, 3, frames, H, W] -> [B, 1, frames, H, W]."""
    colourful = (pixels.amax(dim=1) - pixels.amin(dim=1) > _COLOURFUL).float()
    return F.max_pool2d(colourful, 5, stride=1, padding=2)[:, None]


def random_clips(
    num_clips: int, num_frames: int, generator: torch.Generator, *, region: tuple[int, int] | None = None
) -> Tensor:
    """Draw random scenes from random moments on; some of them switch to another scene, as with a switch of prompts.

    Args:
        num_clips: how many.
        num_frames: pixel frames each.
        generator: of all choices.
        region: height and width of a part of the picture, around an object as far as it goes; the whole by default.

    Returns:
        uint8 [clips, frames, height, width, 3].
    """
    rng = random.Random(int(torch.randint(2**31, (), generator=generator)))
    clips = [random_clip(rng, memory=rng.random() < _MEMORY_SHARE) for _ in range(num_clips)]
    first_frame = rng.randrange(320)
    regions = [] if region is None else [_region_around(clip, first_frame, num_frames, region, rng) for clip in clips]
    videos = draw(clips, num_frames, first_frame=first_frame, regions=regions)
    for index, clip in enumerate(clips):
        if num_frames > _PIXEL_GROUP + 1 and not clip.scene.needs_memory and rng.random() < _SWITCH_SHARE:
            cut = rng.randrange(_PIXEL_GROUP + 1, num_frames, _PIXEL_GROUP)  # where a latent frame begins
            after = clip.switched(random_clip(rng, memory=False).scene, first_frame + cut)
            videos[index, cut:] = draw([after], num_frames - cut, regions=regions[index : index + 1])[0]
    return videos


def _region_around(clip: Clip, first_frame: int, num_frames: int, size: tuple[int, int], rng: random.Random) -> Region:
    """A part of the picture whose middle is somewhere near the object's place halfway."""
    x, y = clip.centres(1, first_frame=first_frame + num_frames // 2)[0, 0].tolist()
    height, width = size
    top = round(y + rng.uniform(-1, 1) * height / 4 - height / 2)
    left = round(x + rng.uniform(-1, 1) * width / 4 - width / 2)
    return Region(
        top=min(max(top, 0), HEIGHT - height), left=min(max(left, 0), WIDTH - width), height=height, width=width
    )


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
