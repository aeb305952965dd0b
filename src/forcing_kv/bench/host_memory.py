"""Peak of the memory that a program really takes from the host."""

import ctypes
import threading
from pathlib import Path
from types import TracebackType

from forcing_kv.errors import ConfigurationError

SAMPLE_SECONDS = 0.002
_STATUS = Path("/proc/self/status")


class AnonymousMemory:
    """Watches this process's anonymous memory while a `with` block runs; files mapped into memory are not counted.

    Linux only. Sampled every two milliseconds, so a shorter peak can be missed. Memory that was freed before the block
    and kept by the allocator is given back to the system at its start, or taking it again would not be seen.

    Raises:
        ConfigurationError: The system does not tell anonymous memory apart.
    """

    def __init__(self) -> None:
        self.baseline_bytes = 0
        """At the start of the block."""
        self.peak_bytes = 0
        """Largest seen in the block, baseline included."""
        self._done = threading.Event()
        self._sampler = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> "AnonymousMemory":
        _give_back_freed_memory()
        self.baseline_bytes = self.peak_bytes = anonymous_bytes()
        self._sampler.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._done.set()
        self._sampler.join()

    @property
    def taken_bytes(self) -> int:
        """Peak over the baseline."""
        return self.peak_bytes - self.baseline_bytes

    def _sample(self) -> None:
        while not self._done.wait(SAMPLE_SECONDS):
            self.peak_bytes = max(self.peak_bytes, anonymous_bytes())
        self.peak_bytes = max(self.peak_bytes, anonymous_bytes())


def tells_anonymous_memory() -> bool:
    """Whether this system does."""
    return _STATUS.exists()


def anonymous_bytes() -> int:
    """Anonymous memory of this process now."""
    if tells_anonymous_memory():
        for line in _STATUS.read_text().splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024
    raise ConfigurationError("this system does not tell anonymous memory apart; run on Linux")


def _give_back_freed_memory() -> None:
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's; other allocators keep less
    if trim is not None:
        trim(0)
