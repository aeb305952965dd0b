"""Our own Triton kernel as a back end: one launch for all heads of a layer, however many keys each of them reads."""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from forcing_kv.attention.backend import AttentionBackend, GroupKV, Placement, check_no_gradients
from forcing_kv.attention.requirements import lacks_capability, lacks_dtype, lacks_head_dim, lacks_package
from forcing_kv.errors import ConfigurationError

INTERPRETER_VARIABLE = "TRITON_INTERPRET"
"""Set to 1 before Triton is first imported, its kernels run in Python, on the CPU, for tests."""

DTYPES = (torch.bfloat16, torch.float16, torch.float32)


@dataclass(frozen=True, kw_only=True)
class Tiles:
    """How the kernel cuts its work; none changes the result but for rounding.

    Attributes:
        queries: Taken by a program; a power of 2, at least 16.
        keys: Taken by it at a time; likewise.
        num_warps: That share the work of a program.
        num_stages: Blocks of keys on their way at once.
    """

    queries: int
    keys: int
    num_warps: int
    num_stages: int


TILES = {
    64: Tiles(queries=128, keys=64, num_warps=4, num_stages=3),
    128: Tiles(queries=128, keys=64, num_warps=8, num_stages=3),
    256: Tiles(queries=64, keys=32, num_warps=8, num_stages=2),
}
"""By the largest head_dim they are for, in halved precision. On Hopper they compile without spilling registers; which
are fastest has not been measured (`benchmarks/attention.py --tiles` does)."""
FLOAT32_TILES = Tiles(queries=32, keys=32, num_warps=8, num_stages=2)


def attend_by_triton(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """One launch for heads that all read the same keys; see `attend_together`."""
    return attend_together(q, [GroupKV(places=tuple(range(q.shape[2])), keys=k, values=v)])


def attend_together(q: Tensor, groups: Sequence[GroupKV], *, tiles: Tiles | None = None) -> Tensor:
    """One launch over all heads; torch.compile sees one operator, a CUDA graph one kernel.

    Args:
        q: Queries [batch, query_tokens, heads, head_dim].
        groups: What the heads read; every head is in one group, every group has a key.
        tiles: How to cut the work; None for what suits `q`.

    Returns:
        [batch, query_tokens, heads, head_dim], contiguous.

    Raises:
        ConfigurationError: Gradients are needed, or keys are of another dtype than queries.
    """
    check_no_gradients(TRITON.name, q)
    for group in groups:
        if group.keys.dtype != q.dtype or group.values.dtype != q.dtype:
            raise ConfigurationError(
                f"attention back end 'triton': queries are {q.dtype}, keys {group.keys.dtype} and values "
                f"{group.values.dtype}; they must be of one dtype"
            )
    parts = launch_order(groups)
    tiles = tiles or _tiles_for(q)
    out: Tensor = _attend_operator(
        q,
        [part.keys for part in parts],
        [part.values for part in parts],
        [part.places[0] for part in parts],
        [tiles.queries, tiles.keys, tiles.num_warps, tiles.num_stages],
    )
    return out


def launch_order(groups: Sequence[GroupKV]) -> list[GroupKV]:
    """The groups, cut into runs of heads that lie side by side in the queries, those with most keys first."""
    parts = []
    for group in groups:
        starts = [i for i, place in enumerate(group.places) if i == 0 or place != group.places[i - 1] + 1]
        for start, stop in zip(starts, [*starts[1:], len(group.places)], strict=True):
            heads = slice(start, stop)
            parts.append(
                GroupKV(places=group.places[heads], keys=group.keys[:, :, heads], values=group.values[:, :, heads])
            )
    return sorted(parts, key=lambda part: -part.keys.shape[1])


@torch.library.custom_op("forcing_kv::attend_by_triton", mutates_args=())
def _attend_operator(
    q: Tensor, keys: list[Tensor], values: list[Tensor], first_places: list[int], tiles: list[int]
) -> Tensor:
    from forcing_kv.attention.triton_kernel import attend_kernel

    q, *keys_values = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, *keys, *values))
    keys, values = keys_values[: len(keys)], keys_values[len(keys) :]
    batch_size, num_queries, num_heads, head_dim = q.shape
    first_rows = [0, *accumulate(k.shape[2] for k in keys)]
    assert first_rows.pop() == num_heads, "every head is in one group"
    queries_per_program, keys_at_once, num_warps, num_stages = tiles
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    with torch.cuda.device_of(q):
        attend_kernel[(-(-num_queries // queries_per_program), batch_size, num_heads)](
            q,
            out,
            tuple(keys),
            tuple(values),
            tuple(stride for k in keys for stride in k.stride()[:3]),
            tuple(stride for v in values for stride in v.stride()[:3]),
            tuple(k.shape[1] for k in keys),
            tuple(first_places),
            tuple(first_rows),
            num_queries,
            *q.stride()[:3],
            *out.stride()[:3],
            math.log2(math.e) / head_dim**0.5,
            NUM_GROUPS=len(keys),
            HEAD_DIM=head_dim,
            DIM_BLOCK=1 << (head_dim - 1).bit_length(),
            QUERY_BLOCK=queries_per_program,
            KEY_BLOCK=keys_at_once,
            PRECISION="ieee" if q.dtype == torch.float32 else "tf32",
            WIDEN=_is_interpreted() and q.dtype == torch.bfloat16,
            num_warps=num_warps,
            num_stages=num_stages,
        )
    return out


@_attend_operator.register_fake
def _(q: Tensor, keys: list[Tensor], values: list[Tensor], first_places: list[int], tiles: list[int]) -> Tensor:
    return torch.empty(q.shape, dtype=q.dtype, device=q.device)


def _tiles_for(q: Tensor) -> Tiles:
    if q.dtype == torch.float32:
        return FLOAT32_TILES
    return next(tiles for most, tiles in TILES.items() if q.shape[-1] <= most)


def _is_interpreted() -> bool:
    return os.environ.get(INTERPRETER_VARIABLE) == "1"


def _lacks(placement: Placement) -> str | None:
    return (
        lacks_dtype(placement, DTYPES)
        or lacks_head_dim(placement, multiple_of=16, at_most=256)
        or lacks_package("triton", package="triton", since=(3, 3))  # the first whose kernels take tuples
        or (None if _is_interpreted() else _lacks_gpu(placement))
    )


def _lacks_gpu(placement: Placement) -> str | None:
    if placement.device.type != "cuda":
        return f"needs a GPU ({INTERPRETER_VARIABLE}=1 runs it on the CPU, for tests: far too slowly for videos)"
    return None if placement.capability is None else lacks_capability(placement, since=(8, 0))  # None: an AMD GPU


TRITON = AttentionBackend(
    name="triton",
    summary="our own kernel: one launch for all heads, each with its own number of keys",
    attend=attend_by_triton,
    attend_together=attend_together,
    lacks=_lacks,
)
