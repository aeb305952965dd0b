"""`forcing-kv compare`: what cache policies do to quality, as a report."""

import warnings
from pathlib import Path

import click

from forcing_kv.cli import options
from forcing_kv.cli.progress import progress_bar
from forcing_kv.devices import resolve_device, resolve_dtype
from forcing_kv.evaluation import (
    FLOWS,
    METRICS,
    Comparison,
    check_page_available,
    choose_metrics,
    compare,
    format_table,
    plan_comparison,
    summarise,
    write_json,
    write_page,
)
from forcing_kv.generation import frames_of
from forcing_kv.heads import HeadMap
from forcing_kv.models import find_model
from forcing_kv.output_files import check_work_folder
from forcing_kv.pipeline import VideoPipeline
from forcing_kv.policies import split_policies
from forcing_kv.prompt_file import read_single_prompts
from forcing_kv.resolution import parse_resolution
from forcing_kv.stream_options import StreamOptions
from forcing_kv.video.h264 import check_codec


@click.command("compare", epilog=f"Metrics: {', '.join(METRICS)}.")
@options.model
@click.option("--prompt-file", type=click.Path(path_type=Path), required=True, help="One prompt per line.")
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="Folder to make.")
@click.option(
    "--policies",
    metavar="NAME[:SETTING=VALUE,...],...",
    default="full,window,forcing-kv",
    show_default=True,
    help="What is compared.",
)
@click.option(
    "--reference",
    metavar="NAME[:SETTING=VALUE,...]",
    default="full",
    show_default=True,
    help="What the others are measured against.",
)
@click.option(
    "--plain-reference",
    is_flag=True,
    help="Make the reference without --positions, --kv-dtype, --step-cache, --attention, --execution and --precision, "
    "so that what they do is measured too.",
)
@click.option(
    "--seconds", type=float, default=20.0, show_default=True, help="Of each video, rounded up to whole chunks."
)
@click.option(
    "--metrics",
    metavar="all|NAME,NAME,...",
    default="all",
    show_default=True,
    help="What is measured; a name stands for all that begin with it too. all leaves out what needs missing extras.",
)
@click.option(
    "--flow", metavar="|".join(FLOWS), default="dis", show_default=True, help="Kind of optical flow for motion."
)
@options.resolution
@click.option("--seed", type=int, default=0, show_default=True, help="Of the first prompt; the next has one more.")
@click.option("--together", type=int, metavar="N", help="Prompts made in one batch. [what suits their size]")
@click.option("--resume", is_flag=True, help="Go on with a comparison that was killed, or add policies to one.")
@click.option("--overwrite", is_flag=True, help="Replace a comparison that is there.")
@options.weights
@options.components()
@options.head_map
@options.placement
@options.precision
@options.stream
@options.skip_memory_check
def command(
    *,
    model: str,
    prompt_file: Path,
    output: Path,
    policies: str,
    reference: str,
    stream_options: StreamOptions,
    precision: str | None,
    plain_reference: bool,
    seconds: float,
    metrics: str,
    flow: str,
    resolution: str | None,
    seed: int,
    together: int | None,
    weights: Path | None,
    lora: str | None,
    components: Path | None,
    device: str,
    dtype: str,
    text_encoder_device: str,
    head_map: Path | None,
    resume: bool,
    overwrite: bool,
    skip_memory_check: bool,
) -> None:
    """Measure what cache policies do to the videos of a model.

    Each policy makes each prompt from the same noise as the reference, by default the full cache. The folder gets
    report.html to look at, report.json with every figure, and the videos.

    A run that was killed is gone on with by the same command and --resume; finished videos are not made again, and
    policies may be added then.

    \b
    Examples:
      forcing-kv prompts -n 64 > prompts.txt
      forcing-kv compare --prompt-file prompts.txt -o quality
      forcing-kv compare --prompt-file prompts.txt -o quality --policies full,window,forcing-kv:sink_frames=2 --resume
      forcing-kv compare --prompt-file prompts.txt -o int8 --policies full,forcing-kv --kv-dtype int8 --plain-reference
      forcing-kv compare --model self-forcing-1.3b --prompt-file prompts.txt -o sf --seconds 5 --metrics psnr,ssim,drift
    """
    check_page_available()
    check_codec()
    check_work_folder(output, what="comparison", resume=resume, overwrite=overwrite)
    prompts = read_single_prompts(prompt_file, what="a comparison")
    source = find_model(model, weights=weights, lora=lora, components=components)
    asked = Comparison(
        policies=tuple(split_policies(policies)),
        reference=reference,
        num_frames=frames_of(seconds, source.preset.fps),
        seed=seed,
        resolution=None if resolution is None else parse_resolution(resolution),
        metrics=metrics,
        flow=flow,
        num_together=together,
        options=stream_options,
        plain_reference=plain_reference,
    )
    roles = source.head_map if head_map is None else HeadMap.load(head_map)
    run_device = resolve_device(device)
    plan_comparison(
        asked,
        source,
        num_prompts=len(prompts),
        head_map=roles,
        device=run_device,
        dtype=resolve_dtype(dtype, run_device),
        precision=precision,
        skip_memory_check=skip_memory_check,
    )
    chosen = choose_metrics(asked, source.preset, device=run_device)
    for name, reason in chosen.left_out.items():
        warnings.warn(f"{name} is left out: {reason}", stacklevel=1)
    with progress_bar("loading weights", "weight") as show:
        pipeline = VideoPipeline.from_source(
            source,
            device=device,
            dtype=dtype,
            precision=precision,
            text_encoder_device=text_encoder_device,
            head_map=roles,
            on_progress=show,
        )
    plain_pipeline = None
    if plain_reference and precision is not None:
        with progress_bar("loading weights of the reference", "weight") as show:
            transformer = source.load_transformer(dtype=pipeline.dtype, device=run_device, on_progress=show)
        plain_pipeline = pipeline.with_transformer(transformer)
    with progress_bar("comparing", "chunk") as show:
        compared = compare(
            pipeline,
            prompts,
            asked,
            output,
            chosen=chosen,
            plain_pipeline=plain_pipeline,
            overwrite=overwrite,
            check_memory=not skip_memory_check,
            on_progress=show,
        )
    summary = summarise(compared)
    write_json(summary, output)
    click.echo(format_table(summary))
    click.echo(write_page(summary, output))
