"""torch's FlexAttention, compiled.

A launch per head group: within a group all heads read all keys, so there is nothing to mask. Its lengths per head
(a block mask with a head axis) would need all heads' keys in one tensor.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from forcing_kv.attention.backend import AttentionBackend, Placement, check_no_gradients
from forcing_kv.attention.dense import LOW_PRECISION
from forcing_kv.attention.requirements import lacks_dtype
from forcing_kv.devices import lacks_compiler

_DEVICES = ("cuda", "cpu")
_MIN_HEAD_DIM = 16


def attend_by_flex(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Compiled on first use, for lengths of any kind.

    Raises:
        ConfigurationError: Gradients are needed; on a CPU its compiled form computes none.
    """
    check_no_gradients(FLEX.name, q, k, v)
    out: Tensor = _compiled()(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
    return out.transpose(1, 2)


@cache
def _compiled() -> Callable[..., Any]:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=True)


def _lacks(placement: Placement) -> str | None:
    missing = lacks_dtype(placement, (*LOW_PRECISION, torch.float32))
    if placement.head_dim & (placement.head_dim - 1) or placement.head_dim < _MIN_HEAD_DIM:
        missing = missing or f"needs a power of 2 of values per head, at least {_MIN_HEAD_DIM}"
    if placement.device.type not in _DEVICES:
        return missing or f"needs one of: {', '.join(_DEVICES)}"
    compiler = lacks_compiler(placement.device)
    return missing or (None if compiler is None else f"needs {compiler}")


FLEX = AttentionBackend(
    name="flex",
    summary="torch's FlexAttention, compiled on first use",
    attend=attend_by_flex,
    lacks=_lacks,
)
