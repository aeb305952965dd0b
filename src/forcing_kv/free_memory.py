"""How much memory a device has to give, now."""

from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import torch

CGROUP_ROOT = Path("/sys/fs/cgroup")
OWN_CGROUPS = Path("/proc/self/cgroup")


def free_bytes(device: torch.device) -> int | None:
    """Bytes that tensors on the device may still take; None for a kind of device that cannot be asked."""
    ask = _FREE_BYTES.get(device.type)
    return None if ask is None else ask(device)


def cgroup_free_bytes(root: Path = CGROUP_ROOT, own_cgroups: Path = OWN_CGROUPS) -> int | None:
    """What is left under the tightest memory limit of the container or service this runs in; None where there is none.

    Pages of files count as used there, and are given up when memory is short, so they are taken as free.
    """
    return min(_cgroup_limits(root, own_cgroups), default=None)


def _free_on_cpu(_: torch.device) -> int:
    available = psutil.virtual_memory().available
    limited = cgroup_free_bytes()
    return available if limited is None else min(available, limited)


def _free_on_cuda(device: torch.device) -> int:
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # torch keeps what was freed
    return torch.cuda.mem_get_info(device)[0] + unused


def _free_on_mps(_: torch.device) -> int:
    """Memory is shared with the system; Metal names the share that a program should stay under."""
    return max(0, torch.mps.recommended_max_memory() - torch.mps.current_allocated_memory())


_FREE_BYTES: dict[str, Callable[[torch.device], int]] = {
    "cpu": _free_on_cpu,
    "cuda": _free_on_cuda,
    "mps": _free_on_mps,
}


def _cgroup_limits(root: Path, own_cgroups: Path) -> Iterator[int]:
    """What is left under each limit from the own group up to the root; version 2 and version 1."""
    try:
        memberships = [line.split(":", 2) for line in own_cgroups.read_text().splitlines()]
    except OSError:  # no Linux
        return
    for _, controllers, group in memberships:
        if not controllers:
            base, limit, usage = root, "memory.max", "memory.current"
        elif "memory" in controllers.split(","):
            base, limit, usage = root / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
        else:
            continue
        own = base / group.lstrip("/")
        # Seen from inside a container the own group may not be there; its root then is.
        for folder in (own, *(parent for parent in own.parents if parent.is_relative_to(base))):
            try:
                limit_text, used = (folder / limit).read_text().strip(), int((folder / usage).read_text())
                statistics = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            except OSError:
                continue
            if limit_text != "max":
                yield max(0, int(limit_text) - used + _file_pages(statistics))


def _file_pages(statistics: dict[str, str]) -> int:
    names = ("inactive_file", "active_file")
    prefix = "total_" if "total_inactive_file" in statistics else ""  # version 1: with the groups below
    return sum(int(statistics.get(prefix + name, 0)) for name in names)
