"""Launches of one layer side by side on a GPU, for back ends that take one length for all their heads.

A launch ends when its last tiles do, and meanwhile multiprocessors wait. On a stream of its own, the launch of the
shorter heads takes them as they get free: it is as if all heads were one launch, the longest first, for any kernel, and
wherever the buffers of the head groups lie.
"""

import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


def run_side_by_side(works: Sequence[Callable[[], Tensor]], *, device: torch.device) -> list[Tensor]:
    """The first work on the caller's stream, each other on one of its own; the caller's then waits for all.

    What a work reads must have been made on the caller's stream, or before.

    Args:
        works: The longest first; each gives a tensor that it allocates.
        device: Where they are done.

    Returns:
        Their results, in their order.
    """
    streams = torch.get_device_module(device)
    here = streams.current_stream(device)
    lanes = _lanes_beside(here, len(works) - 1, device)
    for lane in lanes:
        lane.stream.wait_stream(here)
        lane.result = None  # what has read it is among what was waited for
    results = [works[0]()]
    for work, lane in zip(works[1:], lanes, strict=True):
        with streams.stream(lane.stream):
            lane.result = work()
        results.append(lane.result)
    for lane in lanes:
        here.wait_stream(lane.stream)
    return results


class _Lane:
    """A stream beside the caller's.

    Attributes:
        stream: Of the device's own kind.
        result: Of its last work. The allocator gives what is freed to the lane's next work, at once; so it is held
            until the lane has waited for those that read it.
    """

    def __init__(self, stream: Any) -> None:
        self.stream = stream
        self.result: Tensor | None = None


_lanes = threading.local()


def _lanes_beside(here: Any, count: int, device: torch.device) -> list[_Lane]:
    """The lanes of a thread beside a stream: the same at every call, so that the next waits for the last."""
    beside: dict[Any, list[_Lane]] = vars(_lanes)
    lanes = beside.setdefault(here, [])
    while len(lanes) < count:
        lanes.append(_Lane(torch.get_device_module(device).Stream(device)))
    return lanes[:count]
