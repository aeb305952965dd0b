"""`forcing-kv vbench`: the public benchmark, from its prompts to its scores."""

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click
from tqdm import tqdm

from forcing_kv.bench.environment import environment
from forcing_kv.cli import options
from forcing_kv.cli.progress import progress_bar
from forcing_kv.devices import resolve_device, resolve_dtype
from forcing_kv.errors import ForcingKVError
from forcing_kv.evaluation.vbench.augmented import read_augmented
from forcing_kv.evaluation.vbench.evaluator import (
    INSTALL,
    PYTHON_VARIABLE,
    EvaluatorError,
    evaluate,
    find_evaluator,
    is_evaluated,
    last_lines,
    ready_dimensions,
)
from forcing_kv.evaluation.vbench.folder import BenchmarkFolder, FolderSettings
from forcing_kv.evaluation.vbench.generate import SuiteProgress, make_videos, parse_shard, suite_requests
from forcing_kv.evaluation.vbench.plan import FLICKERING_SAMPLES, SAMPLES, SamplePlan
from forcing_kv.evaluation.vbench.report import format_report, write_report
from forcing_kv.evaluation.vbench.scores import FLICKERING, parse_dimensions
from forcing_kv.evaluation.vbench.suite import SUITE_FILE, PromptSuite, read_suite
from forcing_kv.generation import frames_of
from forcing_kv.generation.request import MAX_SEED
from forcing_kv.geometry import pixel_frames
from forcing_kv.heads import HeadMap
from forcing_kv.memory import PlannedStream, check_memory, plan_run
from forcing_kv.models import find_model
from forcing_kv.pipeline import VideoPipeline
from forcing_kv.resolution import parse_resolution
from forcing_kv.stream_check import check_stream
from forcing_kv.stream_options import StreamOptions
from forcing_kv.video import WAN_VAE

_MAX_SECONDS = 3600.0
_LINE_WIDTH = 60

_vbench_python = click.option(
    "--vbench-python",
    type=click.Path(path_type=Path),
    envvar=PYTHON_VARIABLE,
    show_envvar=True,
    help="Interpreter of the environment in which VBench is installed.",
)


def _install_help() -> str:
    return "\n".join(["\b", "VBench's environment is made with:", *(f"  {line}" for line in INSTALL)])


@click.group("vbench", epilog=_install_help())
def command() -> None:
    """VBench: its prompts made into videos, and these scored by its own evaluator.

    Three steps, in this order, all on one folder; each can be repeated, and does only what is missing.

    \b
      forcing-kv vbench generate -o vb --vbench-python vbench-env/bin/python --model self-forcing-1.3b
      forcing-kv vbench evaluate vb --vbench-python vbench-env/bin/python    # ends with the report
      forcing-kv vbench report vb                                            # the report again

    What VBench pins fits no other program, so it has an environment of its own.
    """


