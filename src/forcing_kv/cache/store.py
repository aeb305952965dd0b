"""How keys and values lie in memory: as they are, or quantised.

A `TokenStore` is a row of tokens that can be written, read and moved; what they mean is the buffer's business. All its
tensors ("planes") have the token axis at the same place, so a move is the same slice copied in each of them. Quantised,
a plane of small numbers has a plane of scales beside it, one per token and head, and whatever attention reads is
expanded into a workspace that all stores of a cache share.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from forcing_kv.errors import ConfigurationError, UnknownNameError

SCALE_DTYPE = torch.bfloat16
"""Numbers are divided by the scale as it is stored, so that its rounding adds no error."""


@dataclass(frozen=True, kw_only=True)
class QuantisedFormat:
    """A small number format.

    Attributes:
        dtype: Of the stored numbers.
        largest: The largest number of a token and head becomes this.
    """

    dtype: torch.dtype
    largest: float

    def quantise(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """[..., head_dim] -> numbers shaped as `x`, and scales [..., 1]."""
        scales = (x.abs().amax(dim=-1, keepdim=True).float() / self.largest).to(SCALE_DTYPE)
        scales = scales.clamp_min(torch.finfo(SCALE_DTYPE).tiny)
        numbers = (x.float() / scales.float()).clamp(-self.largest, self.largest)
        return (numbers if self.dtype.is_floating_point else numbers.round()).to(self.dtype), scales


KV_DTYPES = {
    "int8": QuantisedFormat(dtype=torch.int8, largest=127),
    "fp8": QuantisedFormat(dtype=torch.float8_e4m3fn, largest=448),
}
"""What `kv_dtype` may be, besides None for the dtype of the model."""


def quantised_format(kv_dtype: str | None) -> QuantisedFormat | None:
    """By its name; None for keys and values as they are.

    Raises:
        UnknownNameError: No such format.
    """
    if kv_dtype is None:
        return None
    if kv_dtype not in KV_DTYPES:
        raise UnknownNameError("kv_dtype", kv_dtype, KV_DTYPES)
    return KV_DTYPES[kv_dtype]


def check_kv_dtype(kv_dtype: str | None, *, positions: str) -> None:
    """Refuses a format that is unknown, or cannot be had where positions are relative.

    Raises:
        UnknownNameError: No such format.
        ConfigurationError: Relative positions turn stored keys at every chunk; quantised ones would wear off.
    """
    if quantised_format(kv_dtype) is not None and positions == "relative":
        raise ConfigurationError(
            f"kv_dtype={kv_dtype!r} does not go with relative positions, which turn stored keys at every chunk; use "
            "absolute positions, or leave keys and values as they are"
        )


def head_token_bytes(head_dim: int, dtype: torch.dtype, kv_dtype: str | None) -> int:
    """Bytes that key and value of one head and token take in a store."""
    quantised = quantised_format(kv_dtype)
    if quantised is None:
        return 2 * head_dim * dtype.itemsize
    return 2 * (head_dim * quantised.dtype.itemsize + SCALE_DTYPE.itemsize)


class TokenStore(Protocol):
    """Keys and values of a row of tokens."""

    @property
    def nbytes(self) -> int:
        """Bytes allocated."""
        ...

    @property
    def planes(self) -> tuple[Tensor, ...]:
        """What is allocated, the token axis being the third of each."""
        ...

    def resized(self, num_tokens: int) -> "TokenStore":
        """An empty store of the same kind; tokens are counted from the right when it is filled (`take`)."""
        ...

    def write(self, start: int, k: Tensor, v: Tensor) -> None:
        """Puts tokens [batch, tokens, heads, head_dim] in place."""
        ...

    def read(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Keys and values of a run of tokens, valid until any store of the cache is read again."""
        ...

    def read_with_current(self, start: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """As `read` to the end, where `k` and `v` have just been written there: they are given as they came."""
        ...

    def keys(self, start: int, stop: int) -> Tensor:
        """Keys of a run of tokens; valid for longer."""
        ...


class PlainStore:
    """Keys (0) and values (1) as they are, [2, batch, tokens, heads, head_dim]; what it reads are views.

    Args:
        shape: Of its one plane.
        dtype: Of keys and values.
        device: Where they lie.
    """

    def __init__(self, shape: Sequence[int], *, dtype: torch.dtype, device: torch.device) -> None:
        self.kv = torch.zeros(tuple(shape), dtype=dtype, device=device)

    @property
    def planes(self) -> tuple[Tensor, ...]:
        """See `TokenStore`."""
        return (self.kv,)

    @property
    def nbytes(self) -> int:
        """See `TokenStore`."""
        return self.kv.nbytes

    def resized(self, num_tokens: int) -> "PlainStore":
        """See `TokenStore`."""
        shape = (*self.kv.shape[:2], num_tokens, *self.kv.shape[3:])
        return PlainStore(shape, dtype=self.kv.dtype, device=self.kv.device)

    def write(self, start: int, k: Tensor, v: Tensor) -> None:
        """See `TokenStore`."""
        place = self.kv[:, :, start : start + k.shape[1]]
        place[0].copy_(k)
        place[1].copy_(v)

    def read(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """See `TokenStore`."""
        held = self.kv[:, :, start:stop]
        return held[0], held[1]

    def read_with_current(self, start: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """See `TokenStore`."""
        return self.read(start, self.kv.shape[2])

    def keys(self, start: int, stop: int) -> Tensor:
        """See `TokenStore`."""
        return self.kv[0, :, start:stop]


class Workspace:
    """Room in which the stores of a cache expand what is read, one after the other.

    Attributes:
        values: One run of numbers, as large as the largest store that has asked for room.
    """

    def __init__(self, *, dtype: torch.dtype, device: torch.device) -> None:
        self.values = torch.empty(0, dtype=dtype, device=device)

    @property
    def nbytes(self) -> int:
        """Bytes allocated."""
        return self.values.nbytes

    def reserve(self, num_values: int) -> None:
        """Makes room for at least that many numbers."""
        if num_values > len(self.values):
            self.resize(num_values)

    def resize(self, num_values: int) -> None:
        """Makes room for exactly that many numbers."""
        self.values = self.values.new_empty(num_values)

    def shaped(self, shape: Sequence[int]) -> Tensor:
        """Its beginning, in a shape."""
        num_values = 1
        for length in shape:
            num_values *= length
        return self.values[:num_values].view(*shape)


class QuantisedStore:
    """Small numbers and their scales; what it reads is expanded into a workspace.

    Args:
        shape: As of a `PlainStore`.
        form: The small numbers.
        workspace: Shared with other stores.
    """

    def __init__(self, shape: Sequence[int], *, form: QuantisedFormat, workspace: Workspace) -> None:
        self._form = form
        self._workspace = workspace
        device = workspace.values.device
        self.numbers = torch.zeros(tuple(shape), dtype=form.dtype, device=device)
        self.scales = torch.zeros((*shape[:-1], 1), dtype=SCALE_DTYPE, device=device)
        workspace.reserve(self.numbers.numel())

    @property
    def planes(self) -> tuple[Tensor, ...]:
        """See `TokenStore`."""
        return self.numbers, self.scales

    @property
    def nbytes(self) -> int:
        """See `TokenStore`; the workspace is not counted."""
        return self.numbers.nbytes + self.scales.nbytes

    def resized(self, num_tokens: int) -> "QuantisedStore":
        """See `TokenStore`."""
        shape = (*self.numbers.shape[:2], num_tokens, *self.numbers.shape[3:])
        return QuantisedStore(shape, form=self._form, workspace=self._workspace)

    def write(self, start: int, k: Tensor, v: Tensor) -> None:
        """See `TokenStore`."""
        for part, values in enumerate((k, v)):
            numbers, scales = self._form.quantise(values)
            self.numbers[part, :, start : start + k.shape[1]].copy_(numbers)
            self.scales[part, :, start : start + k.shape[1]].copy_(scales)

    def read(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """See `TokenStore`."""
        room = self._room(stop - start)
        self._expand(start, stop, room)
        return room[0], room[1]

    def read_with_current(self, start: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """See `TokenStore`."""
        num_history = self.numbers.shape[2] - k.shape[1] - start
        room = self._room(num_history + k.shape[1])
        self._expand(start, start + num_history, room[:, :, :num_history])
        room[0, :, num_history:].copy_(k)
        room[1, :, num_history:].copy_(v)
        return room[0], room[1]

    def keys(self, start: int, stop: int) -> Tensor:
        """See `TokenStore`."""
        dtype = self._workspace.values.dtype
        return self.numbers[0, :, start:stop].to(dtype) * self.scales[0, :, start:stop].to(dtype)

    def _room(self, num_tokens: int) -> Tensor:
        batch_size, _, num_heads, head_dim = self.numbers.shape[1:]
        return self._workspace.shaped((2, batch_size, num_tokens, num_heads, head_dim))

    def _expand(self, start: int, stop: int, room: Tensor) -> None:
        room.copy_(self.numbers[:, :, start:stop])
        room.mul_(self.scales[:, :, start:stop])


class Storage:
    """Makes the stores of one cache.

    Args:
        dtype: Of the model's keys and values.
        kv_dtype: How they are stored: a name of `KV_DTYPES`, or None for as they are.
        device: Where.

    Raises:
        UnknownNameError: No such format.
    """

    def __init__(self, *, dtype: torch.dtype, kv_dtype: str | None, device: torch.device) -> None:
        self._dtype, self._device = dtype, device
        self._form = quantised_format(kv_dtype)
        self._workspace = Workspace(dtype=dtype, device=device)

    @property
    def workspace_bytes(self) -> int:
        """Bytes of what the stores share."""
        return self._workspace.nbytes

    @property
    def shares_room(self) -> bool:
        """Whether what one store gives to be read is gone when the next is read."""
        return self._form is not None

    @property
    def workspace_address(self) -> int:
        """Where what the stores share lies."""
        return self._workspace.values.data_ptr()

    def give_back_room(self, stores: Iterable[TokenStore]) -> None:
        """Lets what is shared be no larger than these stores, the only ones left, need."""
        if self._form is not None:
            self._workspace.resize(max(store.planes[0].numel() for store in stores))

    def store(self, shape: Sequence[int]) -> TokenStore:
        """An empty store, [2, batch, tokens, heads, head_dim]."""
        if self._form is None:
            return PlainStore(shape, dtype=self._dtype, device=self._device)
        return QuantisedStore(shape, form=self._form, workspace=self._workspace)


def move(store: TokenStore, source: int, target: int, num_tokens: int) -> None:
    """Copies a run of tokens within a store; the two must not overlap."""
    for plane in store.planes:
        plane[:, :, target : target + num_tokens].copy_(plane[:, :, source : source + num_tokens])


def take(
    store: TokenStore, target: int, other: TokenStore, source: int, num_tokens: int, *, heads: Sequence[int] | slice
) -> None:
    """Copies a run of tokens of another store of the same kind, of these of its heads."""
    for own, theirs in zip(store.planes, other.planes, strict=True):
        own[:, :, target : target + num_tokens].copy_(theirs[:, :, source : source + num_tokens, heads])


def gather(store: TokenStore, target: int, tokens: Tensor) -> None:
    """Copies single tokens within a store, [batch, count] int64 of each item, to where they lie side by side."""
    for plane in store.planes:
        place = plane[:, :, target : target + tokens.shape[1]]
        for item, item_tokens in enumerate(tokens):
            place[:, item].copy_(plane[:, item].index_select(1, item_tokens))
