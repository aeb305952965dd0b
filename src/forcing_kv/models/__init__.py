"""The model zoo: presets as data, and the reading and writing of weights in every container they come in."""

from forcing_kv.models.components import Components
from forcing_kv.models.folder import (
    is_model_folder,
    read_head_map,
    read_preset,
    read_transformer_config,
    save_model,
    save_transformer,
)
from forcing_kv.models.preset import ModelPreset
from forcing_kv.models.released import RELEASED_MODELS, ReleasedModel
from forcing_kv.models.zoo import LicenceWarning, ModelSource, find_model, list_models, published_head_map

__all__ = [
    "RELEASED_MODELS",
    "Components",
    "LicenceWarning",
    "ModelPreset",
    "ModelSource",
    "ReleasedModel",
    "find_model",
    "is_model_folder",
    "list_models",
    "published_head_map",
    "read_head_map",
    "read_preset",
    "read_transformer_config",
    "save_model",
    "save_transformer",
]
