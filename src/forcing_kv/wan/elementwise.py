"""What a block does between its products: norm and modulation, norm and rotation, gate and residual.

Each is written so that a pass moves little memory. A noise level shared by all tokens makes a modulated norm a single
`layer_norm`. On a CPU the norm of queries and keys and their rotation are done a block of tokens at a time, in a buffer
that stays in the processor's cache; on a GPU norm and rotation are one kernel (`wan.triton_heads`). What comes out lies
where a product had left what went in: no new memory is touched. Where gradients are needed, or torch compiles (which
fuses by itself), plain operations say the same.
"""

import importlib.util
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from forcing_kv.wan.rope import RotaryTable

CACHE_BYTES = 2**20
"""Room for one block of tokens in float32, per thread: about half of the second-level cache of today's processors."""


def modulated_norm(x: Tensor, shift: Tensor, scale: Tensor, eps: float) -> Tensor:
    """LayerNorm without weights, times `scale`, plus `shift`.

    Args:
        x: [batch, tokens, dim].
        shift: [dim] where all tokens share it, else [batch, frames, 1, dim].
        scale: Shaped as `shift`; 1 has been added.
        eps: Of the norm.
    """
    if shift.dim() == 1:
        return F.layer_norm(x, shift.shape, scale, shift, eps)
    return torch.addcmul(shift, by_frame(F.layer_norm(x, x.shape[-1:], eps=eps), shift), scale).view(x.shape)


def gated_sum(x: Tensor, y: Tensor, gate: Tensor) -> Tensor:
    """x + gate * y; both [batch, tokens, dim], gate as the shift of `modulated_norm`."""
    if gate.dim() == 1:
        return torch.addcmul(x, y, gate)
    return torch.addcmul(by_frame(x, gate), by_frame(y, gate), gate).view(x.shape)


def by_frame(x: Tensor, modulation: Tensor) -> Tensor:
    """[batch, tokens, dim] -> [batch, frames, frame_tokens, dim], for a modulation of [batch, frames, 1, dim]."""
    return x.view(len(x), modulation.shape[1], -1, x.shape[-1])


def normed_heads(x: Tensor, norm: nn.Module, num_heads: int, rope: RotaryTable | None = None) -> Tensor:
    """Queries or keys, normalised over all heads together, split into heads and rotated.

    Args:
        x: [batch, tokens, dim]; any strides, the last axis contiguous. It is used up: the result may lie in its place.
        norm: `nn.RMSNorm`, or `nn.Identity` for a model without.
        num_heads: Heads.
        rope: Angles of the tokens; None leaves them unrotated.

    Returns:
        [batch, tokens, heads, head_dim], in the dtype of `x`; between norm and rotation all is float32.
    """
    if not isinstance(norm, nn.RMSNorm) or _must_be_plain(x, norm.weight):
        heads: Tensor = norm(x).unflatten(-1, (num_heads, -1))
        return heads if rope is None else rope.rotate(heads)
    if x.device.type == "cuda" and _has_triton():
        from forcing_kv.wan import triton_heads

        return triton_heads.normed_heads(x, norm.weight, norm.eps or 0.0, num_heads, rope)
    batch_size, num_tokens, dim = x.shape
    out = x.view(batch_size, num_tokens, num_heads, dim // num_heads)
    block_tokens = _block_tokens(x)
    room = torch.empty(batch_size * min(block_tokens, num_tokens) * dim, dtype=torch.float32, device=x.device)
    weight, eps = norm.weight.float(), norm.eps or 0.0
    for start in range(0, num_tokens, block_tokens):
        tokens = slice(start, min(start + block_tokens, num_tokens))
        block = room[: batch_size * (tokens.stop - start) * dim].view(batch_size, -1, dim)
        block.copy_(x[:, tokens])
        mean_square = torch.linalg.vector_norm(block, dim=-1, keepdim=True).square_().div_(dim)
        block.mul_(mean_square.add_(eps).rsqrt_()).mul_(weight)
        heads = block.view(batch_size, -1, num_heads, dim // num_heads)
        if rope is not None:
            torch.view_as_complex(heads.view(*heads.shape[:-1], -1, 2)).mul_(rope.turns[:, tokens])
        out[:, tokens].copy_(heads)
    return out


@cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


def _must_be_plain(x: Tensor, weight: Tensor) -> bool:
    needs_gradients = torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)
    return needs_gradients or x.dtype == torch.float64 or torch.compiler.is_compiling()


def _block_tokens(x: Tensor) -> int:
    """Tokens that are worked on together: on a GPU all of them, as every block is a launch of every kernel."""
    if x.device.type != "cpu":
        return x.shape[1]
    return max(1, CACHE_BYTES * torch.get_num_threads() // (4 * x.shape[0] * x.shape[2]))
