"""What a pass reads besides its own frames."""

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


class SelfAttentionMemory(Protocol):
    """What self-attention reads besides the frames of the pass: `StreamCache`, or a training mask."""

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention of layer `layer`; all tensors [batch, tokens, heads, head_dim], rotary embedding applied."""
        ...


@dataclass(frozen=True, kw_only=True)
class TextMemory:
    """Cross-attention keys and values of a prompt, one pair per layer, each [batch, text_len, heads, head_dim]."""

    layers: tuple[tuple[Tensor, Tensor], ...]
