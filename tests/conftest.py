"""Fixtures that several test files share."""

import os
from pathlib import Path

import pytest
import torch

from forcing_kv.heads import HeadMap
from forcing_kv.models import ModelPreset, save_model
from forcing_kv.wan import CausalWanTransformer, TransformerConfig

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when Triton is imported: its kernels run on the CPU then
torch.set_num_threads(1)  # everything here is small: threads would only wait for each other


@pytest.fixture(scope="session")
def tiny_model_folder(tmp_path_factory) -> Path:
    """A whole model with random weights in the saved layout: real component types, small sizes."""
    from forcing_kv.tiny.training.text import TEXT_DIM, TEXT_LEN, build_text_encoder, build_tokenizer
    from forcing_kv.tiny.training.vae import LATENT_CHANNELS, build_vae

    torch.manual_seed(0)
    transformer = CausalWanTransformer(
        TransformerConfig(
            dim=48,
            ffn_dim=64,
            num_layers=3,
            num_heads=4,
            in_dim=LATENT_CHANNELS,
            out_dim=LATENT_CHANNELS,
            text_dim=TEXT_DIM,
            text_len=TEXT_LEN,
            freq_dim=32,
            rope_theta=50.0,
        )
    )
    tokenizer = build_tokenizer()
    folder = tmp_path_factory.mktemp("models") / "random"
    save_model(
        folder,
        preset=ModelPreset(name="random", licence="Apache-2.0", default_resolution=(96, 64)),
        transformer=transformer,
        vae=build_vae(),
        text_encoder=build_text_encoder(len(tokenizer)),
        tokenizer=tokenizer,
        head_map=HeadMap(model="random", roles=("sdsd", "ddss", "sddd")),
    )
    return folder
