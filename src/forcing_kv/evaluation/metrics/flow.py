"""Optical flow: how far pictures move from one frame to the next.

Two kinds, by name: `dis`, dense inverse search (Kroeger et al. 2016), from OpenCV, quick and without weights; and
`raft` (Teed and Deng 2020), a network from torchvision, whose weights must be on this machine already. Their figures
are not comparable with each other, so the kind stands beside every figure that rests on it.
"""

from collections.abc import Callable
from itertools import pairwise
from typing import Protocol

import numpy as np
import torch
from torch.nn import functional as F

from forcing_kv.errors import UnknownNameError
from forcing_kv.evaluation.libraries import LPIPS, downloaded_weights, library
from forcing_kv.evaluation.metrics.base import ChunkPair, Floats, Meter, Pixels, Series, Tools

_RAFT_STRIDE = 8
_RAFT_MIN_SIDE = 128
_RAFT_BATCH = 8
_RAFT_DOWNLOAD = "from torchvision.models.optical_flow import raft_small; raft_small(weights='DEFAULT')"


class OpticalFlow(Protocol):
    """One kind of optical flow."""

    label: str
    """What stands beside its figures."""

    def magnitudes(self, frames: Pixels) -> Floats:
        """Mean length of the flow vectors between neighbouring frames: uint8 [frames, H, W, 3] -> pixels [frames-1]."""
        ...


class DisFlow:
    """OpenCV's dense inverse search at its medium preset, on luminance."""

    def __init__(self, device: torch.device) -> None:
        self._cv2 = library("cv2", what="optical flow")
        self._search = self._cv2.DISOpticalFlow_create(self._cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
        self.label = f"DIS (OpenCV {self._cv2.__version__})"

    def magnitudes(self, frames: Pixels) -> Floats:
        """See `OpticalFlow.magnitudes`."""
        grey = [self._cv2.cvtColor(frame, self._cv2.COLOR_RGB2GRAY) for frame in frames]
        flows = (self._search.calc(first, second, None) for first, second in pairwise(grey))
        return np.array([np.hypot(flow[..., 0], flow[..., 1]).mean(dtype=np.float64) for flow in flows])


class RaftFlow:
    """torchvision's small RAFT; pictures smaller than 128 pixels are enlarged for it, and its flow is scaled back."""

    def __init__(self, device: torch.device, *, network: torch.nn.Module | None = None) -> None:
        self._device = device
        if network is None:
            models = library("torchvision.models.optical_flow", what="RAFT", extra=LPIPS)
            weights = models.Raft_Small_Weights.DEFAULT
            downloaded_weights(weights.url, what="RAFT", command=_RAFT_DOWNLOAD)
            network = models.raft_small(weights=weights, progress=False)
        self._network = network.to(device).eval()
        self.label = "RAFT small (torchvision)"

    @torch.no_grad()
    def magnitudes(self, frames: Pixels) -> Floats:
        """See `OpticalFlow.magnitudes`."""
        pictures = torch.from_numpy(frames).permute(0, 3, 1, 2)
        height, width = pictures.shape[-2:]
        scale = max(1.0, _RAFT_MIN_SIDE / min(height, width))
        size = [-(-round(side * scale) // _RAFT_STRIDE) * _RAFT_STRIDE for side in (height, width)]
        to_pixels = torch.tensor([width / size[1], height / size[0]]).view(1, 2, 1, 1)
        lengths = []
        for start in range(0, len(frames) - 1, _RAFT_BATCH):
            part = pictures[start : start + _RAFT_BATCH + 1].to(self._device).float() / 127.5 - 1
            part = F.interpolate(part, size=size, mode="bilinear", antialias=True)
            flow = self._network(part[:-1], part[1:])[-1].cpu() * to_pixels
            lengths.append(flow.norm(dim=1).mean(dim=(1, 2)).double().numpy())
        return np.concatenate(lengths) if lengths else np.zeros(0)


FLOWS: dict[str, Callable[[torch.device], OpticalFlow]] = {"dis": DisFlow, "raft": RaftFlow}
"""Name on the command line -> what opens it, on a device. Raises `ConfigurationError` where something is missing."""


def open_flow(name: str, device: torch.device) -> OpticalFlow:
    """Opens a kind of optical flow by name.

    Raises:
        UnknownNameError: There is no such kind.
        ConfigurationError: Its library or weights are missing; the message says how they are had.
    """
    if name not in FLOWS:
        raise UnknownNameError("optical flow", name, FLOWS)
    return FLOWS[name](device)


def _open(tools: Tools) -> Meter:
    flow = open_flow(tools.flow, tools.device)

    def measure(pair: ChunkPair) -> Floats:
        frames = pair.frames if pair.previous is None else np.concatenate([pair.previous[None], pair.frames])
        return flow.magnitudes(frames)

    return measure


FLOW = Series(name="flow", per="pair", open=_open)
"""Mean flow magnitude of each pair of frames, in pixels."""
