"""Small random VAEs of every kind that Wan has."""

import torch
from diffusers import AutoencoderKLWan

CHANNELS = 4
KINDS = {"plain": (False, None), "residual": (True, None), "patched": (True, 2)}
"""Whether the blocks are residual, and the size of the pixel patches."""


def random_vae(kind: str = "plain") -> AutoencoderKLWan:
    """Always the same weights."""
    is_residual, patch_size = KINDS[kind]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vae = AutoencoderKLWan(
            base_dim=8,
            z_dim=CHANNELS,
            dim_mult=[1, 2, 2, 2],
            num_res_blocks=1,
            latents_mean=[0.3, -0.2, 0.1, 0.5],
            latents_std=[1.5, 0.7, 2.0, 1.1],
            is_residual=is_residual,
            patch_size=patch_size,
            in_channels=3 * (patch_size or 1) ** 2,
            out_channels=3 * (patch_size or 1) ** 2,
        )
    return vae.eval()
