"""`forcing-kv bench`: speed and memory, policy beside policy."""

import json
from pathlib import Path
from typing import Any

import click

from forcing_kv.bench import (
    DEFAULT_POLICIES,
    DEFAULT_REPEATS,
    describe_limits,
    describe_results,
    load_pipeline,
    measure_ceilings,
    plan_benchmark,
    run_benchmark,
    write_figure,
)
from forcing_kv.cli import options
from forcing_kv.cli.progress import progress_bar
from forcing_kv.devices import resolve_device, resolve_dtype
from forcing_kv.figure_style import check_figures_available
from forcing_kv.generation import frames_of
from forcing_kv.heads import HeadMap
from forcing_kv.models import find_model
from forcing_kv.output_files import check_output_file
from forcing_kv.policies import split_policies
from forcing_kv.resolution import parse_resolution
from forcing_kv.stream_options import StreamOptions
from forcing_kv.tiny.prompts import EXAMPLE
from forcing_kv.video import DecoderOptions


@click.command("bench")
@options.model
@click.option("--random-weights", is_flag=True, help="Take the model's sizes only; nothing is downloaded.")
@click.option("--layers", type=int, help="With --random-weights: build the first so many blocks. [all]")
@options.resolution
@click.option("--seconds", type=float, default=5.0, show_default=True, help="Length of every video.")
@click.option(
    "--policies", metavar="NAME[:SETTING=VALUE,...],...", default=DEFAULT_POLICIES, show_default=True, help="In turn."
)
@click.option("--repeats", type=int, default=DEFAULT_REPEATS, show_default=True, help="Timed videos per policy.")
@click.option("--prompt", default=EXAMPLE, help="Of every video. [one that the embedded model knows]")
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Keep the report here, as it grows.")
@click.option("--figure", type=click.Path(path_type=Path), help="Draw speed and memory over the length of the video.")
@click.option("--overwrite", is_flag=True, help="Replace files that exist.")
@options.weights
@options.components()
@options.head_map
@options.placement
@options.precision
@options.stream
@options.decoding
@options.skip_memory_check
def command(
    *,
    model: str,
    random_weights: bool,
    layers: int | None,
    resolution: str | None,
    seconds: float,
    policies: str,
    stream_options: StreamOptions,
    repeats: int,
    prompt: str,
    json_path: Path | None,
    figure: Path | None,
    head_map: Path | None,
    weights: Path | None,
    lora: str | None,
    components: Path | None,
    device: str,
    dtype: str,
    text_encoder_device: str,
    decoding: DecoderOptions,
    precision: str | None,
    overwrite: bool,
    skip_memory_check: bool,
) -> None:
    """Measure what cache policies cost, side by side: all else, from the noise to the kernels, is the same.

    The policies take turns in making whole videos; one turn warms up, the rest is timed. What the machine can do at
    best is measured and printed first. The last line of the output is the report, as one JSON document.

    \b
    Examples:
      forcing-kv bench --seconds 20 --policies full,forcing-kv
      forcing-kv bench --policies window,window:window_frames=9,sink_frames=1,forcing-kv --json b.json --figure b.png
      forcing-kv bench --seconds 20 --policies full,window,forcing-kv,dummy-forcing --kv-dtype int8
      forcing-kv bench --model self-forcing-1.3b --random-weights --layers 2 --resolution 480p --repeats 3
    """
    if random_weights and (weights or lora or components):
        raise click.UsageError("--random-weights takes a model's sizes only: leave out --weights, --lora, --components")
    for path in filter(None, (json_path, figure)):
        check_output_file(path, overwrite=overwrite)
    if figure is not None:
        check_figures_available()
    source = find_model(model, weights=weights, lora=lora, components=components)
    run_device = resolve_device(device)
    plan = plan_benchmark(
        source,
        split_policies(policies),
        num_frames=frames_of(seconds, source.preset.fps),
        repeats=repeats,
        resolution=None if resolution is None else parse_resolution(resolution),
        random_weights=random_weights,
        layers=layers,
        head_map=None if head_map is None else HeadMap.load(head_map),
        prompt=prompt,
        options=stream_options,
        device=run_device,
        dtype=resolve_dtype(dtype, run_device),
        decoding=decoding,
        precision=precision,
    )
    if not skip_memory_check:
        plan.check_memory()
    with progress_bar("loading weights", "weight") as show:
        pipeline = load_pipeline(plan, text_encoder_device=text_encoder_device, on_progress=show)
    plan = plan.with_steps_of(pipeline)
    ceilings = measure_ceilings(plan.device, plan.dtype)
    click.echo(describe_limits(plan, ceilings))
    latest: dict[str, Any] | None = None
    try:
        with progress_bar("benchmark", "chunk") as show:
            for document in run_benchmark(plan, pipeline, ceilings=ceilings, json_path=json_path, on_progress=show):
                latest = document
    finally:  # what is finished is told of a run that was interrupted, too
        if latest is not None:
            click.echo(f"\n{describe_results(latest)}")
            click.echo(json.dumps(latest))
            if figure is not None:
                write_figure(latest, figure)
