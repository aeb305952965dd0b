"""Back ends for heads that all read the same number of keys: torch's own attention, cuDNN's, and plain products."""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from forcing_kv.attention.backend import AttentionBackend, Placement
from forcing_kv.attention.requirements import lacks_capability, lacks_dtype, lacks_head_dim

LOW_PRECISION = (torch.bfloat16, torch.float16)

_CUDNN_MAX_HEAD_DIM = 128
"""On any such card and cuDNN; the newest take up to 256 on some."""


def attend_by_sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Whatever kernel torch picks."""
    return F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)).transpose(1, 2)


def attend_by_cudnn(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """cuDNN's kernel, and an error where it cannot be had: torch ranks it behind slower ones if it may pick."""
    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
        return attend_by_sdpa(q, k, v)


def attend_plainly(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Two matrix products and a softmax; holds the score matrix of all heads."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    out: Tensor = scores.softmax(dim=-1) @ v
    return out.transpose(1, 2)


def _cudnn_lacks(placement: Placement) -> str | None:
    return (
        lacks_capability(placement, since=(8, 0))
        or lacks_dtype(placement, LOW_PRECISION)
        or lacks_head_dim(placement, multiple_of=8, at_most=_CUDNN_MAX_HEAD_DIM)
        or _lacks_cudnn()
    )


def _lacks_cudnn() -> str | None:
    has_cudnn = torch.backends.cudnn.is_available()
    return None if has_cudnn else "needs a torch that was built with cuDNN"


SDPA = AttentionBackend(
    name="sdpa",
    summary="torch's scaled_dot_product_attention, with the kernel that torch picks",
    attend=attend_by_sdpa,
    lacks=lambda placement: None,
)
CUDNN = AttentionBackend(
    name="cudnn",
    summary="torch's scaled_dot_product_attention, with cuDNN's kernel forced",
    attend=attend_by_cudnn,
    lacks=_cudnn_lacks,
)
PLAIN = AttentionBackend(
    name="plain",
    summary="two matrix products and a softmax; holds all scores",
    attend=attend_plainly,
    lacks=lambda placement: None,
)
