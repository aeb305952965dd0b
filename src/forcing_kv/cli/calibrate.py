"""`forcing-kv calibrate`: the head roles of a checkpoint, as a head map with a report."""

from dataclasses import replace
from pathlib import Path

import click

from forcing_kv.calibration import calibrate, default_num_chunks, observed_passes
from forcing_kv.calibration.finished import FinishedPrompts
from forcing_kv.calibration.observer import DEFAULT_SINK_FRAMES, check_max_queries
from forcing_kv.calibration.report import write_report
from forcing_kv.calibration.roles import check_role_settings
from forcing_kv.cli import options
from forcing_kv.cli.progress import progress_bar
from forcing_kv.devices import resolve_device, resolve_dtype
from forcing_kv.errors import ConfigurationError
from forcing_kv.figure_style import check_figures_available
from forcing_kv.generation.request import MAX_SEED
from forcing_kv.geometry import pixel_frames
from forcing_kv.heads import DEFAULT_THRESHOLD
from forcing_kv.memory import check_memory, plan_run
from forcing_kv.models import find_model
from forcing_kv.output_files import atomic_write, check_work_folder
from forcing_kv.pipeline import VideoPipeline
from forcing_kv.policies import Full
from forcing_kv.prompt_file import read_single_prompts
from forcing_kv.resolution import parse_resolution


@click.command("calibrate")
@options.model
@click.option("--prompt-file", type=click.Path(path_type=Path), required=True, help="One prompt per line.")
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="Folder to make.")
@click.option(
    "--chunks", type=int, help="Length of each video. [what the model was trained at, 21 latent frames at most]"
)
@click.option(
    "--steps", metavar="N,N,...|all", default="all", show_default=True, help="Denoising steps to observe, from 0."
)
@click.option("--threshold", type=float, help=f"Score from which a head is static. [{DEFAULT_THRESHOLD:g}]")
@click.option("--target-static-fraction", type=float, help="Share of static heads, instead of --threshold.")
@click.option(
    "--sink-frames", type=int, default=DEFAULT_SINK_FRAMES, show_default=True, help="First frames that do not count."
)
@click.option("--max-queries", type=int, help="Queries per pass and layer, drawn at random. [all]")
@options.resolution
@click.option(
    "--seed",
    type=click.IntRange(0, MAX_SEED),
    default=0,
    show_default=True,
    help="Of the first prompt; the next has one more.",
)
@options.weights
@options.components()
@options.placement
@click.option("--resume", is_flag=True, help="Go on with a calibration that was killed.")
@click.option("--overwrite", is_flag=True, help="Replace a calibration that is there.")
@options.skip_memory_check
def command(
    *,
    model: str,
    prompt_file: Path,
    output: Path,
    chunks: int | None,
    steps: str,
    threshold: float | None,
    target_static_fraction: float | None,
    sink_frames: int,
    max_queries: int | None,
    resolution: str | None,
    seed: int,
    weights: Path | None,
    lora: str | None,
    components: Path | None,
    device: str,
    dtype: str,
    text_encoder_device: str,
    resume: bool,
    overwrite: bool,
    skip_memory_check: bool,
) -> None:
    """Measure which attention heads of a model are static and which are dynamic.

    One video per prompt is made with a full cache, without its pixels. A head that puts at least --threshold of its
    attention on the newest frames is static. The folder gets head_map.json (for --head-map), report.json, and pictures.

    A run that was killed is gone on with by the same command and --resume; --threshold may change then.

    \b
    Examples:
      forcing-kv calibrate --prompt-file prompts.txt -o roles
      forcing-kv calibrate --model self-forcing-1.3b --weights mine.pt --prompt-file prompts.txt -o roles --steps 0,3
      forcing-kv generate "a red circle" --head-map roles/head_map.json
    """
    check_figures_available()
    check_work_folder(output, what="calibration", resume=resume, overwrite=overwrite)
    prompts = read_single_prompts(prompt_file, what="a calibration")
    check_role_settings(threshold=threshold, target_static_fraction=target_static_fraction)
    check_max_queries(max_queries)
    source = find_model(model, weights=weights, lora=lora, components=components)
    num_chunks = default_num_chunks(source.preset) if chunks is None else chunks
    step_list = _parse_steps(steps)
    observed_passes(source.preset, num_chunks=num_chunks, steps=step_list, sink_frames=sink_frames)
    size = None if resolution is None else parse_resolution(resolution)
    run_device = resolve_device(device)
    planned = plan_run(
        source.config,
        source.preset,
        prompts[0],
        num_frames=pixel_frames(num_chunks * source.preset.chunk_frames),
        policy=Full(),
        resolution=size,
        dtype=resolve_dtype(dtype, run_device),
        device=run_device,
        vae=None,
        counts_chunks=True,
    )
    if not skip_memory_check:
        check_memory(replace(planned, other_policies=()))  # roles are measured under the full cache
    with progress_bar("loading weights", "weight") as show:
        pipeline = VideoPipeline.from_source(
            source, device=device, dtype=dtype, text_encoder_device=text_encoder_device, on_progress=show
        )
    finished = output / "observations"
    if overwrite:
        FinishedPrompts(finished).clear()
    output.mkdir(parents=True, exist_ok=True)
    with progress_bar("prompts", "prompt") as show:
        result = calibrate(
            pipeline,
            prompts,
            num_chunks=num_chunks,
            steps=step_list,
            seed=seed,
            sink_frames=sink_frames,
            threshold=threshold,
            target_static_fraction=target_static_fraction,
            max_queries=max_queries,
            resolution=size,
            checkpoint=finished,
            check_memory=not skip_memory_check,
            on_progress=show,
        )
    head_map = result.head_map
    map_path = output / "head_map.json"
    with atomic_write(map_path) as temporary:
        head_map.save(temporary)
    click.echo(write_report(result.observations, head_map, output))
    num_heads = head_map.num_layers * head_map.num_heads
    click.echo(
        f"{output}: {head_map.num_static} of {num_heads} heads are static (score at least {head_map.threshold:g}); use "
        f"the map with --head-map {map_path}"
    )


def _parse_steps(steps: str) -> list[int] | None:
    if steps == "all":
        return None
    try:
        return [int(step) for step in steps.split(",")]
    except ValueError:
        raise ConfigurationError(f"steps {steps!r} are no list of numbers: write 0,2 or all") from None
