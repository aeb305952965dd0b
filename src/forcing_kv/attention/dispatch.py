"""`attend`: softmax attention in the layout of this project, (batch, tokens, heads, head_dim)."""

import torch.nn.functional as F
from torch import Tensor


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Unmasked scaled dot-product attention.

    Where gradients are needed on a CPU, it is plain products: torch's fused kernel there has a backward pass that takes
    many times as long.

    Args:
        q: Queries [batch, query_tokens, heads, head_dim].
        k: Keys [batch, key_tokens, heads, head_dim]; any strides, the last axis contiguous.
        v: Values, shaped as `k`.

    Returns:
        [batch, query_tokens, heads, head_dim], in the dtype of `q`.
    """
    if q.device.type == "cpu" and q.requires_grad:
        return _attend_plainly(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)).transpose(1, 2)
    out = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
    return out.transpose(1, 2)


def _attend_plainly(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """All tensors [batch, heads, tokens, head_dim]; holds the score matrix."""
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    out: Tensor = scores.softmax(dim=-1) @ v
    return out
