"""The model of a benchmark: loaded, or made of random weights."""

from collections.abc import Callable

from forcing_kv.bench.plan import BenchmarkPlan
from forcing_kv.bench.random_weights import random_pipeline
from forcing_kv.pipeline import VideoPipeline


def load_pipeline(
    plan: BenchmarkPlan,
    *,
    text_encoder_device: str = "auto",
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> VideoPipeline:
    """Makes what a plan is to be carried out on.

    Args:
        plan: Of the benchmark.
        text_encoder_device: As in `VideoPipeline.from_pretrained`.
        on_progress: Told the number of weights loaded, and of all.

    Raises:
        CheckpointError: Files that cannot be had, are broken, or do not fit.
    """
    if plan.random_weights:
        return random_pipeline(
            plan.source.preset,
            plan.source.config,
            head_map=plan.head_map,
            device=plan.device,
            dtype=plan.dtype,
            precision=plan.precision,
            with_vae=plan.decodes,
            decoding=plan.decoding,
        )
    return VideoPipeline.from_source(
        plan.source,
        device=plan.device,
        dtype=plan.dtype,
        precision=plan.precision,
        text_encoder_device=text_encoder_device,
        head_map=plan.head_map,
        decoding=plan.decoding,
        on_progress=on_progress,
    )
