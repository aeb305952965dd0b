"""A whole benchmark, kept on the disk as it grows."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from forcing_kv.bench.ceilings import Ceilings
from forcing_kv.bench.environment import environment
from forcing_kv.bench.plan import BenchmarkPlan
from forcing_kv.bench.report import benchmark_report, write_report
from forcing_kv.bench.turns import take_turns
from forcing_kv.pipeline import VideoPipeline


def run_benchmark(
    plan: BenchmarkPlan,
    pipeline: VideoPipeline,
    *,
    ceilings: Ceilings,
    json_path: Path | None = None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Iterator[dict[str, Any]]:
    """Measures.

    Args:
        plan: What is to be measured.
        pipeline: The model, as `load_pipeline` gives it.
        ceilings: Of the machine.
        json_path: Where the report is kept, after each timed video, so that a run that is killed loses one video.
        on_progress: Told the number of chunks made, and of all.

    Yields:
        The report so far, after each timed video; the last one says `complete`.

    Raises:
        OutputError: The report, or a video, cannot be written.
    """
    made_with = environment()
    for measured in take_turns(plan, pipeline, on_progress=on_progress):
        document = benchmark_report(plan, measured, ceilings=ceilings, environment=made_with)
        if json_path is not None:
            write_report(document, json_path)
        yield document