@command.command("generate")
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="Folder to make.")
@click.option(
    "--suite",
    type=click.Path(path_type=Path),
    help=f"{SUITE_FILE} of VBench, or a folder with it. [that of --vbench-python]",
)
@_vbench_python
@options.model
@click.option(
    "--policy", metavar="NAME[:SETTING=VALUE,...]", help="What the cache keeps; see generate --help. [the model's own]"
)
@options.stream
@options.precision
@click.option(
    "--seconds",
    type=click.FloatRange(0, _MAX_SECONDS, min_open=True),
    default=5.0,
    show_default=True,
    help="Length of each video, rounded up to whole chunks.",
)
@options.resolution
@click.option("--dimensions", metavar="NAME,...", help="Make only what these are scored on. [all of the suite's]")
@click.option("--samples", type=int, default=SAMPLES, show_default=True, help="Videos per prompt.")
@click.option(
    "--flickering-samples",
    type=int,
    default=FLICKERING_SAMPLES,
    show_default=True,
    help=f"Videos per prompt of {FLICKERING}, of which VBench keeps the first five without motion.",
)
@click.option(
    "--prompts",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help='Longer prompts for the model: JSON {"short": "long", ...}, or a line for every entry of the suite, in order. '
    "The files keep the short prompts' names.",
)
@click.option(
    "--seed",
    type=click.IntRange(0, MAX_SEED),
    default=0,
    show_default=True,
    help="Of every prompt's first sample; the next has one more.",
)
@options.weights
@options.components()
@options.placement
@options.head_map
@click.option(
    "--shard", metavar="PART/PARTS", default="1/1", help="Make only this part, as 2/8, while others make the rest."
)
@click.option(
    "--resume", is_flag=True, help="Go on with a folder that is there; more samples or dimensions may be added."
)
@click.option("--overwrite", is_flag=True, help="Remove what an earlier run has made in the folder, and start over.")
@options.skip_memory_check
def generate(
    *,
    output: Path,
    suite: Path | None,
    vbench_python: Path | None,
    model: str,
    policy: str | None,
    stream_options: StreamOptions,
    precision: str | None,
    seconds: float,
    resolution: str | None,
    dimensions: str | None,
    samples: int,
    flickering_samples: int,
    prompts: Path | None,
    seed: int,
    weights: Path | None,
    lora: str | None,
    components: Path | None,
    device: str,
    dtype: str,
    text_encoder_device: str,
    head_map: Path | None,
    shard: str,
    resume: bool,
    overwrite: bool,
    skip_memory_check: bool,
) -> None:
    """Make the videos of VBench's prompts, named as VBench looks for them.

    A run that was stopped or killed is gone on with by the same command and --resume: finished videos are kept, after a
    look at whether they were made alike. Many GPUs share the work by --shard, all on one folder with --resume.

    \b
    Examples:
      forcing-kv vbench generate -o vb --suite VBench_full_info.json --model longlive-1.3b --policy window
      forcing-kv vbench generate -o vb --suite VBench --dimensions color,scene --samples 1
      forcing-kv vbench generate -o vb --suite VBench --prompts long_prompts.txt --shard 1/8 --resume
    """
    asked = None if dimensions is None else parse_dimensions(dimensions)
    part = parse_shard(shard)
    prompt_suite = read_suite(find_evaluator(vbench_python).package if suite is None else suite)
    plan = SamplePlan(
        dimensions=prompt_suite.dimensions if asked is None else asked,
        samples=samples,
        flickering_samples=flickering_samples,
    )
    texts = [prompt.text for prompt in prompt_suite.chosen(plan.dimensions)]
    augmented = None if prompts is None else read_augmented(prompts, prompt_suite, needed=texts)

    source = find_model(model, weights=weights, lora=lora, components=components)
    roles = source.head_map if head_map is None else HeadMap.load(head_map)
    run_device = resolve_device(device)
    shared: dict[str, Any] = {
        "num_frames": frames_of(seconds, source.preset.fps),
        "policy": policy,
        "options": stream_options,
        "resolution": None if resolution is None else parse_resolution(resolution),
    }
    planned = plan_run(
        source.config,
        source.preset,
        texts[0],
        head_map=roles,
        dtype=resolve_dtype(dtype, run_device),
        device=run_device,
        precision=precision,
        vae=WAN_VAE if source.preset.components else None,
        **shared,
    )
    check_stream(source.preset, planned)
    folder = BenchmarkFolder(output)
    settings = FolderSettings(
        made_with={
            "suite": prompt_suite.sha256,
            "prompts": None if augmented is None else {"name": augmented.name, "sha256": augmented.sha256},
            "model": source.preset.name,
            "weights": source.weights_label(),
            "head_map": None if roles is None else hashlib.sha256("/".join(roles.roles).encode()).hexdigest()[:16],
            **stream_options.changing_results(),
            "precision": precision,
            "seed": seed,
            **_of_stream(planned),
        },
        plan=plan,
        environment={
            **environment(),
            "attention": stream_options.attention,
            "execution": stream_options.execution,
        },
    )
    requests = suite_requests(
        folder,
        prompt_suite,
        plan,
        seed=seed,
        augmented=None if augmented is None else augmented.texts,
        shard=part,
        **shared,
    )
    names = [request.path.name for request in requests]
    folder.check(settings, resume=resume, overwrite=overwrite)
    folder.check_names(names)
    if not skip_memory_check:
        check_memory(planned)
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
    folder.begin(prompt_suite, settings, overwrite=overwrite)
    folder.check_case(names)
    click.echo(_plan_line(prompt_suite, plan, settings.made_with, len(requests)))
    with tqdm(desc="videos", unit="video", leave=False, disable=None) as bar:

        def report(progress: SuiteProgress) -> None:
            bar.total = progress.num_videos
            bar.update(progress.videos_done - bar.n)
            if progress.bytes_in_all is not None:
                bar.set_postfix_str(f"{progress.bytes_in_all / 1e9:.1f} GB in all")

        make_videos(pipeline, requests, check_memory=not skip_memory_check, on_progress=report)
    size = sum(request.path.stat().st_size for request in requests)
    click.echo(f"{folder.videos}: {len(requests)} videos, {size / 1e6:.1f} MB")
    click.echo(f"to score them: forcing-kv vbench evaluate {output}")


