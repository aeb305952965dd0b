"""What a comparison has finished, on disk: per policy and prompt one small JSON file, beside its video.

A file is there when its video is, so a run that was killed goes on with what is missing. A file that was made with
other settings is refused and not replaced.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from forcing_kv.errors import OutputError
from forcing_kv.evaluation.bootstrap import shortened
from forcing_kv.evaluation.metrics import Measured
from forcing_kv.output_files import atomic_write, reason

FORMAT = "forcing-kv-compared-video"
VERSION = 1


@dataclass(frozen=True, kw_only=True)
class ComparedVideo:
    """One finished video.

    Attributes:
        identity: What it was made from and how; what belongs together agrees in it.
        measured: Its series, and what is right in it.
        cache_bytes: Its share of what the cache held at the end.
        full_cache_bytes: What a cache of every frame would have held then.
        milliseconds: Its share of the time, by what it was spent on.
    """

    identity: Mapping[str, Any]
    measured: Measured
    cache_bytes: int
    full_cache_bytes: int
    milliseconds: Mapping[str, float]


class FinishedVideos:
    """The files of one policy.

    Args:
        folder: Of the measurements; made when the first is kept.
        videos: Of the videos.
        names: Of the prompts' files, without suffix, in order.
    """

    def __init__(self, folder: Path, videos: Path, names: Sequence[str]) -> None:
        self._folder = folder
        self._videos = videos
        self._names = names

    def video_path(self, index: int) -> Path:
        """Where the video of a prompt lies."""
        return self._videos / f"{self._names[index]}.mp4"

    def make_folders(self) -> None:
        """Makes the folders.

        Raises:
            OutputError: They cannot be made.
        """
        for folder in (self._folder, self._videos):
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise OutputError(f"the folder {folder} cannot be made: {reason(error)}") from error

    def load(
        self, index: int, *, identity: Mapping[str, Any], series: Sequence[str], is_judged: bool = False
    ) -> ComparedVideo | None:
        """What is known of the video of a prompt; None if it is not finished, or the video is gone.

        Args:
            index: Of the prompt.
            identity: What it must have been made from and how; what the file says beyond that does not matter.
            series: What must have been measured.
            is_judged: Whether it must have been judged by the rules of a world.

        Raises:
            OutputError: It was made otherwise, or cannot be read.
        """
        path = self._path(index)
        if not path.exists():
            return None
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
            if (document["format"], document["version"]) != (FORMAT, VERSION):
                raise OutputError(f"{path} is of another version: start over with --overwrite")
            video = ComparedVideo(
                identity=document["identity"],
                measured=Measured(
                    series={name: np.array(values, dtype=np.float64) for name, values in document["series"].items()},
                    chunk_starts=tuple(document["chunk_starts"]),
                    num_frames=document["num_frames"],
                    rights=document["rights"],
                ),
                cache_bytes=document["cache_bytes"],
                full_cache_bytes=document["full_cache_bytes"],
                milliseconds=document["milliseconds"],
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            if isinstance(error, OutputError):
                raise
            raise OutputError(f"{path} cannot be read ({error}): start over with --overwrite") from error
        self._check_same(path, video, identity)
        if not self.video_path(index).exists():
            return None
        missing = [name for name in series if name not in video.measured.series]
        missing += ["the world score"] if is_judged and video.measured.rights is None else []
        if missing:
            raise OutputError(
                f"{path} was made without measuring {', '.join(missing)}: go on with the metrics of then (--metrics), "
                "choose another folder, or start over with --overwrite"
            )
        return video

    def keep(self, index: int, video: ComparedVideo) -> None:
        """Writes what is known of the video of a prompt, which lies in its place already.

        Raises:
            OutputError: It cannot be written.
        """
        measured = video.measured
        document = {
            "format": FORMAT,
            "version": VERSION,
            "identity": dict(video.identity),
            "cache_bytes": video.cache_bytes,
            "full_cache_bytes": video.full_cache_bytes,
            "milliseconds": {name: round(value, 1) for name, value in video.milliseconds.items()},
            "num_frames": measured.num_frames,
            "chunk_starts": list(measured.chunk_starts),
            "rights": None if measured.rights is None else dict(measured.rights),
            "series": {
                name: [shortened(value) for value in values.tolist()] for name, values in measured.series.items()
            },
        }
        entries = [f" {json.dumps(name)}: {json.dumps(entry, allow_nan=False)}" for name, entry in document.items()]
        with atomic_write(self._path(index)) as temporary:
            temporary.write_text("{\n" + ",\n".join(entries) + "\n}\n", encoding="utf-8")

    def _path(self, index: int) -> Path:
        return self._folder / f"{index:05d}.json"

    @staticmethod
    def _check_same(path: Path, video: ComparedVideo, identity: Mapping[str, Any]) -> None:
        for name, value in identity.items():
            if video.identity.get(name) != value:
                raise OutputError(
                    f"{path} was made with {name} {video.identity.get(name)!r}, not {value!r}: go on with the same "
                    "settings, choose another folder, or start over with --overwrite"
                )
