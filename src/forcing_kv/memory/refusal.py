"""The refusal of a run that its device cannot hold, with the flags that would make it fit.

The need is compared with what the device has. Where it is too much, what the flags at hand would save is computed, and
only those that are enough are named, each with its figure.
"""

import bisect
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from operator import methodcaller
from typing import Any

import torch

from forcing_kv import free_memory
from forcing_kv.cache import is_unbounded
from forcing_kv.errors import ConfigurationError, MemoryLimitError
from forcing_kv.geometry import pixel_frames
from forcing_kv.memory.need import PlannedStream
from forcing_kv.resolution import NAMED_RESOLUTIONS


def check_memory(stream: PlannedStream, *, free_bytes: int | None = None, loaded_bytes: int = 0) -> None:
    """Refuses a stream that its device cannot hold.

    Args:
        stream: What is asked for.
        free_bytes: What the device has to give; None asks it. Nothing is refused on a kind of device that cannot tell.
        loaded_bytes: How much of the need is on the device already, and so not in `free_bytes`.

    Raises:
        MemoryLimitError: It does not fit; the message has the figures, and the flags that would make it fit.
    """
    if free_bytes is None:
        free_bytes = free_memory.free_bytes(stream.device)
        if free_bytes is None:
            return
    available = free_bytes + loaded_bytes
    need = stream.need()
    if need.total_bytes <= available:
        return
    width, height = stream.resolution
    parts = ", ".join(f"{name} {_gigabytes(part)}" for name, part in need.parts().items() if part)
    loaded = f" ({_gigabytes(loaded_bytes)} of it loaded already)" if loaded_bytes else ""
    raise MemoryLimitError(
        f"{width}x{height} with policy {stream.policy.spec()} needs {_gigabytes(need.total_bytes)} GB: "
        f"{parts}{loaded}; {stream.device} has {_gigabytes(available, math.floor)} GB for it; "
        f"{_advice(stream, available)}; --skip-memory-check starts it all the same"
    )


def spare_bytes(stream: PlannedStream, *, loaded_bytes: int = 0) -> float:
    """What the device has beside all that the stream needs, below 0 where that is too much.

    Args:
        stream: What is to run.
        loaded_bytes: As in `check_memory`.
    """
    free = free_memory.free_bytes(stream.device)
    return math.inf if free is None else free + loaded_bytes - stream.need().total_bytes


@dataclass(frozen=True)
class _Change:
    """A flag, and the stream it makes of another."""

    flag: str
    apply: Callable[[PlannedStream], PlannedStream]


def _advice(stream: PlannedStream, available: int) -> str:
    """What to change: single flags that are enough, else several together, else a larger device."""
    kinds = _changes(stream, available)
    enough = [
        f"{change.flag} ({_gigabytes(_total(change.apply(stream)))} GB)"
        for change in (next((c for c in kind if _total(c.apply(stream)) <= available), None) for kind in kinds)
        if change is not None
    ]
    if enough:
        return f"it fits with {' or '.join(enough)}"
    together: list[str] = []
    smallest = stream
    for kind in kinds:
        for change in kind:
            total = _total(change.apply(smallest))
            if total <= available:
                return f"it fits with {' '.join([*together, change.flag])} ({_gigabytes(total)} GB)"
        best = min(kind, key=lambda change: _total(change.apply(smallest)))
        if _total(best.apply(smallest)) < _total(smallest):
            together.append(best.flag)
            smallest = best.apply(smallest)
    least = f"it needs a device with {_gigabytes(_total(smallest))} GB free"
    return f"no flag makes it fit: {least}{', and ' if together else ''}{' '.join(together)}"


def _changes(stream: PlannedStream, available: int) -> list[list[_Change]]:
    """What may be changed, kind by kind, in the order in which it is proposed; a kind is never empty."""
    width, height = stream.resolution
    smaller = {
        name: size
        for name, size in NAMED_RESOLUTIONS.items()
        if math.prod(size) < width * height and (size[0] < size[1]) == (width < height)
    }
    kinds = [
        [_set(f"--policy {policy.spec()}", policy=policy) for policy in stream.other_policies],
        [_set("--text-encoder-device cpu", text_encoder_bytes=0)] if stream.device.type != "cpu" else [],
        [_set("--dtype bfloat16", **_in_bfloat16(stream))] if stream.dtype.itemsize > torch.bfloat16.itemsize else [],
        [_set(f"num_videos={number}", batch_size=number) for number in range(stream.batch_size - 1, 0, -1)],
        [
            _Change(f"--resolution {name}", methodcaller("at_resolution", *smaller[name]))
            for name in sorted(smaller, key=lambda name: -math.prod(smaller[name]))
        ],
        _shorter(stream, available),
        [_set("--kv-dtype int8", options=replace(stream.options, kv_dtype="int8"))] if _may_quantise(stream) else [],
    ]
    return [kind for kind in kinds if kind]


def _in_bfloat16(stream: PlannedStream) -> dict[str, Any]:
    """What `--dtype bfloat16` changes: the decoder follows, unless it was given a dtype of its own."""
    decoder = stream.vae_dtype if stream.vae_dtype != stream.dtype else None
    return {"dtype": torch.bfloat16, "vae_dtype": decoder}


def _may_quantise(stream: PlannedStream) -> bool:
    return stream.options.kv_dtype is None and stream.options.positions == "absolute"


def _shorter(stream: PlannedStream, available: int) -> list[_Change]:
    """The longest video that fits, where the length matters."""
    if stream.num_chunks is None or not is_unbounded(stream.policy, stream.geometry):
        return []
    lengths = range(1, stream.num_chunks)
    num_fitting = bisect.bisect_right(lengths, available, key=lambda chunks: _total(replace(stream, num_chunks=chunks)))
    if not num_fitting:
        return []
    seconds = pixel_frames(num_fitting * stream.geometry.chunk_frames) / stream.fps
    flag = f"--chunks {num_fitting}" if stream.counts_chunks else f"--seconds {math.floor(100 * seconds) / 100:g}"
    return [_set(flag, num_chunks=num_fitting)]


def _set(flag: str, **settings: Any) -> _Change:
    return _Change(flag, lambda stream: replace(stream, **settings))


def _total(stream: PlannedStream) -> int:
    try:
        return stream.need().total_bytes
    except ConfigurationError:  # a proposal that does not work at this geometry fits nowhere
        return sys.maxsize


def _gigabytes(num_bytes: float, rounded: Callable[[float], int] = math.ceil) -> str:
    """Needs are rounded up, what there is down, so that a need that is too large reads larger."""
    digits = 1 if num_bytes >= 1e9 else 3
    return f"{rounded(num_bytes / 10 ** (9 - digits)) / 10**digits:,.{digits}f}"
