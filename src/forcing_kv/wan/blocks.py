"""The blocks of the causal Wan transformer, and its head.

A block is two pieces with self-attention between them: what attention reads is the memory's business, and everything
else in a block is the same whatever that is, in every block. So a piece that is compiled is compiled once.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from forcing_kv.attention import attend
from forcing_kv.wan.config import TransformerConfig
from forcing_kv.wan.elementwise import gated_sum, modulated_norm, normed_heads
from forcing_kv.wan.joined import JoinedLinears
from forcing_kv.wan.levels import BLOCK_VECTORS, HEAD_VECTORS
from forcing_kv.wan.pass_inputs import SelfAttentionMemory
from forcing_kv.wan.products import apply_linear, gelu_linear
from forcing_kv.wan.rope import RotaryTable

TextKV = tuple[Tensor, Tensor]
"""Cross-attention keys and values of one layer, each [batch, text_len, heads, head_dim]."""


class Block(nn.Module):
    """Self-attention, cross-attention and feed-forward, the first and last modulated by the noise level."""

    def __init__(self, config: TransformerConfig, layer: int) -> None:
        super().__init__()
        dim = config.dim
        self.layer = layer
        self.eps = config.eps
        self.modulation = nn.Parameter(torch.randn(1, BLOCK_VECTORS, dim) / dim**0.5)
        self.self_attn = SelfAttention(config)
        self.norm3 = nn.LayerNorm(dim, eps=config.eps) if config.cross_attn_norm else nn.Identity()
        self.cross_attn = CrossAttention(config)
        self.ffn = nn.Sequential(
            nn.Linear(dim, config.ffn_dim), nn.GELU(approximate="tanh"), nn.Linear(config.ffn_dim, dim)
        )

    def forward(
        self, x: Tensor, modulation: Tensor, text_kv: TextKV, rope: RotaryTable, memory: SelfAttentionMemory
    ) -> Tensor:
        """`x` is [batch, frames * frame_tokens, dim]; the modulation that of this block, by `Modulation.of_block`."""
        attended = memory.attend(self.layer, *self.before_attention(x, modulation, rope))
        return self.after_attention(x, attended, modulation, text_kv)

    def before_attention(self, x: Tensor, modulation: Tensor, rope: RotaryTable) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of self-attention, each [batch, tokens, heads, head_dim]."""
        shift, scale = modulation[0], modulation[1]
        return self.self_attn.queries_keys_values(modulated_norm(x, shift, scale, self.eps), rope)

    def after_attention(self, x: Tensor, attended: Tensor, modulation: Tensor, text_kv: TextKV) -> Tensor:
        """The rest of the block: `x` is its input, `attended` what self-attention gave."""
        gate1, shift2, scale2, gate2 = modulation[2], modulation[3], modulation[4], modulation[5]
        x = gated_sum(x, apply_linear(self.self_attn.o, attended.flatten(2)), gate1)
        x = x + self.cross_attn(self.norm3(x), text_kv)
        hidden = gelu_linear(self.ffn[0], modulated_norm(x, shift2, scale2, self.eps))
        return gated_sum(x, apply_linear(self.ffn[2], hidden), gate2)


class Attention(nn.Module):
    """The weights that both kinds of attention have."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.q = nn.Linear(config.dim, config.dim)
        self.k = nn.Linear(config.dim, config.dim)
        self.v = nn.Linear(config.dim, config.dim)
        self.o = nn.Linear(config.dim, config.dim)
        self.norm_q = nn.RMSNorm(config.dim, eps=config.eps) if config.qk_norm else nn.Identity()
        self.norm_k = nn.RMSNorm(config.dim, eps=config.eps) if config.qk_norm else nn.Identity()


class SelfAttention(Attention):
    """Queries, keys and values of the pass; what they attend to is the memory's business."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__(config)
        self._joined: JoinedLinears | None = None

    def queries_keys_values(self, x: Tensor, rope: RotaryTable) -> tuple[Tensor, Tensor, Tensor]:
        """`x` is [batch, tokens, dim]; each of the three [batch, tokens, heads, head_dim]."""
        trains = torch.is_grad_enabled() and self.q.weight.requires_grad
        q, k, v = (self.q(x), self.k(x), self.v(x)) if self._joined is None or trains else self._joined(x)
        q = normed_heads(q, self.norm_q, self.num_heads, rope)
        k = normed_heads(k, self.norm_k, self.num_heads, rope)
        return q, k, v.unflatten(-1, (self.num_heads, -1))

    def join_projections(self) -> None:
        """Lays q, k and v side by side in memory and multiplies with all three at once; weights and names stay."""
        self._joined = JoinedLinears([self.q, self.k, self.v])

    def join_again(self) -> None:
        """Joins anew what was joined, after the weights themselves were replaced."""
        if self._joined is not None:
            self.join_projections()

    @torch.no_grad()
    def permute_heads(self, order: Sequence[int]) -> None:
        """Moves the head now at place order[i] to place i, in every weight that has a head axis."""
        for name, weight in self.named_parameters():
            weight.copy_(with_heads_in(order, name, weight))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """Moves or converts the weights (`to`, `double`, ...), one by one."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.join_again()
        return self

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Takes the state of a copy, whose weights were copied one by one."""
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self.join_again()


class CrossAttention(Attention):
    """Attention to the prompt, whose keys and values are computed once."""

    def keys_and_values(self, context: Tensor) -> TextKV:
        """Of the embedded prompt [batch, text_len, dim]; each [batch, text_len, heads, head_dim]."""
        k = normed_heads(self.k(context), self.norm_k, self.num_heads)
        return k, self.v(context).unflatten(-1, (self.num_heads, -1))

    def forward(self, x: Tensor, text_kv: TextKV) -> Tensor:
        """`x` is [batch, tokens, dim]."""
        q = normed_heads(apply_linear(self.q, x), self.norm_q, self.num_heads)
        return apply_linear(self.o, attend(q, *text_kv).flatten(2))


class Head(nn.Module):
    """From the residual stream to the velocity of each patch."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.eps = config.eps
        self.head = nn.Linear(config.dim, config.patch_values * config.out_dim)
        self.modulation = nn.Parameter(torch.randn(1, HEAD_VECTORS, config.dim) / config.dim**0.5)

    def forward(self, x: Tensor, modulation: Tensor) -> Tensor:
        """`x` is [batch, tokens, dim]; the modulation by `Modulation.of_head`."""
        out: Tensor = self.head(modulated_norm(x, modulation[0], modulation[1], self.eps))
        return out


def with_heads_in(order: Sequence[int], name: str, weight: Tensor) -> Tensor:
    """A weight of `SelfAttention`, by its name there, with the head at place order[i] at place i."""
    if name in ("o.bias", "o.scale"):
        return weight  # they belong to what comes out after the heads are mixed
    axis = 1 if name == "o.weight" else 0
    head_dim = weight.shape[axis] // len(order)
    rows = torch.tensor([head * head_dim + value for head in order for value in range(head_dim)], device=weight.device)
    return weight.index_select(axis, rows)
