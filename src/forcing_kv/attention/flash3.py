"""FlashAttention-3, from the forward-only wheel `fa3-fwd`.

A launch per head group, side by side: lengths per head are there (`cache_seqlens`, with the heads as the batch), but
its keys are one tensor, so the short heads would have to be padded to the length of the long ones, and a cache would
hold the padding.
"""

import importlib
from functools import cache
from typing import Any

import torch
from torch import Tensor

from forcing_kv.attention.backend import AttentionBackend, Placement, check_no_gradients
from forcing_kv.attention.requirements import lacks_capability, lacks_dtype, lacks_head_dim, lacks_package

MODULE = "fa3_fwd_interface"


def attend_by_flash3(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The wheel's kernel, in the layout that it shares with us; an operator that torch.compile knows.

    Raises:
        ConfigurationError: Gradients are needed; the wheel has no backward pass.
    """
    check_no_gradients(FA3.name, q, k, v)
    out: Tensor = _interface().flash_attn_with_kvcache(q, k, v)
    return out


@cache
def _interface() -> Any:
    return importlib.import_module(MODULE)


def _lacks(placement: Placement) -> str | None:
    return (
        lacks_capability(placement, since=(8, 0), before=(10, 0))  # what the wheel is built for, and so are dtypes
        or lacks_dtype(placement, [torch.bfloat16])
        or lacks_head_dim(placement, multiple_of=8, at_most=256)
        or lacks_package(MODULE, package="fa3-fwd")
        or _fails_to_load()
    )


def _fails_to_load() -> str | None:
    try:
        _interface()
    except (ImportError, OSError) as error:  # a wheel for another CUDA or torch, most often
        return f"{MODULE} cannot be loaded: {str(error).partition(chr(10))[0]}"
    return None


FA3 = AttentionBackend(
    name="fa3",
    summary="FlashAttention-3, from the wheel fa3-fwd",
    attend=attend_by_flash3,
    lacks=_lacks,
)
