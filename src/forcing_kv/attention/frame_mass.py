"""Attention mass by key frame.

Softmax attention is linear in its values. So attention over values that are 1 at the tokens of one frame and 0 at all
others returns the mass on that frame, and a head has room for as many frames as it has values. The back end of `attend`
does the work: the softmax is its own, nothing of tokens x tokens exists, and to measure a pass costs about one more
attention call. In bfloat16 weights and outputs are rounded as in any attention, a mass by at most 2^-7 of itself; a
score, which is a mean over queries, moves by less than 1e-3.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from forcing_kv.attention import attend

MAX_TEMPORARY_BYTES = 64 * 1024**2
"""Size of the largest tensor that is made on the way, unless the keys of a single head are larger."""


def frame_mass(q: Tensor, k: Tensor, *, frame_tokens: int, max_bytes: int = MAX_TEMPORARY_BYTES) -> Tensor:
    """How much softmax weight each query puts on each key frame.

    Args:
        q: [batch, queries, heads, head_dim].
        k: [batch, frames * frame_tokens, heads, head_dim].
        frame_tokens: Tokens per latent frame.
        max_bytes: Of the largest temporary: so many heads are taken at once, and at least one.

    Returns:
        [batch, queries, heads, frames], float32, frames in the order in which they lie in `k`; each row adds up to 1.
    """
    batch_size, num_keys, num_heads, head_dim = k.shape
    num_frames = num_keys // frame_tokens
    heads_at_once = min(num_heads, max(1, max_bytes // k[:, :, :1].nbytes))
    by_frames = []
    for first in range(0, num_frames, head_dim):
        marks = torch.eye(num_frames, dtype=k.dtype, device=k.device)[:, first : first + head_dim]
        num_marked = marks.shape[1]
        # Written out for every head: fused kernels have gone wrong on values that are a broadcast view.
        marks = F.pad(marks, (0, head_dim - num_marked))[None, :, None, None]
        values = marks.expand(batch_size, -1, frame_tokens, heads_at_once, -1).reshape(
            batch_size, num_keys, heads_at_once, head_dim
        )
        by_heads = []
        for head in range(0, num_heads, heads_at_once):
            heads = slice(head, min(head + heads_at_once, num_heads))
            mass = attend(q[:, :, heads], k[:, :, heads], values[:, :, : heads.stop - heads.start])
            by_heads.append(mass[..., :num_marked].float())
        by_frames.append(torch.cat(by_heads, dim=2))
    return torch.cat(by_frames, dim=-1)
