"""Norm and rotation of queries or keys on a GPU, as one kernel: a token is read once and written once, in its place.

Triton is imported here and nowhere else in the model; whoever calls has seen that it is there (`wan.elementwise`). The
kernel runs in Triton's interpreter too, which is how it is tested without a GPU.
"""

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from forcing_kv.wan.rope import RotaryTable


def normed_heads(x: Tensor, weight: Tensor, eps: float, num_heads: int, rope: RotaryTable | None) -> Tensor:
    """As `wan.elementwise.normed_heads`, with the weight [dim] of its norm.

    Args:
        x: [batch, tokens, dim]; any strides, the last axis contiguous. The result lies in its place.
        weight: Of the norm.
        eps: Of the norm.
        num_heads: Heads.
        rope: Angles of the tokens; None leaves them unrotated.

    Returns:
        [batch, tokens, heads, head_dim], in the dtype of `x`.
    """
    batch_size, num_tokens, dim = x.shape
    cos, sin = (weight, weight) if rope is None else (rope.cos, rope.sin)  # never read without angles
    assert x.stride(2) == 1, "a token's values lie side by side"
    assert rope is None or cos.shape[1] == num_tokens, "every token has its angles"
    block = triton.next_power_of_2(dim // 2)
    _normed_heads[(num_tokens, batch_size)](
        x,
        weight,
        cos,
        sin,
        x.stride(0),
        x.stride(1),
        eps,
        dim=dim,
        head_pairs=dim // num_heads // 2,
        rotates=rope is not None,
        block=block,
        num_warps=min(16, max(4, block // 256)),
    )
    return x.view(batch_size, num_tokens, num_heads, dim // num_heads)


def _normed_heads_kernel(  # noqa: PLR0917  # what a launch hands over has no names
    x: Any,
    weight: Any,
    cos: Any,
    sin: Any,
    batch_stride: Any,
    token_stride: Any,
    eps: Any,
    dim: tl.constexpr,
    head_pairs: tl.constexpr,
    rotates: tl.constexpr,
    block: tl.constexpr,
) -> None:
    """One token of one batch item; its values in pairs, the pairs of all heads one after the other."""
    token = tl.program_id(0).to(tl.int64)
    item = tl.program_id(1).to(tl.int64)
    pair = tl.arange(0, block)
    there = pair < dim // 2
    row = x + item * batch_stride + token * token_stride
    even = tl.load(row + 2 * pair, mask=there, other=0.0).to(tl.float32)
    odd = tl.load(row + 2 * pair + 1, mask=there, other=0.0).to(tl.float32)
    scale = 1.0 / tl.sqrt(tl.reduce(even * even + odd * odd, 0, _add) / dim + eps)
    even = even * scale * tl.load(weight + 2 * pair, mask=there, other=0.0).to(tl.float32)
    odd = odd * scale * tl.load(weight + 2 * pair + 1, mask=there, other=0.0).to(tl.float32)
    if rotates:
        angle = token * head_pairs + pair % head_pairs
        c = tl.load(cos + angle, mask=there, other=1.0)
        s = tl.load(sin + angle, mask=there, other=0.0)
        turned = even * c - odd * s
        odd = even * s + odd * c
        even = turned
    tl.store(row + 2 * pair, even.to(x.dtype.element_ty), mask=there)
    tl.store(row + 2 * pair + 1, odd.to(x.dtype.element_ty), mask=there)


def _add_values(left: Any, right: Any) -> Any:
    """Of a sum; `tl.sum` would be the interpreter's only if that was on when Triton was first imported."""
    return left + right


_add = triton.jit(_add_values)
_normed_heads = triton.jit(_normed_heads_kernel)
