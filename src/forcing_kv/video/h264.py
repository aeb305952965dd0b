"""H.264 in memory: frames to one MP4 that is readable everywhere."""

import io
import os
from collections.abc import Mapping
from typing import Literal

import av
from av.video.reformatter import ColorRange, Colorspace, VideoReformatter
from torch import Tensor

from forcing_kv.errors import ConfigurationError

CODEC: Literal["libx264"] = "libx264"

# No B-frames: a segment then starts at timestamp 0 without an edit list, and packets can be joined in file order.
# On one core, 12 frames of 64x96 take 3 ms with veryfast and 7 ms with medium, of 832x480 80 ms and 500 ms, for
# nearly the same size and error.
# No macroblock tree, and then no lookahead: x264's tree reads memory it never wrote, so that about one segment in a
# hundred came out with other bytes for the same frames. A seed gives the same file.
SEGMENT_OPTIONS = {"preset": "veryfast", "crf": "18", "bf": "0", "x264-params": "mbtree=0:rc-lookahead=0"}
"""Of a segment that is to be joined with others, of high quality."""

# Below this, starting threads costs more than they save (3 ms on one, 4 ms on two for 64x96).
_MIN_PIXELS_FOR_THREADS = 256 * 256
_MAX_THREADS = 8
_BT601 = 6  # H.264's number for SMPTE 170M: the colours that readers assume for small video and those blind to tags use


def check_codec() -> None:
    """Refuses to start work whose videos could not be written.

    Raises:
        ConfigurationError: The FFmpeg that PyAV runs on has no H.264 encoder.
    """
    try:
        av.Codec(CODEC, "w")
    except ValueError as error:  # av.codec.codec.UnknownCodecError is one
        raise ConfigurationError(
            f"videos cannot be written: the FFmpeg of this PyAV {av.__version__} has no H.264 encoder ({CODEC}); "
            "PyAV's own wheels have it: pip install --force-reinstall --only-binary av av"
        ) from error


def encode_mp4(frames: Tensor, *, fps: int, options: Mapping[str, str] = SEGMENT_OPTIONS) -> bytes:
    """One MP4, yuv420p at a constant rate, that decodes on its own.

    Args:
        frames: [T, H, W, 3], uint8, RGB, on any device; T >= 1, H and W even.
        fps: Frames per second.
        options: Of the encoder.
    """
    # Encoded in memory: a chunk is small, and a full disk is then Python's own, clear OSError.
    buffer = io.BytesIO()
    _, height, width, _ = frames.shape
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream(CODEC, rate=fps)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        is_small = width * height < _MIN_PIXELS_FOR_THREADS
        num_threads = 1 if is_small else min(_MAX_THREADS, os.cpu_count() or 1)
        stream.options = {**options, "threads": str(num_threads)}
        context = stream.codec_context
        context.colorspace = context.color_primaries = context.color_trc = _BT601
        context.color_range = ColorRange.MPEG
        reformatter = VideoReformatter()
        for picture in frames.cpu().contiguous().numpy():
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame = reformatter.reformat(
                frame,
                format="yuv420p",
                dst_colorspace=Colorspace.ITU601,
                dst_color_range=ColorRange.MPEG,
                threads=num_threads,
            )
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return buffer.getvalue()
