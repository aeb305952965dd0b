"""Peak of the memory that a block takes of its device: the host's, or what torch allocates on a GPU."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any

import torch

from forcing_kv.bench.host_memory import AnonymousMemory, tells_anonymous_memory


class CudaMemory:
    """Peak of torch's allocator over a `with` block, less what it held before: `taken_bytes`.

    Args:
        device: Which GPU; None for the current one.
    """

    taken_bytes = 0

    def __init__(self, device: torch.device | None = None) -> None:
        self._device = device

    def __enter__(self) -> "CudaMemory":
        torch.cuda.reset_peak_memory_stats(self._device)
        self._before = torch.cuda.memory_allocated(self._device)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.taken_bytes = torch.cuda.max_memory_allocated(self._device) - self._before


PEAK_MEMORY: dict[str, Callable[[], AbstractContextManager[Any]]] = {"cpu": AnonymousMemory, "cuda": CudaMemory}
"""By the type of the device; a block's peak is its `taken_bytes`."""


def peak_meter(device: torch.device) -> AnonymousMemory | CudaMemory | None:
    """A meter for what a block takes of this device; None where the system does not tell."""
    if device.type == "cuda":
        return CudaMemory(device)
    return AnonymousMemory() if device.type == "cpu" and tells_anonymous_memory() else None
