"""What a back end of attention is: a name, whether it can be had, and the functions that compute.

A back end attends to one head group at a time, all of whose heads read equally many keys; on a GPU the groups of a
layer are side by side, each on a stream of its own. One that takes a number of keys per head attends to all groups
together, in one launch, and is told how in `attend_together`.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from forcing_kv.attention.places import heads_at, join_heads
from forcing_kv.attention.side_by_side import run_side_by_side
from forcing_kv.errors import ConfigurationError


@dataclass(frozen=True, kw_only=True)
class Placement:
    """What a back end would have to work on.

    Attributes:
        device: Where the tensors lie.
        dtype: Of queries, keys and values.
        head_dim: Values of a head.
    """

    device: torch.device
    dtype: torch.dtype
    head_dim: int

    @property
    def capability(self) -> tuple[int, int] | None:
        """Compute capability of an NVIDIA GPU that is here; None for any other device."""
        if self.device.type != "cuda" or torch.version.cuda is None or not torch.cuda.is_available():
            return None
        return torch.cuda.get_device_capability(self.device)

    def __str__(self) -> str:
        return f"{self.device} in {str(self.dtype).removeprefix('torch.')} with {self.head_dim} values per head"


@dataclass(frozen=True, kw_only=True)
class GroupKV:
    """What the heads of one group read.

    Attributes:
        places: Where these heads lie in the queries, rising.
        keys: [batch, key_tokens, heads, head_dim], the heads in the order of `places`; any strides, the last axis
            contiguous.
        values: Shaped as `keys`.
    """

    places: tuple[int, ...]
    keys: Tensor
    values: Tensor


@dataclass(frozen=True, kw_only=True)
class AttentionBackend:
    """One way to compute softmax attention; all of them give the same, but for rounding.

    Attributes:
        name: In options and reports.
        summary: What it is, in a few words.
        attend: (q, k, v) -> output, as `forcing_kv.attend`: heads that all read the same number of keys.
        lacks: What is missing to work on a placement, in words; None where nothing is.
        attend_together: (q, groups) -> output, for groups that read different numbers of keys, in one launch; None for
            a back end that cannot.
    """

    name: str
    summary: str
    attend: Callable[[Tensor, Tensor, Tensor], Tensor]
    lacks: Callable[[Placement], str | None]
    attend_together: Callable[[Tensor, Sequence[GroupKV]], Tensor] | None = None

    @property
    def one_launch(self) -> bool:
        """Whether head groups of different lengths are one launch, and not one each."""
        return self.attend_together is not None

    def attend_groups(self, q: Tensor, groups: Iterable[GroupKV], *, one_by_one: bool = False) -> Tensor:
        """Attention of all heads of a layer.

        Args:
            q: Queries [batch, query_tokens, heads, head_dim].
            groups: What the heads read; every head is in one group.
            one_by_one: Each group is attended to before the next is taken from `groups`, as groups need that share
                their memory.

        Returns:
            [batch, query_tokens, heads, head_dim], in the dtype of `q`.
        """
        if self.attend_together is not None and not one_by_one:
            return self.attend_together(q, list(groups))
        if q.is_cuda and not one_by_one:
            return self.attend_side_by_side(q, list(groups))
        outputs, places = [], []
        for group in groups:
            outputs.append(self.attend(heads_at(q, group.places), group.keys, group.values))
            places.append(group.places)
        return join_heads(outputs, places)

    def attend_side_by_side(self, q: Tensor, groups: Sequence[GroupKV]) -> Tensor:
        """As `attend_groups`, each group in a launch and on a stream of its own."""
        longest_first = sorted(range(len(groups)), key=lambda index: -groups[index].keys.shape[1])
        works = [
            partial(self.attend, heads_at(q, group.places), group.keys, group.values)
            for group in (groups[index] for index in longest_first)
        ]
        results = dict(zip(longest_first, run_side_by_side(works, device=q.device), strict=True))
        return join_heads([results[index] for index in range(len(groups))], [group.places for group in groups])


def check_no_gradients(name: str, *tensors: Tensor) -> None:
    """Refuses tensors that need gradients, for a back end that computes none.

    Raises:
        ConfigurationError: One does.
    """
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        raise ConfigurationError(
            f"attention back end {name!r} computes no gradients; use 'sdpa', or call it under torch.no_grad()"
        )
