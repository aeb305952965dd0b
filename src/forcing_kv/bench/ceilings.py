"""What the machine can do at best: the rate of a large matrix product and of a large copy, measured.

They bound every pass: it takes at least its operations over the one rate and its bytes over the other, unless the whole
model fits into the caches of the processor. Both are the best of several tries, in the dtype of the model, because a
ceiling is what can be reached and not what usually is.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from forcing_kv.bench.arithmetic import Work
from forcing_kv.devices import synchronize

COPY_BYTES = {"cpu": 2**28, "cuda": 2**29}
"""Size of the buffer that is copied, by kind of device: far more than its caches hold."""

_MATRIX_SIZES = (512, 1024, 2048, 4096, 8192)
_LONG_ENOUGH_SECONDS = 0.02
_MIN_TRIES, _MIN_TRIED_SECONDS = 3, 0.1


@dataclass(frozen=True, kw_only=True)
class Ceilings:
    """Rates that nothing on this machine exceeds, its caches aside.

    Attributes:
        matmul_flops_per_second: Of a square matrix product; a multiply-add counts 2.
        copy_bytes_per_second: Of a copy within the device's memory, bytes read and written together.
    """

    matmul_flops_per_second: float
    copy_bytes_per_second: float

    def least_ms(self, work: Work) -> float:
        """Milliseconds that work takes at least, computing and moving at the same time."""
        computing = work.flops / self.matmul_flops_per_second
        moving = work.bytes / self.copy_bytes_per_second
        return 1e3 * max(computing, moving)


def measure_ceilings(device: torch.device, dtype: torch.dtype) -> Ceilings:
    """Takes a second or so, and about 1 GB of the device for its length."""
    matmul, copy = _matmul_rate(device, dtype), _copy_rate(device, dtype)
    if device.type == "cuda":
        torch.cuda.empty_cache()  # what torch keeps of it would be missing later, in pieces
    return Ceilings(matmul_flops_per_second=matmul, copy_bytes_per_second=copy)


def _matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """The best over growing matrices, up to one that takes long enough for its start not to count."""
    best = 0.0
    for size in _MATRIX_SIZES:
        left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
        seconds = _best_seconds(partial(torch.mm, left, right, out=torch.empty_like(left)), device)
        best = max(best, 2 * size**3 / seconds)
        if seconds > _LONG_ENOUGH_SECONDS:
            break
    return best


def _copy_rate(device: torch.device, dtype: torch.dtype) -> float:
    num_bytes = COPY_BYTES.get(device.type, COPY_BYTES["cpu"])
    source = torch.zeros(num_bytes // dtype.itemsize, dtype=dtype, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / _best_seconds(lambda: target.copy_(source), device)


def _best_seconds(work: Callable[[], object], device: torch.device) -> float:
    """The quickest of several tries, after one that is not timed."""
    work()
    synchronize(device)
    tries: list[float] = []
    while len(tries) < _MIN_TRIES or sum(tries) < _MIN_TRIED_SECONDS:
        started = time.perf_counter()
        work()
        synchronize(device)
        tries.append(time.perf_counter() - started)
    return min(tries)
