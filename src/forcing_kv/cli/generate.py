"""`forcing-kv generate`: videos from prompts."""

import json
import textwrap
from pathlib import Path
from typing import Any

import click
from tqdm import tqdm

from forcing_kv.cli import options
from forcing_kv.cli.progress import progress_bar
from forcing_kv.devices import resolve_device, resolve_dtype
from forcing_kv.generation import (
    ChunkProgress,
    GenerationReport,
    VideoRequest,
    check_made_alike,
    check_requests,
    frames_of,
    generate_video,
    is_finished,
    open_source,
    plan_requests,
    skipped_json,
    videos_contact_sheet,
)
from forcing_kv.heads import HeadMap
from forcing_kv.memory import check_memory, plan_run
from forcing_kv.models import find_model
from forcing_kv.output_files import atomic_write, check_output_file
from forcing_kv.pipeline import VideoPipeline
from forcing_kv.policies import POLICIES, describe_settings
from forcing_kv.prompt_file import read_prompt_file
from forcing_kv.prompt_schedule import PromptSchedule, ScheduledPrompt, prompt_schedule
from forcing_kv.resolution import parse_resolution
from forcing_kv.stream_check import check_stream
from forcing_kv.stream_options import StreamOptions
from forcing_kv.video import WAN_VAE, DecoderOptions

DEFAULT_SECONDS = 5.0


def _policy_help() -> str:
    lines = ["\b", "Policies, and their settings as they stand if not given:"]
    for name in POLICIES:
        settings = ", ".join(f"{key}={value}" for key, value in describe_settings(name).items()) or "no settings"
        lines.append(textwrap.fill(f"  {name}: {settings}", width=76, subsequent_indent="    "))
    return "\n".join(lines)


