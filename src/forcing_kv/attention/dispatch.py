"""`attend`: softmax attention in the layout of this project, (batch, tokens, heads, head_dim)."""

import torch
import torch.nn.functional as F
from torch import Tensor


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Unmasked scaled dot-product attention.

    Where gradients are needed in bfloat16 on a CPU, it is plain products, which hold the score matrix: forward and
    backward of torch's fused kernel take two to five times as long there (24 to 720 keys; not so in float32).

    Args:
        q: Queries [batch, query_tokens, heads, head_dim].
        k: Keys [batch, key_tokens, heads, head_dim]; any strides, the last axis contiguous.
        v: Values, shaped as `k`.

    Returns:
        [batch, query_tokens, heads, head_dim], in the dtype of `q`.
    """
    if q.requires_grad and q.dtype == torch.bfloat16 and q.device.type == "cpu":
        return _attend_plainly(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)).transpose(1, 2)
    out = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
    return out.transpose(1, 2)


def _attend_plainly(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """All tensors [batch, heads, tokens, head_dim]; holds the score matrix."""
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    out: Tensor = scores.softmax(dim=-1) @ v
    return out
