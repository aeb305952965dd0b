"""LoRA adapters, merged into the weights they belong to while those are read: W + alpha / rank * B A.

Names are PEFT's (`base_model.model.blocks.0.self_attn.q.lora_A.default.weight`) or bare
(`blocks.0.self_attn.q.lora_A.weight`).
"""

import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from forcing_kv.errors import CheckpointError
from forcing_kv.models.checkpoint import Checkpoint, LazyTensor
from forcing_kv.models.names import released_names

_ADAPTER_NAME = re.compile(r"(?P<target>.+)\.lora_(?P<side>[AB])(\.[^.]+)??(\.weight)?")
MAX_LISTED = 20


@dataclass(frozen=True, kw_only=True)
class Lora:
    """Low-rank corrections.

    Attributes:
        pairs: Name of a weight -> A [rank, in] and B [out, rank].
        alpha: Numerator of the scale; None makes the scale 1.
        source: The file, for errors.
    """

    pairs: Mapping[str, tuple[LazyTensor, LazyTensor]]
    alpha: float | None
    source: str

    def merged(self, weights: Checkpoint, *, targets: Collection[str] = ()) -> Checkpoint:
        """The weights with the corrections added, each when it is read, in float32.

        Args:
            weights: By released name.
            targets: Names that must have a correction.

        Raises:
            CheckpointError: A correction without its weight or of another shape, or a target without a correction.
        """
        problems = [f"missing {name}" for name in targets if name not in self.pairs]
        for name, (down, up) in self.pairs.items():
            if name not in weights:
                problems.append(f"{name} is not a weight of the model")
                continue
            shape = weights[name].shape
            if len(shape) != 2 or (up.shape[0], down.shape[-1]) != shape or up.shape[-1] != down.shape[0]:
                problems.append(f"{name} is B {list(up.shape)} x A {list(down.shape)}, the weight is {list(shape)}")
        if problems:
            raise CheckpointError(f"the LoRA {self.source} does not fit: {listed(problems)}")
        return {**weights, **{name: self._corrected(weights[name], *pair) for name, pair in self.pairs.items()}}

    def _corrected(self, weight: LazyTensor, down: LazyTensor, up: LazyTensor) -> LazyTensor:
        rank = down.shape[0]
        scale = 1.0 if self.alpha is None else self.alpha / rank

        def read() -> Tensor:
            stored = weight.read()
            return torch.addmm(stored.float(), up.read().float(), down.read().float(), alpha=scale).to(stored.dtype)

        return LazyTensor(shape=weight.shape, dtype=weight.dtype, read=read)


def split_lora(stored: Checkpoint, *, source: str, alpha: float | None = None) -> tuple[Checkpoint, Lora | None]:
    """Separates weights from adapter entries; None if there are no adapter entries.

    Args:
        stored: By the name in the file; wrappers are stripped.
        source: The file, for errors.
        alpha: See `Lora`.

    Raises:
        CheckpointError: One half of a correction without the other.
    """
    weights: dict[str, LazyTensor] = {}
    sides: dict[str, dict[str, LazyTensor]] = {}
    for name, tensor in released_names(stored, source=source).items():
        match = _ADAPTER_NAME.fullmatch(name)
        if match is None:
            weights[name] = tensor
        else:
            sides.setdefault(match["target"] + ".weight", {})[match["side"]] = tensor
    halves = [f"{name} lacks lora_{'B' if 'A' in pair else 'A'}" for name, pair in sides.items() if len(pair) == 1]
    if halves:
        raise CheckpointError(f"the LoRA in {source} is incomplete: {listed(halves)}")
    if not sides:
        return weights, None
    return weights, Lora(
        pairs={name: (pair["A"], pair["B"]) for name, pair in sides.items()}, alpha=alpha, source=source
    )


def adapter_alpha(path: Path) -> float | None:
    """`lora_alpha` of the `adapter_config.json` that PEFT leaves beside a LoRA; None where there is none."""
    config = (path if path.is_dir() else path.parent) / "adapter_config.json"
    if not config.is_file():
        return None
    try:
        return float(json.loads(config.read_text(encoding="utf-8"))["lora_alpha"])
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{config} names no lora_alpha: {error!r}") from error


def listed(problems: Collection[str]) -> str:
    """The first problems, and how many more there are."""
    shown = "; ".join(sorted(problems)[:MAX_LISTED])
    return shown + (f"; and {len(problems) - MAX_LISTED} more" if len(problems) > MAX_LISTED else "")