@click.command("generate", epilog=_policy_help())
@click.argument("prompt", required=False)
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), help="MP4 to write, or a folder for many videos. [out.mp4]"
)
@options.model
@click.option(
    "--policy",
    metavar="NAME[:SETTING=VALUE,...]",
    help="What the cache keeps: forcing-kv, full, window, ... [the model's own]",
)
@click.option("--seconds", type=float, help=f"Length to make, rounded up to whole chunks. [{DEFAULT_SECONDS:g}]")
@click.option("--frames", type=int, help="Length in pixel frames, instead of --seconds.")
@options.resolution
@click.option("--seed", type=int, default=0, show_default=True, help="The same seed gives the same video.")
@click.option("--num-videos", type=int, default=1, show_default=True, help="Videos per prompt, with seeds counting up.")
@click.option(
    "--switch",
    "switches",
    type=(float, str),
    metavar="SECONDS PROMPT",
    multiple=True,
    help="From so many seconds on, follow another prompt; may be given several times.",
)
@click.option(
    "--prompt-file", type=click.Path(path_type=Path), help="One prompt per line, or JSON lines with prompts over time."
)
@click.option(
    "--continue-from",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Go on from a video, or from the latents that --save-latents kept (exact). The new file begins with it; "
    "--seconds and --frames count what is added.",
)
@click.option(
    "--save-latents", type=click.Path(path_type=Path), help="Keep the latents as safetensors; a folder for many videos."
)
@click.option("--contact-sheet", type=click.Path(path_type=Path), help="Write a PNG with frames of every video.")
@click.option(
    "--json", "json_path", type=click.Path(path_type=Path), help="Write a report: frames, speed, cache, settings."
)
@click.option("--resume", is_flag=True, help="Go on with a video whose run was killed.")
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
    prompt: str | None,
    output: Path | None,
    model: str,
    policy: str | None,
    stream_options: StreamOptions,
    seconds: float | None,
    frames: int | None,
    resolution: str | None,
    seed: int,
    num_videos: int,
    weights: Path | None,
    lora: str | None,
    components: Path | None,
    device: str,
    dtype: str,
    text_encoder_device: str,
    decoding: DecoderOptions,
    precision: str | None,
    head_map: Path | None,
    switches: tuple[tuple[float, str], ...],
    prompt_file: Path | None,
    save_latents: Path | None,
    continue_from: Path | None,
    contact_sheet: Path | None,
    json_path: Path | None,
    resume: bool,
    overwrite: bool,
    skip_memory_check: bool,
) -> None:
    """Make a video from PROMPT, or many from --prompt-file or with --num-videos (then -o is a folder).

    A run that was killed is gone on with by the same command and --resume. Ctrl-C ends the video early, with the chunks
    that are finished.

    --continue-from puts another video, or its latents, in front. What this program has made keeps the prompt it was
    made from, and PROMPT takes over where the new part begins; for another video PROMPT holds from its start.

    \b
    Examples:
      forcing-kv generate "a large red circle bouncing sideways" -o circle.mp4 --seconds 10
      forcing-kv generate "a red circle" --switch 3 "a small blue cross moving up" -o switch.mp4 --seconds 6
      forcing-kv generate "a blue square" --policy full --json report.json --contact-sheet sheet.png
      forcing-kv generate "a blue square" --policy forcing-kv:sink_frames=2,segments_per_frame=4
      forcing-kv generate "a large blue square bouncing sideways" --continue-from circle.mp4 -o longer.mp4 --seconds 5
      forcing-kv generate --prompt-file prompts.txt -o videos
    """
    _check_usage(
        prompt, prompt_file, seconds=seconds, frames=frames, switches=switches, resume=resume, overwrite=overwrite
    )
    prompts = [_schedule(prompt or "", switches)] if prompt_file is None else read_prompt_file(prompt_file)
    source = find_model(model, weights=weights, lora=lora, components=components)
    shared: dict[str, Any] = {
        "seed": seed,
        "num_frames": frames if frames is not None else _frames(seconds, source.preset.fps),
        "policy": policy,
        "options": stream_options,
        "resolution": None if resolution is None else parse_resolution(resolution),
        "continue_from": continue_from,
    }
    given_frames = 0
    if continue_from is not None:
        beginning = open_source(
            continue_from,
            preset=source.preset,
            num_channels=source.config.in_dim,
            resolution=shared["resolution"],
            has_encoder=decoding.file is None,
        )
        given_frames, shared["resolution"] = beginning.given_frames, beginning.resolution
        prompts = [beginning.continued_with(schedule, fps=source.preset.fps) for schedule in prompts]
    is_many = prompt_file is not None or num_videos != 1
    folders = [folder for folder in (output or Path("videos"), save_latents) if folder is not None] if is_many else []
    if is_many:
        requests = plan_requests(prompts, folders[0], num_videos=num_videos, latents_folder=save_latents, **shared)
    else:
        path = output or Path("out.mp4")
        requests = [VideoRequest(prompts=prompts[0], path=path, latents_path=save_latents, **shared)]
    check_requests(requests, folders=folders, resume=resume, overwrite=overwrite)
    for path in filter(None, (contact_sheet, json_path)):
        check_output_file(path, overwrite=overwrite or resume)
    roles = source.head_map if head_map is None else HeadMap.load(head_map)
    run_device = resolve_device(device)
    run_dtype = resolve_dtype(dtype, run_device)
    decoding.check_on(run_device)
    planned = plan_run(
        source.config,
        source.preset,
        max((request.prompts for request in requests), key=len),
        num_frames=shared["num_frames"],
        given_frames=given_frames,
        head_map=roles,
        policy=policy,
        resolution=shared["resolution"],
        options=stream_options,
        precision=precision,
        dtype=run_dtype,
        device=run_device,
        # Any other VAE is known when it is loaded.
        **decoding.planned(WAN_VAE if source.preset.components else None, run_dtype, run_device),
    )
    check_stream(source.preset, planned)
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
            decoding=decoding,
            on_progress=show,
        )
    for folder in folders:
        folder.mkdir(exist_ok=True)

    reports = _generate_all(pipeline, requests, resume=resume, overwrite=overwrite, check_memory=not skip_memory_check)
    made = [request for request in requests if request.path in reports]
    if contact_sheet is not None:
        rows = [(request.path, _sheet_label(request, reports[request.path])) for request in made]
        videos_contact_sheet(rows, contact_sheet, title="" if is_many else requests[0].title)
    if json_path is not None:
        documents = [_document(request, reports[request.path]) for request in made]
        with atomic_write(json_path) as temporary:
            temporary.write_text(json.dumps({"videos": documents} if is_many else documents[0], indent=2) + "\n")
    if any(report is not None and report.interrupted for report in reports.values()):
        raise KeyboardInterrupt


