"""Text encoder, tokenizer and VAE of a model: where they lie, and how the libraries they belong to load them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from forcing_kv.errors import CheckpointError
from forcing_kv.free_memory import free_bytes
from forcing_kv.models.checkpoint import read_checkpoint
from forcing_kv.models.location import HubFolder, LocalPath, Location
from forcing_kv.models.lora import listed
from forcing_kv.prompt_cache import PromptCache
from forcing_kv.text import LazyTextEncoder, TextEncoder
from forcing_kv.wan import TransformerConfig

MIN_CACHED_ENCODER_BYTES = 256 * 1024**2
"""A smaller text encoder is loaded as quickly as its cached results would be."""


@dataclass(frozen=True, kw_only=True)
class Components:
    """What a model needs besides its transformer.

    Attributes:
        vae: Folder of diffusers' `AutoencoderKLWan`.
        text_encoder: Folder of transformers' `UMT5EncoderModel`.
        tokenizer: Folder of its tokenizer.
    """

    vae: Location
    text_encoder: Location
    tokenizer: Location

    @classmethod
    def in_folder(cls, folder: Path) -> "Components":
        """In a folder with `vae`, `text_encoder` and `tokenizer`."""
        return cls(
            vae=LocalPath(folder / "vae"),
            text_encoder=LocalPath(folder / "text_encoder"),
            tokenizer=LocalPath(folder / "tokenizer"),
        )

    @classmethod
    def on_hub(cls, repo: str) -> "Components":
        """In a repository of that layout."""
        return cls(
            vae=HubFolder(repo, "vae", marker="config.json"),
            text_encoder=HubFolder(repo, "text_encoder", marker="config.json"),
            tokenizer=HubFolder(repo, "tokenizer", marker="tokenizer_config.json"),
        )

    def load_vae(self, *, dtype: torch.dtype, device: torch.device, is_channels_last: bool | None = None) -> Any:
        """Loads diffusers' `AutoencoderKLWan`; its `encoder` is None where only the weights to decode are there.

        Args:
            dtype: Of its weights.
            device: Where they go.
            is_channels_last: How they lie in memory; None for channels-last on a CPU only.

        Raises:
            CheckpointError: It cannot be had, is not what the library expects, or lacks weights to decode.
        """
        from diffusers import AutoencoderKLWan

        folder = self.vae.fetch()
        try:
            vae: Any
            vae, report = AutoencoderKLWan.from_pretrained(
                str(folder),
                torch_dtype=dtype,
                local_files_only=True,
                low_cpu_mem_usage=False,
                output_loading_info=True,
            )
        except (OSError, ValueError, RuntimeError) as error:
            raise CheckpointError(f"cannot load the VAE from {folder}: {error}") from error
        encoder_names = {name for name in vae.state_dict() if name.startswith(("encoder.", "quant_conv."))}
        missing = set(report["missing_keys"])
        if encoder_names <= missing:
            vae.encoder = vae.quant_conv = None
            missing -= encoder_names
        kinds = ("missing_keys", "mismatched_keys", "unexpected_keys")
        _check_complete({**report, "missing_keys": missing}, "VAE", folder, kinds=kinds)
        vae.to(device).requires_grad_(False)
        if device.type == "cpu" if is_channels_last is None else is_channels_last:
            channels_last(vae)
        return vae.eval()

    def load_text_encoder(
        self, config: TransformerConfig, *, dtype: torch.dtype, device: torch.device | None, preferred: torch.device
    ) -> TextEncoder:
        """Loads transformers' `UMT5EncoderModel` and its tokenizer.

        Args:
            config: Of the transformer that reads the states.
            dtype: To compute in.
            device: Where to compute; None takes `preferred` if it has room now, else the CPU.
            preferred: See `device`.

        Raises:
            CheckpointError: They cannot be had, are not what the library expects, or belong to another model.
        """
        from transformers import AutoTokenizer, UMT5EncoderModel

        folder, tokenizer_folder = self.text_encoder.fetch(), self.tokenizer.fetch()
        if device is None:
            free = free_bytes(preferred)
            has_room = free is None or free > _num_weights(folder) * dtype.itemsize
            device = preferred if has_room else torch.device("cpu")
        try:
            loaded: Any = UMT5EncoderModel.from_pretrained(
                str(folder), dtype=dtype, local_files_only=True, output_loading_info=True
            )
            tokenizer = AutoTokenizer.from_pretrained(str(tokenizer_folder), local_files_only=True)
        except (OSError, ValueError, RuntimeError) as error:
            raise CheckpointError(f"cannot load the text encoder from {folder}: {error}") from error
        model, report = loaded
        # More than the encoder may be there: a whole UMT5 has a decoder.
        _check_complete(report, "text encoder", folder, kinds=("missing_keys", "mismatched_keys"))
        if model.config.d_model != config.text_dim:
            raise CheckpointError(
                f"the text encoder in {folder} gives states of {model.config.d_model} values, the transformer reads "
                f"{config.text_dim}"
            )
        return TextEncoder(model.to(device).requires_grad_(False).eval(), tokenizer, text_len=config.text_len)

    def prompt_encoder(
        self,
        config: TransformerConfig,
        *,
        dtype: torch.dtype,
        device: torch.device,
        encoder_device: torch.device | None = None,
    ) -> LazyTextEncoder:
        """The text encoder, loaded (and downloaded) by the first prompt that is not in the prompt cache.

        Args:
            config: Of the transformer that reads the states.
            dtype: To compute in.
            device: Where the states are wanted.
            encoder_device: Where to compute; None takes `device` if it has room then, else the CPU.
        """

        def load() -> TextEncoder:
            return self.load_text_encoder(config, dtype=dtype, device=encoder_device, preferred=device)

        cache = None
        if self._is_slow_to_load():
            cache = PromptCache(f"{self.text_encoder.label()} {self.tokenizer.label()} {dtype} {config.text_len}")
        return LazyTextEncoder(load, device=device, cache=cache)

    def _is_slow_to_load(self) -> bool:
        folder = self.text_encoder.find()
        if folder is None:
            return True
        return sum(file.stat().st_size for file in folder.glob("*.safetensors")) >= MIN_CACHED_ENCODER_BYTES


def _check_complete(report: Mapping[str, Any], part: str, folder: Path, *, kinds: Sequence[str]) -> None:
    """Refuses what the libraries only log: weights they did not find are left at random values."""
    problems = [f"{kind.removesuffix('_keys')} {_name(entry)}" for kind in kinds for entry in report[kind]]
    if problems:
        raise CheckpointError(f"cannot load the {part} from {folder}, its weights do not fit: {listed(problems)}")


def _name(entry: Any) -> str:
    """Of an entry of a loading report: a name, or a name with the two shapes that differ."""
    return entry if isinstance(entry, str) else " ".join(map(str, entry))


def _num_weights(folder: Path) -> int:
    return sum(math.prod(tensor.shape) for tensor in read_checkpoint(folder).values())


def channels_last(module: nn.Module) -> nn.Module:
    """Lay convolution weights out channels-last, in place; activations follow."""
    for parameter in module.parameters():
        if parameter.dim() == 5:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last_3d)
        elif parameter.dim() == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    return module
