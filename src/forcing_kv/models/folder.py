"""Our saved folder: one model, whole, in the layout that diffusers users know.

model_index.json                              the preset
transformer/config.json                       sizes
transformer/diffusion_pytorch_model.safetensors   weights, under the released names
vae/                                          diffusers `AutoencoderKLWan`
text_encoder/  tokenizer/                     transformers `UMT5EncoderModel` and its tokenizer
head_map.json                                 roles of the heads (may be missing)
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from forcing_kv.errors import CheckpointError, ConfigurationError
from forcing_kv.heads import HeadMap
from forcing_kv.models.preset import ModelPreset
from forcing_kv.text import TextEncoder
from forcing_kv.wan import CausalWanTransformer, TransformerConfig

TRANSFORMER_WEIGHTS = "diffusion_pytorch_model.safetensors"
MAX_LISTED = 20


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


def load_transformer(folder: Path, *, dtype: torch.dtype, device: torch.device) -> CausalWanTransformer:
    """Builds the transformer and fills it, name for name and shape for shape.

    Raises:
        CheckpointError: Files that are missing or broken, weights that are missing, unexpected or mis-shaped.
    """
    config = read_transformer_config(folder)
    path = folder / "transformer" / TRANSFORMER_WEIGHTS
    try:
        with safe_open(str(path), framework="pt", device=str(device)) as file:
            weights = {name: file.get_tensor(name).to(dtype) for name in file.keys()}  # noqa: SIM118  # not a dict
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"cannot read {path}: {error}") from error
    with torch.device("meta"):
        transformer = CausalWanTransformer(config)
    check_weights(weights, transformer.state_dict(), source=str(path))
    transformer.load_state_dict(weights, strict=True, assign=True)
    return transformer.requires_grad_(False).eval()


def check_weights(weights: Mapping[str, Tensor], expected: Mapping[str, Tensor], *, source: str) -> None:
    """Raises one `CheckpointError` that lists all missing, unexpected and mis-shaped weights (the first 20 of them)."""
    problems = [f"missing {name}" for name in expected.keys() - weights.keys()]
    problems += [f"unexpected {name}" for name in weights.keys() - expected.keys()]
    problems += [
        f"{name} is {list(weights[name].shape)}, should be {list(expected[name].shape)}"
        for name in weights.keys() & expected.keys()
        if weights[name].shape != expected[name].shape
    ]
    if problems:
        listed = "; ".join(sorted(problems)[:MAX_LISTED])
        more = f"; and {len(problems) - MAX_LISTED} more" if len(problems) > MAX_LISTED else ""
        raise CheckpointError(f"{source} does not fit the transformer: {listed}{more}")


def load_vae(folder: Path, *, dtype: torch.dtype, device: torch.device) -> Any:
    """Loads diffusers' `AutoencoderKLWan`; its `encoder` is None where the folder holds the weights to decode only.

    Raises:
        CheckpointError: Files that are missing or broken, or weights to decode that are missing.
    """
    from diffusers import AutoencoderKLWan

    try:
        vae: Any
        vae, loading = AutoencoderKLWan.from_pretrained(
            str(folder / "vae"),
            torch_dtype=dtype,
            local_files_only=True,
            low_cpu_mem_usage=False,
            output_loading_info=True,
        )
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot load the VAE from {folder / 'vae'}: {error}") from error
    missing = sorted(loading["missing_keys"])  # the library has filled them with random values
    needed = [name for name in missing if not name.startswith(("encoder.", "quant_conv."))]
    if needed:
        raise CheckpointError(f"the VAE in {folder / 'vae'} lacks weights: {', '.join(needed[:MAX_LISTED])}")
    if missing:
        vae.encoder = vae.quant_conv = None
    vae.to(device).requires_grad_(False)
    return vae.eval()


def load_text_encoder(folder: Path, *, text_len: int, dtype: torch.dtype, device: torch.device) -> TextEncoder:
    """Loads transformers' `UMT5EncoderModel` and its tokenizer."""
    from transformers import AutoTokenizer, UMT5EncoderModel

    try:
        model: Any = UMT5EncoderModel.from_pretrained(str(folder / "text_encoder"), dtype=dtype, local_files_only=True)
        tokenizer = AutoTokenizer.from_pretrained(str(folder / "tokenizer"), local_files_only=True)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot load the text encoder from {folder}: {error}") from error
    return TextEncoder(model.to(device).requires_grad_(False).eval(), tokenizer, text_len=text_len, device=device)


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
    """Writes a whole model; every part in the dtype it has."""
    folder = Path(folder)
    (folder / "transformer").mkdir(parents=True, exist_ok=True)
    natural = tuple(tuple(range(transformer.config.num_heads)) for _ in range(transformer.config.num_layers))
    if transformer.head_order != natural:
        raise ValueError("save a transformer with its heads as numbered: call set_head_order first")
    (folder / "model_index.json").write_text(json.dumps(preset.to_json(), indent=1) + "\n", encoding="utf-8")
    config = json.dumps(asdict(transformer.config), indent=1)
    (folder / "transformer" / "config.json").write_text(config + "\n", encoding="utf-8")
    weights = {name: tensor.contiguous() for name, tensor in transformer.state_dict().items()}
    save_file(weights, str(folder / "transformer" / TRANSFORMER_WEIGHTS), metadata={"format": "pt"})
    vae.save_pretrained(str(folder / "vae"))
    text_encoder.save_pretrained(str(folder / "text_encoder"))
    tokenizer.save_pretrained(str(folder / "tokenizer"))
    if head_map is not None:
        head_map.save(folder / "head_map.json")


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
