"""H.264 video, written chunk by chunk, that survives a crash.

While `OUT` is being made, the folder `OUT.partial/` holds one finished segment per chunk (`segment-00000.mp4`, a closed
group of pictures that decodes on its own), the request it belongs to (`request.json`) and room for the newest snapshot
of the stream (`snapshot.safetensors`). `finish` joins the segments by copying their packets, without encoding anything
again, and moves the result to `OUT`: under its own name a video is complete or not there at all.
"""

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any, Self

import av
import torch
from av.video.stream import VideoStream
from torch import Tensor

from forcing_kv.errors import ConfigurationError, OutputError
from forcing_kv.output_files import atomic_write, check_output_file, check_output_folder, reason
from forcing_kv.video.h264 import check_codec, encode_mp4
from forcing_kv.video.reader import VideoInfo, probe

DEFAULT_FPS = 16
"""Pixel frames per second of the Wan models."""


class VideoWriter:
    """Writes one MP4: yuv420p, constant frame rate, readable everywhere.

    Make one with `VideoWriter(path)` for a new video, or with `VideoWriter.resume(path)` to go on with one whose
    process died; then `write` each chunk and `finish`.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        fps: int = DEFAULT_FPS,
        title: str = "",
        metadata: Mapping[str, Any] | None = None,
        overwrite: bool = False,
    ) -> None:
        """Start a new video.

        Args:
            path: Where the finished file goes; ends in `.mp4`.
            fps: Pixel frames per second.
            title: The container's title tag; usually the prompt.
            metadata: What JSON can hold, for the container's comment tag: prompt, seed, model, policy, version.
            overwrite: Replace a finished file of this name, at the end, and drop an unfinished one, now.

        Raises:
            OutputError: See `check_video_path`.
        """
        self._set_up(path, fps, title, metadata)
        check_video_path(self.path, overwrite=overwrite)
        try:
            if self.partial_folder.exists():
                shutil.rmtree(self.partial_folder)
            self.partial_folder.mkdir()
        except OSError as error:
            raise OutputError(f"{self.partial_folder} cannot be made: {reason(error)}") from error
        with atomic_write(self.partial_folder / "request.json") as temporary:
            temporary.write_text(json.dumps(self._request, indent=2))

    @classmethod
    def resume(
        cls,
        path: str | Path,
        *,
        fps: int = DEFAULT_FPS,
        title: str = "",
        metadata: Mapping[str, Any] | None = None,
    ) -> Self:
        """Go on with an unfinished video; say with `keep_segments` how much of it.

        Args:
            path: As given to the writer that started it.
            fps: As given to the writer that started it.
            title: As given to the writer that started it.
            metadata: As given to the writer that started it.

        Raises:
            OutputError: There is nothing to resume, or the unfinished video was asked for with other settings.
        """
        writer = cls.__new__(cls)
        writer._set_up(path, fps, title, metadata)
        writer._check_same_request()
        for stale in writer.partial_folder.glob(".*.tmp"):
            stale.unlink()
        while (segment := writer._segment_path(writer.num_segments)).exists():
            writer._infos.append(probe(segment))
        return writer

    def keep_segments(self, num_segments: int) -> None:
        """Drop all segments but the first ones: those that the snapshot covers.

        Raises:
            OutputError: There are fewer.
        """
        if num_segments > self.num_segments:
            raise OutputError(
                f"{self.partial_folder} holds {self.num_segments} segments where its snapshot needs {num_segments}: "
                "start over with --overwrite"
            )
        while self.num_segments > num_segments:
            self._segment_path(self.num_segments - 1).unlink()
            self._infos.pop()

    @property
    def snapshot_path(self) -> Path:
        """Where the driver keeps the newest snapshot of the stream, written with `output_files.atomic_write`."""
        return snapshot_path(self.path)

    @property
    def num_segments(self) -> int:
        """Segments finished so far: chunks written."""
        return len(self._infos)

    @property
    def num_frames(self) -> int:
        """Pixel frames written so far."""
        return sum(info.num_frames for info in self._infos)

    @property
    def info(self) -> VideoInfo:
        """Size and rate of what was written; `num_frames` is that of all segments together."""
        return replace(self._infos[0], num_frames=self.num_frames)

    def write(self, frames: Tensor) -> None:
        """Encode one chunk into a segment of its own.

        Args:
            frames: [T, H, W, 3], uint8, RGB, on any device; T >= 1, H and W even and the same for every chunk.

        Raises:
            ConfigurationError: Frames of a shape that cannot be written.
            OutputError: The segment cannot be written; those before it are kept.
        """
        info = self._check_frames(frames)
        with atomic_write(self._segment_path(self.num_segments)) as temporary:
            temporary.write_bytes(encode_mp4(frames, fps=int(info.fps)))
        self._infos.append(info)

    def finish(self) -> Path:
        """Join the segments into the video, put it in place, and remove the partial folder.

        Returns:
            The path of the video.

        Raises:
            OutputError: No chunk was written (nothing is left then), or the file cannot be written (the segments are
                kept then).
        """
        if not self._infos:
            self.discard()
            raise OutputError(f"{self.path} was not written: no chunk was finished")
        joined = self.partial_folder / ".joined.mp4.tmp"
        try:
            self._join(joined)
            os.replace(joined, self.path)
        except (OSError, av.FFmpegError) as error:
            joined.unlink(missing_ok=True)
            raise OutputError(
                f"{self.path} cannot be written: {reason(error)}; its segments are kept in {self.partial_folder}, "
                "go on with --resume"
            ) from error
        shutil.rmtree(self.partial_folder)
        return self.path

    def discard(self) -> None:
        """Drop everything written so far."""
        shutil.rmtree(self.partial_folder)

    def _set_up(self, path: str | Path, fps: int, title: str, metadata: Mapping[str, Any] | None) -> None:
        if fps < 1:
            raise ConfigurationError(f"{fps} frames per second cannot be written: give at least 1")
        check_codec()
        self.path = Path(path)
        self.partial_folder = partial_folder(path)
        self._infos: list[VideoInfo] = []
        # Through JSON and back, so that a request read from disk compares equal to a new one.
        self._request: dict[str, Any] = json.loads(
            json.dumps({"fps": fps, "title": title, "metadata": dict(metadata or {})})
        )

    def _check_same_request(self) -> None:
        request_path = self.partial_folder / "request.json"
        if not request_path.exists():
            raise OutputError(f"there is no unfinished video to resume in {self.partial_folder}: leave out --resume")
        found = _flat(json.loads(request_path.read_text()))
        asked = _flat(self._request)
        for name in sorted(found.keys() | asked.keys()):
            if found.get(name) != asked.get(name):
                raise OutputError(
                    f"the unfinished video in {self.partial_folder} was asked for with {name} {found.get(name)!r}, not "
                    f"{asked.get(name)!r}: resume it with the same settings, or start over with --overwrite"
                )

    def _segment_path(self, index: int) -> Path:
        return self.partial_folder / f"segment-{index:05d}.mp4"

    def _check_frames(self, frames: Tensor) -> VideoInfo:
        if frames.ndim != 4 or frames.shape[0] < 1 or frames.shape[3] != 3 or frames.dtype != torch.uint8:
            raise ConfigurationError(
                f"frames of shape {tuple(frames.shape)} and {frames.dtype} cannot be written: give [frames, rows, "
                "columns, 3] of torch.uint8, at least one frame"
            )
        num_frames, height, width, _ = frames.shape
        if height % 2 or width % 2:
            raise ConfigurationError(
                f"{width}x{height} cannot be written: H.264 video needs an even width and height, such as "
                f"{width - width % 2}x{height - height % 2}"
            )
        if self._infos and (self._infos[0].width, self._infos[0].height) != (width, height):
            raise ConfigurationError(
                f"a chunk of {width}x{height} does not fit a video of {self._infos[0].width}x{self._infos[0].height}"
            )
        return VideoInfo(num_frames=num_frames, fps=self._request["fps"], width=width, height=height, metadata={})

    def _join(self, joined: Path) -> None:
        """Copy the packets of all segments into one file, one frame after the other."""
        time_base = Fraction(1, self._request["fps"])
        # faststart: the index goes to the front, so that a browser can play the file while it loads.
        with av.open(str(joined), "w", format="mp4", options={"movflags": "+faststart"}) as output:
            output.metadata["title"] = self._request["title"]
            output.metadata["comment"] = json.dumps(self._request["metadata"], ensure_ascii=False)
            output_stream: VideoStream | None = None
            parameters: bytes | None = None
            num_frames = 0
            for index in range(self.num_segments):
                with av.open(str(self._segment_path(index))) as segment:
                    stream = segment.streams.video[0]
                    if output_stream is None:
                        output_stream = output.add_stream_from_template(stream)
                        parameters = stream.codec_context.extradata
                    elif stream.codec_context.extradata != parameters:
                        raise OutputError(
                            f"{self._segment_path(index)} was made by another version of the encoder than the segments "
                            "before it and cannot be joined: start over with --overwrite"
                        )
                    for packet in segment.demux(stream):
                        if not packet.size:  # the flush packet at the end of a stream
                            continue
                        packet.stream = output_stream
                        packet.time_base = time_base
                        packet.pts = packet.dts = num_frames
                        packet.duration = 1
                        output.mux(packet)
                        num_frames += 1


def partial_folder(path: str | Path) -> Path:
    """The folder that holds an unfinished video: `OUT.partial` beside `OUT`."""
    path = Path(path)
    return path.with_name(f"{path.name}.partial")


def snapshot_path(path: str | Path) -> Path:
    """The newest snapshot of an unfinished video."""
    return partial_folder(path) / "snapshot.safetensors"


def check_video_path(path: str | Path, *, overwrite: bool = False) -> Path:
    """Refuse a path at which no new video can be started; touches nothing.

    Raises:
        OutputError: The name does not end in .mp4, the file exists or an unfinished one does and `overwrite` is off, or
            its folder is missing or not writable.
    """
    path = Path(path)
    check_output_folder(path.absolute().parent)
    if path.suffix.lower() != ".mp4" and not path.is_dir():
        raise OutputError(f"{path} is no MP4, the one format that is written: name it {path.stem or 'out'}.mp4")
    check_output_file(path, overwrite=overwrite)
    if partial_folder(path).exists() and not overwrite:
        raise OutputError(
            f"{partial_folder(path)} holds an unfinished video: go on with --resume, or start over with --overwrite"
        )
    return path


def _flat(request: dict[str, Any]) -> dict[str, Any]:
    """A request with its metadata's own names at the top, for messages that name what differs."""
    return {**request, **request["metadata"], "metadata": None}
