"""LPIPS: how far two pictures are apart for a network that sees about as people do.

The package `lpips` brings the weights of its last layers; those of the AlexNet below come from torchvision and must be
on this machine already. Where anything is missing the metric says what, and nothing is downloaded.
"""

from typing import Any

import numpy as np
import torch

from forcing_kv.evaluation.libraries import LPIPS as LPIPS_EXTRA
from forcing_kv.evaluation.libraries import downloaded_weights, library
from forcing_kv.evaluation.metrics.base import (
    Better,
    ChunkPair,
    Curve,
    Floats,
    Meter,
    Metric,
    Pixels,
    Series,
    Tools,
    chunk_means,
)

MIN_SIDE = 64
"""Pixels: of smaller pictures too little is left after the network's strides; they are enlarged to this."""

_DOWNLOAD = "import torchvision; torchvision.models.alexnet(weights='DEFAULT')"


def perceptual_distances(network: Any, frames: Pixels, reference: Pixels) -> Floats:
    """LPIPS of each frame.

    Args:
        network: An `lpips.LPIPS`.
        frames: uint8 [frames, H, W, 3].
        reference: The same.
    """
    device = next(network.parameters()).device
    with torch.no_grad():
        distances = network(_network_input(frames, device), _network_input(reference, device))
    return np.asarray(distances.flatten().double().cpu().numpy(), dtype=np.float64)


def _network_input(frames: Pixels, device: torch.device) -> torch.Tensor:
    """uint8 [frames, H, W, 3] -> float32 [frames, 3, H, W] in -1 to 1, at least `MIN_SIDE` each way."""
    pictures = torch.from_numpy(frames).to(device).permute(0, 3, 1, 2).float() / 127.5 - 1
    scale = MIN_SIDE / min(pictures.shape[-2:])
    if scale > 1:
        pictures = torch.nn.functional.interpolate(pictures, scale_factor=scale, mode="bilinear")
    return pictures


def _open(tools: Tools) -> Meter:
    lpips = library("lpips", what="LPIPS", extra=LPIPS_EXTRA)
    models = library("torchvision.models", what="LPIPS", extra=LPIPS_EXTRA)
    downloaded_weights(models.AlexNet_Weights.DEFAULT.url, what="LPIPS", command=_DOWNLOAD)
    network = lpips.LPIPS(net="alex", verbose=False).to(tools.device).eval()

    def measure(pair: ChunkPair) -> Floats:
        assert pair.reference_frames is not None
        return perceptual_distances(network, pair.frames, pair.reference_frames)

    return measure


DISTANCE = Series(name="lpips", per="frame", open=_open, against_reference=True)

LPIPS = Metric(
    name="lpips",
    title="LPIPS",
    group="Same video as the reference?",
    better=Better.LOWER,
    about="Learned perceptual distance to the reference's frames (AlexNet), mean over frames; 0 for identical videos. "
    "Closer to what people see than PSNR and SSIM; it too asks for the same video.",
    series=(DISTANCE,),
    against_reference=True,
    is_optional=True,
    compute=lambda video, reference: float(video.series[DISTANCE.name].mean()),
    curve=Curve(title="LPIPS of the chunk", of=lambda video, reference: chunk_means(video, DISTANCE.name, "frame")),
    digits=3,
)
