"""The order of a benchmark: every policy makes a video, then every policy again, and so on.

So whatever else the machine does, and however warm it gets, falls on all policies alike. The first turn is not timed:
it loads what is loaded on first use, and there the peak of memory is taken, because watching it takes time on a CPU.
"""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path

from forcing_kv.bench.peak_memory import peak_meter
from forcing_kv.bench.plan import BenchmarkPlan, PolicyPlan
from forcing_kv.bench.video import TimedVideo, time_video
from forcing_kv.pipeline import VideoPipeline


@dataclass(kw_only=True)
class Measured:
    """What is known of one policy so far.

    Attributes:
        policy: Which.
        videos: The timed ones.
        first_compile_ms: Compiling and capturing in the turns that are not timed.
        peak_bytes: Most that a video took of the device; None where the device does not tell.
    """

    policy: PolicyPlan
    videos: list[TimedVideo] = field(default_factory=list)
    first_compile_ms: float = 0.0
    peak_bytes: int | None = None


def take_turns(
    plan: BenchmarkPlan, pipeline: VideoPipeline, *, on_progress: Callable[[int, int], None] = lambda done, total: None
) -> Iterator[Sequence[Measured]]:
    """Makes all videos of a benchmark.

    Args:
        plan: What is to be measured.
        pipeline: The loaded model.
        on_progress: Told the number of chunks made, and of all.

    Yields:
        What is known so far of all policies, after each timed video; the same objects, growing.
    """
    measured = [Measured(policy=policy) for policy in plan.policies]
    num_chunks = 1 + (plan.repeats + 1) * sum(policy.num_chunks for policy in plan.policies)
    num_made = 0

    def count_chunk() -> None:
        nonlocal num_made
        num_made += 1
        on_progress(num_made, num_chunks)

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "video.mp4"
        # What the libraries take on first use shall not count as the first policy's memory.
        first = replace(plan.policies[0], num_chunks=1)
        begun = time_video(pipeline, replace(plan, num_chunks=1), first, path, on_chunk=count_chunk)
        measured[0].first_compile_ms = begun.compile_ms
        for turn in range(plan.repeats + 1):
            for one in measured:
                meter = peak_meter(plan.device) if turn == 0 else None
                with meter or nullcontext():
                    video = time_video(pipeline, plan, one.policy, path, on_chunk=count_chunk)
                if turn:
                    one.videos.append(video)
                    yield measured
                else:
                    one.first_compile_ms += video.compile_ms
                    one.peak_bytes = None if meter is None else meter.taken_bytes
