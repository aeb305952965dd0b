"""The transformer's weights: whatever file they come from, checked name for name and shape for shape, then streamed in.

One tensor at a time goes from the file to its place, in the wanted dtype and on the wanted device, so loading takes no
more host memory than the model itself.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from forcing_kv.errors import CheckpointError
from forcing_kv.models.checkpoint import Checkpoint, read_checkpoint
from forcing_kv.models.location import Location
from forcing_kv.models.lora import adapter_alpha, listed, split_lora
from forcing_kv.wan import CausalWanTransformer, TransformerConfig

FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
"""Dtypes that may be converted to the wanted one; float8 and integers would need scales that are not there."""


@dataclass(frozen=True, kw_only=True)
class LoraSource:
    """An adapter to merge.

    Attributes:
        location: Its file, or a folder with one.
        alpha: Numerator of the scale; None takes `adapter_config.json`, else 1 x.
        is_complete: Whether every Linear layer of the blocks must have a correction.
    """

    location: Location
    alpha: float | None = None
    is_complete: bool = False


def shapes_of(config: TransformerConfig) -> dict[str, tuple[int, ...]]:
    """Every weight of a transformer of this size, by released name."""
    with torch.device("meta"):
        transformer = CausalWanTransformer(config)
    return {name: tuple(tensor.shape) for name, tensor in transformer.state_dict().items()}


def block_linears(config: TransformerConfig) -> dict[str, tuple[int, ...]]:
    """The weights of all Linear layers of the blocks: what a LoRA may correct."""
    return {
        name: shape
        for name, shape in shapes_of(config).items()
        if name.startswith("blocks.") and name.endswith(".weight") and len(shape) == 2
    }


def read_weights(path: Path) -> Checkpoint:
    """Opens a weight file; an adapter that is packed into it (a PEFT state dict) is merged.

    Returns:
        Tensors by released name, not checked yet.

    Raises:
        CheckpointError: A file that cannot be read, or that holds an adapter only.
    """
    tensors, packed = split_lora(read_checkpoint(path), source=str(path), alpha=adapter_alpha(path))
    if packed is None:
        return tensors
    if not tensors:
        raise CheckpointError(f"{path} holds a LoRA only: give the base with --weights and this file with --lora")
    return packed.merged(tensors)


def merge_lora(tensors: Checkpoint, lora: LoraSource, config: TransformerConfig) -> Checkpoint:
    """Merges an adapter file.

    Args:
        tensors: Weights of the transformer, by released name.
        lora: The adapter.
        config: Of the transformer.

    Raises:
        CheckpointError: The file cannot be had or read, is no adapter, or does not fit.
    """
    path = lora.location.fetch()
    alpha = adapter_alpha(path) if lora.alpha is None else lora.alpha
    others, adapter = split_lora(read_checkpoint(path), source=str(path), alpha=alpha)
    if adapter is None:
        raise CheckpointError(f"{path} holds no LoRA (no lora_A, lora_B): is it the file for --weights?")
    if others:
        raise CheckpointError(f"{path} holds more than a LoRA: {listed(list(others))}")
    return adapter.merged(tensors, targets=block_linears(config) if lora.is_complete else ())


def find_problems(tensors: Checkpoint, config: TransformerConfig) -> list[str]:
    """All that keeps `tensors` from being the weights of a transformer of this size; empty if they are."""
    shapes = shapes_of(config)
    problems = [f"missing {name}" for name in shapes.keys() - tensors.keys()]
    problems += [f"unexpected {name}" for name in tensors.keys() - shapes.keys()]
    for name in tensors.keys() & shapes.keys():
        tensor = tensors[name]
        if tensor.shape != shapes[name]:
            problems.append(f"{name} is {list(tensor.shape)}, should be {list(shapes[name])}")
        elif tensor.dtype not in FLOATS:
            dtype = str(tensor.dtype).removeprefix("torch.")
            problems.append(f"{name} is {dtype}, should be a float of 16 bits or more")
    return problems


def build_transformer(
    tensors: Checkpoint,
    config: TransformerConfig,
    *,
    dtype: torch.dtype,
    device: torch.device,
    precision: str | None = None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> CausalWanTransformer:
    """Fills a transformer.

    Args:
        tensors: By released name; `find_problems` finds none in them.
        config: Its sizes.
        dtype: Wanted; other floats are converted.
        device: Where each tensor goes directly.
        precision: Of the linear layers, `fp8`, checked (`check_precision`): each is quantised as it is read. None for
            `dtype`.
        on_progress: Told the number of weights done, and of all.
    """
    with torch.device("meta"):
        transformer = CausalWanTransformer(config).to(dtype)
        if precision is not None:
            transformer.quantise_linears()
    transformer.to_empty(device=device).requires_grad_(False)
    transformer.join_projections()
    # All of the model is allocated before anything is read: what reading and merging take in between lies behind it and
    # is used again and again, and the weights lie in memory of their own and not in a file that may go away.
    for number, (name, tensor) in enumerate(tensors.items(), start=1):
        transformer.load_weight(name, tensor.read())
        on_progress(number, len(tensors))
    return transformer.eval()


def weights_sha256(transformer: CausalWanTransformer) -> str:
    """A hash of the weights as they are loaded: names, dtypes, shapes and bytes, with the heads as they are numbered.

    So it does not depend on where the heads lie or on the file the weights came from, but it does on the dtype: the
    same checkpoint rounded to bfloat16 is another model. One tensor at a time is on the host.
    """
    digest = hashlib.sha256()
    for name, weight in transformer.released_weights():
        digest.update(f"{name} {weight.dtype} {list(weight.shape)}\n".encode())
        digest.update(weight.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
