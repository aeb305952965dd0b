"""Our saved folder: one model, whole, in the layout that diffusers users know.

model_index.json                              the preset
transformer/config.json                       sizes
transformer/diffusion_pytorch_model.safetensors   weights, under the released names
vae/                                          diffusers `AutoencoderKLWan`
text_encoder/  tokenizer/                     transformers `UMT5EncoderModel` and its tokenizer
head_map.json                                 roles of the heads (may be missing)

Large weights lie in shards, with an index beside them. The last three folders may be missing where the preset names a
repository that has them.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from forcing_kv.errors import CheckpointError, ConfigurationError
from forcing_kv.heads import HeadMap
from forcing_kv.models.checkpoint import Checkpoint, lazy, num_bytes
from forcing_kv.models.preset import ModelPreset
from forcing_kv.wan import CausalWanTransformer, TransformerConfig

TRANSFORMER_WEIGHTS = "diffusion_pytorch_model.safetensors"
MAX_SHARD_BYTES = 5_000_000_000
_METADATA = {"format": "pt"}


def is_model_folder(folder: Path) -> bool:
    """Whether a folder was written by `save_model`, or claims to be."""
    return (folder / "model_index.json").is_file()


def read_preset(folder: Path) -> ModelPreset:
    """Reads `model_index.json`."""
    return ModelPreset.from_json(_read_json(folder / "model_index.json"), source=str(folder / "model_index.json"))


def read_head_map(folder: Path) -> HeadMap | None:
    """Reads `head_map.json`, if there is one."""
    path = folder / "head_map.json"
    return HeadMap.load(path) if path.exists() else None


def read_transformer_config(folder: Path) -> TransformerConfig:
    """Reads `transformer/config.json`."""
    path = folder / "transformer" / "config.json"
    document = _read_json(path)
    known = {field.name for field in fields(TransformerConfig)}
    try:
        return TransformerConfig(**{key: value for key, value in document.items() if key in known})
    except (TypeError, ConfigurationError) as error:
        raise CheckpointError(f"{path} does not describe a transformer: {error}") from error


def save_model(
    folder: str | Path,
    *,
    preset: ModelPreset,
    transformer: CausalWanTransformer,
    vae: Any,
    text_encoder: Any,
    tokenizer: Any,
    head_map: HeadMap | None = None,
) -> None:
    """Writes a whole model; every part in the dtype it has, linear layers in no other."""
    if transformer.precision is not None:
        raise ValueError(f"save a transformer as it was loaded: this one's layers are in {transformer.precision}")
    folder = Path(folder)
    natural = tuple(tuple(range(transformer.config.num_heads)) for _ in range(transformer.config.num_layers))
    if transformer.head_order != natural:
        raise ValueError("save a transformer with its heads as numbered: call set_head_order first")
    weights = {name: lazy(tensor) for name, tensor in transformer.state_dict().items()}
    save_transformer(folder, preset=preset, config=transformer.config, weights=weights, head_map=head_map)
    vae.save_pretrained(str(folder / "vae"))
    text_encoder.save_pretrained(str(folder / "text_encoder"))
    tokenizer.save_pretrained(str(folder / "tokenizer"))


def save_transformer(
    folder: Path,
    *,
    preset: ModelPreset,
    config: TransformerConfig,
    weights: Checkpoint,
    head_map: HeadMap | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Writes a model without text encoder and VAE.

    Args:
        folder: Made if missing.
        preset: How it is sampled.
        config: Its sizes.
        weights: By released name; read shard by shard.
        head_map: Roles of its heads.
        max_shard_bytes: Largest file; more weights than that lie in shards with an index.
        on_progress: Told the number of shards written, and of all.
    """
    target = folder / "transformer"
    target.mkdir(parents=True, exist_ok=True)
    _write_json(folder / "model_index.json", preset.to_json())
    _write_json(target / "config.json", asdict(config))
    if head_map is not None:
        head_map.save(folder / "head_map.json")
    shards = _shards(weights, max_shard_bytes)
    names = [_shard_name(number, len(shards)) for number in range(1, len(shards) + 1)]
    for number, (file_name, shard) in enumerate(zip(names, shards, strict=True), start=1):
        save_file({name: _dense(weights[name].read()) for name in shard}, str(target / file_name), metadata=_METADATA)
        on_progress(number, len(shards))
    if len(shards) > 1:
        weight_map = {name: file for file, shard in zip(names, shards, strict=True) for name in shard}
        size = {"total_size": sum(num_bytes(tensor) for tensor in weights.values())}
        _write_json(target / f"{TRANSFORMER_WEIGHTS}.index.json", {"metadata": size, "weight_map": weight_map})


def _shards(weights: Checkpoint, max_bytes: int) -> list[list[str]]:
    """Names of the weights of each file, in their order."""
    shards: list[list[str]] = [[]]
    filled = 0
    for name, tensor in weights.items():
        if shards[-1] and filled + num_bytes(tensor) > max_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += num_bytes(tensor)
    return shards


def _shard_name(number: int, num_shards: int) -> str:
    if num_shards == 1:
        return TRANSFORMER_WEIGHTS
    stem, _, suffix = TRANSFORMER_WEIGHTS.rpartition(".")
    return f"{stem}-{number:05d}-of-{num_shards:05d}.{suffix}"


def _dense(tensor: Tensor) -> Tensor:
    """A tensor that is alone in its memory, as safetensors wants it."""
    tensor = tensor.contiguous()
    return tensor if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone()


def _write_json(path: Path, document: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(document, dict):
        raise CheckpointError(f"{path} must hold a JSON object")
    return document
