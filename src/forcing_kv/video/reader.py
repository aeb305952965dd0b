"""Reading videos back: for tests, for tools, and to check what was written."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import av
import torch
from torch import Tensor

from forcing_kv.errors import OutputError


@dataclass(frozen=True, kw_only=True)
class VideoInfo:
    """What a video file says about itself; `num_frames` is counted from its packets, not from its header."""

    num_frames: int
    fps: float
    width: int
    height: int
    metadata: dict[str, str]


def read_video(path: str | Path) -> Tensor:
    """Decode a whole video.

    Returns:
        Frames [T, H, W, 3], uint8, RGB, on the CPU.

    Raises:
        OutputError: The file is missing or no video.
    """
    try:
        with av.open(str(path)) as container:
            frames = [torch.from_numpy(f.to_ndarray(format="rgb24")) for f in container.decode(video=0)]
    except (av.FFmpegError, IndexError) as error:
        raise OutputError(f"{path} cannot be read as a video: {error}") from error
    return torch.stack(frames)


def read_frames(path: str | Path, numbers: Sequence[int]) -> Tensor:
    """Decode a video and keep some of its frames; memory does not grow with its length.

    Args:
        path: The video.
        numbers: Frame numbers, rising.

    Returns:
        Frames [len(numbers), H, W, 3], uint8, RGB, on the CPU.

    Raises:
        OutputError: The file is missing, no video, or too short.
    """
    wanted, frames = set(numbers), []
    try:
        with av.open(str(path)) as container:
            for number, frame in enumerate(container.decode(video=0)):
                if number in wanted:
                    frames.append(torch.from_numpy(frame.to_ndarray(format="rgb24")))
    except (av.FFmpegError, IndexError) as error:
        raise OutputError(f"{path} cannot be read as a video: {error}") from error
    if len(frames) != len(wanted):
        raise OutputError(f"{path} is too short: frame {max(wanted)} was asked for")
    return torch.stack(frames)


def probe(path: str | Path) -> VideoInfo:
    """Size, rate, length and metadata of a video, without decoding it.

    Raises:
        OutputError: The file is missing or no video.
    """
    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            num_frames = sum(1 for packet in container.demux(stream) if packet.size)
            return VideoInfo(
                num_frames=num_frames,
                fps=float(stream.average_rate or 0),
                width=stream.width,
                height=stream.height,
                metadata=dict(container.metadata),
            )
    except (av.FFmpegError, IndexError) as error:
        raise OutputError(f"{path} cannot be read as a video: {error}") from error
