"""What is to be made: one video file per request, planned and checked as a whole before any work starts."""

import json
import math
import re
import unicodedata
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from forcing_kv.errors import ConfigurationError, OutputError
from forcing_kv.output_files import check_output_file, check_output_folder
from forcing_kv.policies import CachePolicy
from forcing_kv.prompt_schedule import PromptSchedule, schedule_to_json
from forcing_kv.stream_options import StreamOptions
from forcing_kv.video import probe
from forcing_kv.video.writer import check_video_path, partial_folder

MAX_SEED = 2**63 - 1
_MAX_SLUG_LENGTH = 40


@dataclass(frozen=True, kw_only=True)
class VideoRequest:
    """One video file.

    Attributes:
        prompts: What is shown, from when on.
        path: Where the MP4 goes.
        num_frames: Pixel frames to be made; rounded up to whole chunks.
        seed: Of the noise.
        policy: What the cache keeps, as an object or in its spelling; None for the model's default.
        resolution: Width and height in pixels; None for the model's own.
        options: How it is computed.
        latents_path: Where the latents go, as safetensors; None keeps none.
        continue_from: Latents or a video that this one goes on from, and begins with; None starts from nothing.

    Raises:
        ConfigurationError: Fewer than 1 frame, or a seed out of range.
    """

    prompts: PromptSchedule
    path: Path
    num_frames: int
    seed: int = 0
    policy: CachePolicy | str | None = None
    resolution: tuple[int, int] | None = None
    options: StreamOptions = StreamOptions()
    latents_path: Path | None = None
    continue_from: Path | None = None

    def __post_init__(self) -> None:
        if self.num_frames < 1:
            raise ConfigurationError(f"a video of {self.num_frames} frames cannot be made: ask for at least 1")
        if not 0 <= self.seed <= MAX_SEED:
            raise ConfigurationError(f"seed {self.seed} is out of range: use 0 to {MAX_SEED}")

    @property
    def title(self) -> str:
        """All texts in order of time, on one line."""
        return " / ".join(prompt.texts(1)[0] for prompt in self.prompts)

    def prompt_json(self) -> str | list[dict[str, Any]]:
        """The prompt as files hold it: the text, or the schedule where there is more than one."""
        return schedule_to_json(self.prompts)


def plan_requests(
    prompts: Sequence[PromptSchedule],
    folder: Path,
    *,
    seed: int = 0,
    num_videos: int = 1,
    latents_folder: Path | None = None,
    **settings: Any,
) -> list[VideoRequest]:
    """Many videos in one folder: each prompt `num_videos` times, with seeds `seed`, `seed + 1` and so on.

    Files are named by their number, from 001, and the beginning of their prompt.

    Args:
        prompts: One per video, or per `num_videos` videos.
        folder: Where the videos go.
        seed: Of the first video of each prompt.
        num_videos: Per prompt.
        latents_folder: Where the latents go; None keeps none.
        **settings: The other attributes of `VideoRequest`, the same for all.
    """
    if num_videos < 1:
        raise ConfigurationError(f"{num_videos} videos cannot be made: ask for at least 1")
    requests: list[VideoRequest] = []
    for schedule in prompts:
        for offset in range(num_videos):
            name = f"{len(requests) + 1:03d}-{slug(schedule[0].texts(1)[0])}"
            requests.append(
                VideoRequest(
                    prompts=schedule,
                    path=folder / f"{name}.mp4",
                    seed=seed + offset,
                    latents_path=latents_folder / f"{name}.safetensors" if latents_folder else None,
                    **settings,
                )
            )
    return requests


def check_requests(
    requests: Sequence[VideoRequest],
    *,
    folders: Collection[Path] = (),
    resume: bool = False,
    overwrite: bool = False,
) -> None:
    """Refuse files that cannot be written as asked, all of them before the first is begun; touches nothing.

    Args:
        requests: What is asked for.
        folders: Folders of the requests that the caller makes where they are missing.
        resume: Unfinished videos are gone on with, finished ones of the same request left as they are.
        overwrite: Finished and unfinished files may be replaced.

    Raises:
        OutputError: A path that cannot be written, exists, or holds an unfinished video.
    """
    missing = {folder for folder in folders if not folder.exists()}
    for folder in missing:
        check_output_folder(folder.absolute().parent)
    for request in requests:
        if request.path.parent not in missing and not (resume and _is_begun(request)):
            check_video_path(request.path, overwrite=overwrite)
            if request.latents_path is not None and request.latents_path.parent not in missing:
                check_output_file(request.latents_path, overwrite=overwrite)


def frames_of(seconds: float, fps: int) -> int:
    """Fewest pixel frames that last so long.

    Raises:
        ConfigurationError: No length, or none that ends.
    """
    if not (math.isfinite(seconds) and seconds > 0):
        raise ConfigurationError(f"a video of {seconds:g} seconds cannot be made: ask for more than 0")
    return math.ceil(round(seconds * fps, 6))


def is_finished(request: VideoRequest) -> bool:
    """Whether the video is there, made for this prompt and seed, and none of it is left to be made."""
    if not request.path.is_file() or partial_folder(request.path).exists():
        return False
    try:
        made_for = json.loads(probe(request.path).metadata.get("comment", "{}"))
    except (OutputError, json.JSONDecodeError):
        return False
    return (made_for.get("prompt"), made_for.get("seed")) == (request.prompt_json(), request.seed)


def _is_begun(request: VideoRequest) -> bool:
    return partial_folder(request.path).exists() or is_finished(request)


def slug(text: str) -> str:
    """The beginning of a text as part of a file name: lower case letters a-z, digits and dashes; `video` if none."""
    ascii_text = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    words = re.sub(r"[^a-z0-9]+", "-", ascii_text.lower()).strip("-")
    if len(words) > _MAX_SLUG_LENGTH:
        words = words[: _MAX_SLUG_LENGTH + 1].rpartition("-")[0] or words[:_MAX_SLUG_LENGTH]
    return words or "video"
