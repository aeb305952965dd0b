"""Reading videos: those given to go on from, and those that were written."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import av
import torch
from av.container import InputContainer
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


def iterate_frames(path: str | Path) -> Iterator[Tensor]:
    """Decode a video frame by frame; memory does not grow with its length.

    Yields:
        One frame after the other, [H, W, 3], uint8, RGB, on the CPU.

    Raises:
        OutputError: The file is missing or no video.
    """
    with _opened(path) as container:
        for frame in container.decode(video=0):
            yield torch.from_numpy(frame.to_ndarray(format="rgb24"))


def read_video(path: str | Path) -> Tensor:
    """Decode a whole video.

    Returns:
        Frames [T, H, W, 3], uint8, RGB, on the CPU.

    Raises:
        OutputError: The file is missing or no video.
    """
    return torch.stack(list(iterate_frames(path)))


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
    wanted = set(numbers)
    frames = [frame for number, frame in enumerate(iterate_frames(path)) if number in wanted]
    if len(frames) != len(wanted):
        raise OutputError(f"{path} is too short: frame {max(wanted)} was asked for")
    return torch.stack(frames)


def probe(path: str | Path) -> VideoInfo:
    """Size, rate, length and metadata of a video, without decoding it.

    Raises:
        OutputError: The file is missing or no video.
    """
    with _opened(path) as container:
        stream = container.streams.video[0]
        # A clip that was cut without encoding it again may begin with packets that are decoded but not shown.
        num_frames = sum(1 for packet in container.demux(stream) if packet.size and not packet.is_discard)
        return VideoInfo(
            num_frames=num_frames,
            fps=float(stream.average_rate or 0),
            width=stream.width,
            height=stream.height,
            metadata=dict(container.metadata),
        )


@contextmanager
def _opened(path: str | Path) -> Iterator[InputContainer]:
    """A container that holds a video; what goes wrong with it in the block is an `OutputError`."""
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise OutputError(f"{path} cannot be read as a video: it holds none")
            yield container
    except (OSError, av.FFmpegError) as error:
        raise OutputError(f"{path} cannot be read as a video: {error.strerror or error}") from error