def _check_usage(
    prompt: str | None,
    prompt_file: Path | None,
    *,
    seconds: float | None,
    frames: int | None,
    switches: tuple[tuple[float, str], ...],
    resume: bool,
    overwrite: bool,
) -> None:
    """Refuses options that contradict each other."""
    if (prompt is None) == (prompt_file is None):
        raise click.UsageError("give either a PROMPT or --prompt-file")
    if seconds is not None and frames is not None:
        raise click.UsageError("give either --seconds or --frames, not both")
    if resume and overwrite:
        raise click.UsageError("--resume goes on with what is there, --overwrite starts it over: give one of the two")
    if switches and prompt is None:
        raise click.UsageError("--switch goes with a PROMPT; in a prompt file, write the times into its lines")


def _schedule(prompt: str, switches: tuple[tuple[float, str], ...]) -> PromptSchedule:
    later = [ScheduledPrompt(at_seconds=at_seconds, text=text) for at_seconds, text in switches]
    return prompt_schedule([ScheduledPrompt(text=prompt), *later])


def _generate_all(
    pipeline: VideoPipeline, requests: list[VideoRequest], *, resume: bool, overwrite: bool, check_memory: bool
) -> dict[Path, GenerationReport | None]:
    """One video after the other, up to the first that is interrupted; None for those an earlier run has finished."""
    reports: dict[Path, GenerationReport | None] = {}
    for number, request in enumerate(requests, start=1):
        if resume and not overwrite and is_finished(request):
            check_made_alike(pipeline, request)
            click.echo(f"{request.path}: finished already")
            reports[request.path] = None
            continue
        name = "chunks" if len(requests) == 1 else f"video {number}/{len(requests)}"
        with tqdm(desc=name, unit="chunk", leave=False, disable=None) as bar:

            def show(progress: ChunkProgress, bar: Any = bar) -> None:
                bar.total = progress.num_chunks
                bar.n = progress.chunks_done
                bar.set_postfix_str(f"{progress.fps:.1f} FPS" if progress.fps else "")

            report = generate_video(
                pipeline,
                request,
                resume=resume,
                overwrite=overwrite,
                check_memory=check_memory,
                on_progress=show,
            )
        reports[request.path] = report
        click.echo(_summary(report))
        if report.interrupted:
            break
    return reports


def _summary(report: GenerationReport) -> str:
    lines = [
        f"{report.path}: {report.frames} frames of {report.width}x{report.height}, {report.seconds_video:.1f} s",
        *_given_lines(report),
        f"  speed  {report.fps_diffusion:.1f} FPS diffusion, {report.fps_end_to_end:.1f} FPS end to end",
        f"  cache  {_cache_line(report)}",
    ]
    asked_for = f"{report.frames_requested} {'new ' if report.continue_from else ''}frames were asked for"
    if report.interrupted:
        lines.append(f"  interrupted: {asked_for}")
    elif report.frames - report.frames_given != report.frames_requested:
        lines.append(f"  {asked_for}; a video is made of whole chunks")
    return "\n".join(lines)


def _given_lines(report: GenerationReport) -> list[str]:
    """What the video goes on from, and what of it was not taken."""
    if report.continue_from is None:
        return []
    lines = [f"  given  its first {report.frames_given} frames, from {report.continue_from}"]
    if report.first_frames_left_out:
        lines.append(
            f"         without the first {report.first_frames_left_out} of that file, which make no whole chunk"
        )
    if report.last_frames_left_out:
        lines.append(f"         without the last {report.last_frames_left_out} of that file, which make no whole chunk")
    return lines


def _cache_line(report: GenerationReport) -> str:
    held, full = _megabytes(report.cache_bytes), _megabytes(report.full_cache_bytes)
    if report.cache_bytes >= report.full_cache_bytes:
        return f"{held} held, with room for more than the {full} of all frames so far"
    saved = 1 - report.cache_bytes / report.full_cache_bytes
    return f"{held} held, a full cache would hold {full}: {100 * saved:.0f} % saved"


def _sheet_label(request: VideoRequest, report: GenerationReport | None) -> str:
    if report is None:
        return request.path.stem
    return f"{request.path.stem}: {report.policy}, cache {_megabytes(report.cache_bytes)}"


def _document(request: VideoRequest, report: GenerationReport | None) -> dict[str, Any]:
    return skipped_json(request) if report is None else report.to_json()


def _megabytes(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.2f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:.1f} MB"


def _frames(seconds: float | None, fps: int) -> int:
    return frames_of(DEFAULT_SECONDS if seconds is None else seconds, fps)
