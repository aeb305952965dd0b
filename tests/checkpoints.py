"""Small checkpoints in exactly the containers and under exactly the names of the released ones."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import save_file

from forcing_kv.models import RELEASED_MODELS, ModelSource, find_model
from forcing_kv.wan import CausalWanTransformer, TransformerConfig

SMALL = TransformerConfig(
    dim=48, ffn_dim=80, num_layers=2, num_heads=4, in_dim=4, out_dim=4, text_dim=24, text_len=6, freq_dim=32
)
LORA_RANK = 3


@dataclass(frozen=True)
class Released:
    """A small release: what to hand to --weights and --lora, and the tensors that must come out."""

    name: str
    weights: Path
    lora: Path | None
    expected: dict[str, torch.Tensor]

    def source(self, **settings: object) -> ModelSource:
        """The preset, with the small sizes."""
        settings = {"weights": self.weights, "lora": self.lora, **settings}
        return replace(find_model(self.name, **settings), config=SMALL)


def random_weights(config: TransformerConfig = SMALL, *, seed: int = 0) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    weights = CausalWanTransformer(config).state_dict()
    return {name: torch.randn_like(tensor) for name, tensor in weights.items()}  # norms and biases too


def prefixed(weights: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {prefix + name: tensor for name, tensor in weights.items()}


def fsdp_names(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """As FSDP leaves them: the model is wrapped, and so is every block."""
    return {
        "model._fsdp_wrapped_module." + name.replace("self_attn", "_fsdp_wrapped_module.self_attn"): tensor
        for name, tensor in weights.items()
    }


def random_lora(weights: dict[str, torch.Tensor], *, seed: int = 1) -> dict[str, torch.Tensor]:
    """Bare `lora_A`, `lora_B` for every Linear layer of the blocks."""
    generator = torch.Generator().manual_seed(seed)
    lora = {}
    for name, weight in weights.items():
        if name.startswith("blocks.") and weight.ndim == 2:
            layer = name.removesuffix(".weight")
            lora[f"{layer}.lora_A.weight"] = torch.randn(LORA_RANK, weight.shape[1], generator=generator)
            lora[f"{layer}.lora_B.weight"] = torch.randn(weight.shape[0], LORA_RANK, generator=generator)
    return lora


def with_lora(weights: dict[str, torch.Tensor], lora: dict[str, torch.Tensor], scale: float) -> dict[str, torch.Tensor]:
    """The textbook formula, in float64."""
    merged = dict(weights)
    for name, down in lora.items():
        if name.endswith(".lora_A.weight"):
            layer = name.removesuffix(".lora_A.weight")
            correction = lora[f"{layer}.lora_B.weight"].double() @ down.double()
            merged[f"{layer}.weight"] = (weights[f"{layer}.weight"].double() + scale * correction).float()
    return merged


def write_released(name: str, folder: Path) -> Released:
    """Writes the release of a preset; the folder is then laid out as a copy of its repository."""
    model = RELEASED_MODELS[name]
    path = folder / model.weights.path
    path.parent.mkdir(parents=True, exist_ok=True)
    weights, other = random_weights(), random_weights(seed=7)
    lora_path = None
    expected = weights
    if name == "self-forcing-1.3b":
        averaged, raw = prefixed(weights, "model."), prefixed(other, "model.")
        torch.save({"generator": raw, "generator_ema": averaged, "critic": raw, "step": 600}, path)
    elif name == "causal-forcing-1.3b":
        torch.save({"generator": fsdp_names(weights)}, path)
    elif name == "causal-forcing-1.3b-framewise":
        torch.save({"generator": prefixed(weights, "model."), "generator_ema": fsdp_names(weights)}, path)
    elif name == "longlive-1.3b":
        torch.save({"generator": prefixed(weights, "model.")}, path)
        lora_path = folder / model.lora.file.path
        lora = random_lora(weights)
        torch.save({"generator_lora": prefixed(lora, "base_model.model."), "step": 1}, lora_path)
        expected = with_lora(weights, lora, model.lora.alpha / LORA_RANK)
    elif name == "raven-1.3b":
        torch.save(weights, path)
    elif name == "krea-realtime-14b":
        expected = {key: tensor.bfloat16() for key, tensor in weights.items()}
        save_file(prefixed(expected, "model."), path)
    return Released(name, path, lora_path, expected)
