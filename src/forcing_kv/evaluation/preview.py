"""Small copies of videos, to lie within a page."""

import base64
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from forcing_kv.video import iterate_frames, probe
from forcing_kv.video.h264 import SEGMENT_OPTIONS, encode_mp4

MAX_WIDTH = 320
"""Pixels; wider videos are made smaller."""

_OPTIONS = {**SEGMENT_OPTIONS, "preset": "medium", "crf": "26"}


def preview(path: Path) -> bytes:
    """An H.264 MP4 of a video, at most `MAX_WIDTH` pixels wide.

    Raises:
        OutputError: It cannot be read.
    """
    info = probe(path)
    scale = min(1.0, MAX_WIDTH / info.width)
    width, height = (max(2, 2 * round(side * scale / 2)) for side in (info.width, info.height))
    frames = torch.stack([_resized(picture, width, height) for picture in iterate_frames(path)])
    return encode_mp4(frames, fps=round(info.fps), options=_OPTIONS)


def data_uri(content: bytes, kind: str) -> str:
    """Content as an address that holds it, such as `data:video/mp4;base64,...`."""
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"


def _resized(picture: Tensor, width: int, height: int) -> Tensor:
    """uint8 [H, W, 3] -> uint8 [height, width, 3]."""
    if tuple(picture.shape[:2]) == (height, width):
        return picture
    pixels = picture.permute(2, 0, 1)[None].float()
    smaller = F.interpolate(pixels, size=(height, width), mode="bilinear", antialias=True)
    return smaller[0].round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0)
