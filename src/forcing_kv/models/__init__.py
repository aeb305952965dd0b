"""The model zoo: presets as data, and the reading and writing of saved models."""

from forcing_kv.models.folder import (
    check_weights,
    load_text_encoder,
    load_transformer,
    load_vae,
    read_head_map,
    read_preset,
    read_transformer_config,
    save_model,
)
from forcing_kv.models.preset import ModelPreset
from forcing_kv.models.zoo import find_model, list_models, published_head_map

__all__ = [
    "ModelPreset",
    "check_weights",
    "find_model",
    "list_models",
    "load_text_encoder",
    "load_transformer",
    "load_vae",
    "published_head_map",
    "read_head_map",
    "read_preset",
    "read_transformer_config",
    "save_model",
]
