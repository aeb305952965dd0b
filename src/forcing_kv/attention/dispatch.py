"""`attend`: softmax attention in the layout of this project, (batch, tokens, heads, head_dim)."""

import torch
from torch import Tensor

from forcing_kv.attention.dense import PLAIN, SDPA


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Unmasked scaled dot-product attention, with gradients where they are needed.

    Where gradients are needed in bfloat16 on a CPU, it is plain products, which hold the score matrix: forward and
    backward of torch's fused kernel take two to five times as long there (24 to 720 keys; not so in float32).
    Otherwise it is torch's own attention; a `StreamCache` has its own back end (`StreamCache.attention`).

    Args:
        q: Queries [batch, query_tokens, heads, head_dim].
        k: Keys [batch, key_tokens, heads, head_dim]; any strides, the last axis contiguous.
        v: Values, shaped as `k`.

    Returns:
        [batch, query_tokens, heads, head_dim], in the dtype of `q`.
    """
    trains_on_cpu = q.requires_grad and q.dtype == torch.bfloat16 and q.device.type == "cpu"
    return (PLAIN if trains_on_cpu else SDPA).attend(q, k, v)
