"""`attend`: softmax attention in the layout of this project, (batch, tokens, heads, head_dim)."""

import torch.nn.functional as F
from torch import Tensor


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Unmasked scaled dot-product attention.

    Args:
        q: Queries [batch, query_tokens, heads, head_dim].
        k: Keys [batch, key_tokens, heads, head_dim]; any strides, the last axis contiguous.
        v: Values, shaped as `k`.

    Returns:
        [batch, query_tokens, heads, head_dim], in the dtype of `q`.
    """
    out = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
    return out.transpose(1, 2)
