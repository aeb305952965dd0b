"""The videos of the prompt suite, one after the other; what an earlier run has finished is left as it is."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from forcing_kv.errors import ConfigurationError, OutputError
from forcing_kv.evaluation.vbench.folder import BenchmarkFolder
from forcing_kv.evaluation.vbench.plan import SamplePlan
from forcing_kv.evaluation.vbench.suite import PromptSuite
from forcing_kv.generation import VideoRequest, check_made_alike, generate_video, is_finished
from forcing_kv.pipeline import VideoPipeline
from forcing_kv.prompt_schedule import prompt_schedule


@dataclass(frozen=True, kw_only=True)
class SuiteProgress:
    """Where a run stands.

    Attributes:
        videos_done: Finished videos, those of earlier runs too.
        num_videos: Of all.
        bytes_done: Size of the finished ones.
    """

    videos_done: int
    num_videos: int
    bytes_done: int

    @property
    def bytes_in_all(self) -> int | None:
        """Size that all will have, judged by those there are; None while there is none."""
        return round(self.bytes_done * self.num_videos / self.videos_done) if self.videos_done else None


def suite_requests(
    folder: BenchmarkFolder,
    suite: PromptSuite,
    plan: SamplePlan,
    *,
    seed: int = 0,
    augmented: Mapping[str, str] | None = None,
    shard: tuple[int, int] = (0, 1),
    **settings: Any,
) -> list[VideoRequest]:
    """A request for every video; sample `index` of every prompt has seed `seed + index`.

    Args:
        folder: Where they go.
        suite: The prompts.
        plan: How many of which.
        seed: Of the first sample.
        augmented: What the model is given instead of a prompt of the suite, by its text; None for the suite's own.
        shard: Of how many parts (the second) this is which (the first, from 0): every so manieth video.
        **settings: As in `VideoRequest`, the same for all.
    """
    part, num_parts = shard
    requests = []
    for number, (prompt, index) in enumerate(plan.videos(suite)):
        if number % num_parts == part:
            text = prompt.text if augmented is None else augmented[prompt.text]
            path = folder.video_path(prompt.text, index)
            requests.append(VideoRequest(prompts=prompt_schedule(text), path=path, seed=seed + index, **settings))
    return requests


def make_videos(
    pipeline: VideoPipeline,
    requests: Sequence[VideoRequest],
    *,
    check_memory: bool = True,
    on_progress: Callable[[SuiteProgress], None] = lambda _: None,
) -> None:
    """Make the videos that are not there yet.

    Ctrl-C drops the video that is being made: one that ends early would be scored as it is.

    Args:
        pipeline: The loaded model.
        requests: What is wanted.
        check_memory: Refuse a video that the device cannot hold.
        on_progress: Called at the start and after each video.

    Raises:
        OutputError: A file is there that was made otherwise, or one cannot be written; finished ones stay.
        ForcingKVError: As `generate_video`.
    """
    unfinished = [request for request in requests if not _is_done(pipeline, request)]
    sizes = {request.path: request.path.stat().st_size for request in requests if request.path.exists()}

    def report() -> None:
        progress = SuiteProgress(videos_done=len(sizes), num_videos=len(requests), bytes_done=sum(sizes.values()))
        on_progress(progress)

    report()
    for request in unfinished:
        made = generate_video(pipeline, request, resume=True, check_memory=check_memory)
        if made.interrupted:
            request.path.unlink()
            raise KeyboardInterrupt
        sizes[request.path] = request.path.stat().st_size
        report()


def parse_shard(text: str) -> tuple[int, int]:
    """Reads `PART/PARTS`, counted from 1, into what `suite_requests` takes.

    Raises:
        ConfigurationError: It is none.
    """
    match = re.fullmatch(r"(\d+)/(\d+)", text.strip())
    part, num_parts = (int(match[1]), int(match[2])) if match else (0, 0)
    if not 1 <= part <= num_parts:
        raise ConfigurationError(f"shard {text!r} is no part of a whole: write 1/4, 2/4, 3/4 or 4/4")
    return part - 1, num_parts


def _is_done(pipeline: VideoPipeline, request: VideoRequest) -> bool:
    if is_finished(request):
        check_made_alike(pipeline, request)
        return True
    if request.path.exists():
        raise OutputError(
            f"{request.path} is there and is not the video of this prompt and seed {request.seed}: move it away, or "
            "start over with --overwrite"
        )
    return False