@command.command("evaluate", epilog=_install_help())
@click.argument("folder", type=click.Path(path_type=Path))
@_vbench_python
@click.option("--dimensions", metavar="NAME,...", help="What to score. [all whose videos are there]")
@click.option("--device", default="auto", show_default=True, help="Where VBench computes: cuda, cuda:N, cpu, or auto.")
@click.option(
    "--no-static-filter",
    is_flag=True,
    help=f"Score {FLICKERING} on the first five videos of each prompt, whether they move or not.",
)
@click.option(
    "--max-silence",
    type=click.FloatRange(0, min_open=True),
    metavar="MINUTES",
    default=60.0,
    show_default=True,
    help="End a dimension that has printed nothing for so long.",
)
@click.option("--overwrite", is_flag=True, help="Score again what has been scored.")
def evaluate_command(
    *,
    folder: Path,
    vbench_python: Path | None,
    dimensions: str | None,
    device: str,
    no_static_filter: bool,
    max_silence: float,
    overwrite: bool,
) -> None:
    """Score the videos in FOLDER with VBench, one dimension after the other, and write the report.

    What has been scored is kept; the same command goes on where a run was stopped. A dimension that fails is named with
    the end of its log, and the others are scored all the same. The first run downloads VBench's own models.
    """
    benchmark = BenchmarkFolder.open(folder)
    chosen, incomplete = ready_dimensions(benchmark, None if dimensions is None else parse_dimensions(dimensions))
    for name, num_missing in incomplete.items():
        click.echo(f"{name}: left out, {num_missing} of its videos are missing")
    benchmark.check_videos_alone()
    evaluator = find_evaluator(vbench_python)
    failed = []
    for number, name in enumerate(chosen, start=1):
        if not overwrite and is_evaluated(benchmark, name, static_filter=not no_static_filter):
            click.echo(f"{name}: scored already")
            continue
        click.echo(f"{name}: {number} of {len(chosen)}, log in {benchmark.evaluation(name) / 'log.txt'}")
        try:
            with tqdm(desc=name, bar_format="{desc} {elapsed} {postfix}", leave=False, disable=None) as bar:
                evaluate(
                    evaluator,
                    benchmark,
                    name,
                    device=device,
                    static_filter=not no_static_filter,
                    max_silence_s=60 * max_silence,
                    on_line=_shown_by(bar),
                )
            write_report(benchmark)  # now, for who stops the run before its end
        except EvaluatorError as error:
            click.echo("\n".join([str(error), *(f"  {line}" for line in last_lines(error.log))]), err=True)
            failed.append(name)
    _print_report(benchmark)
    if failed:
        raise ForcingKVError(
            f"{len(failed)} of {len(chosen)} dimensions could not be scored: {', '.join(failed)}; the logs are in "
            f"{folder / 'evaluation'}, and the same command goes on with what is missing"
        )


@command.command("report")
@click.argument("folder", type=click.Path(path_type=Path))
def report_command(*, folder: Path) -> None:
    """Write FOLDER/report.json anew from the results in FOLDER/results, and print it.

    The results may come from elsewhere: any file of VBench's whose name ends in _eval_results.json is read.
    """
    _print_report(BenchmarkFolder.open(folder))


def _shown_by(bar: "tqdm[Any]") -> Callable[[str], None]:
    return lambda line: bar.set_postfix_str(line[-_LINE_WIDTH:])


def _print_report(folder: BenchmarkFolder) -> None:
    click.echo(f"\n{format_report(write_report(folder))}\n\n{folder.report_path}: the report")


def _of_stream(planned: PlannedStream) -> dict[str, Any]:
    """What the videos' settings say of how they are made."""
    width, height = planned.resolution
    num_chunks = planned.num_chunks or 0
    return {
        "policy": planned.policy.spec(),
        "width": width,
        "height": height,
        "frames": pixel_frames(num_chunks * planned.geometry.chunk_frames),
        "fps": planned.fps,
        "dtype": str(planned.dtype).removeprefix("torch."),
    }


def _plan_line(suite: PromptSuite, plan: SamplePlan, made_with: Mapping[str, Any], num_videos: int) -> str:
    num_prompts, in_all = len(suite.chosen(plan.dimensions)), sum(1 for _ in plan.videos(suite))
    share = "" if num_videos == in_all else f", {num_videos} of them in this part"
    size = f"{made_with['width']}x{made_with['height']}"
    length = f"{made_with['frames']} frames ({made_with['frames'] / made_with['fps']:.1f} s)"
    return f"{num_prompts} prompts, {in_all} videos of {size} and {length}{share}"
