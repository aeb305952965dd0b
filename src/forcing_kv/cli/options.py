"""Options that several commands have, written down once: which model, and where it runs."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from forcing_kv.attention import AUTO, BACKENDS
from forcing_kv.cache import POSITIONS
from forcing_kv.stream_options import StreamOptions
from forcing_kv.video.decoder_options import LAYOUTS, DecoderOptions, Layout

Command = Callable[..., Any]

model = click.option(
    "--model", default="tiny", show_default=True, help="Name (see `forcing-kv models`) or folder of a model."
)
resolution = click.option(
    "--resolution",
    metavar="WxH|480p|720p|1080p",
    help="Size in pixels; a name with -portrait, as 480p-portrait, stands upright. [the model's own]",
)
head_map = click.option(
    "--head-map", type=click.Path(path_type=Path), help="Head roles to use instead of the model's own."
)
skip_memory_check = click.option("--skip-memory-check", is_flag=True, help="Start even if the device seems too small.")


def weights(command: Command) -> Command:
    """--weights and --lora."""
    return _with(
        command,
        click.option(
            "--weights",
            type=click.Path(path_type=Path),
            help="Weight file or folder to use instead of the model's own.",
        ),
        click.option(
            "--lora", metavar="FILE|none", help="LoRA to merge; none if the weights have the model's own merged."
        ),
    )


def components(help_text: str = "Folder with vae, text_encoder and tokenizer to use instead of the hub's.") -> Command:
    """--components."""
    return click.option("--components", type=click.Path(path_type=Path), help=help_text)


def stream(command: Command) -> Command:
    """--positions, --kv-dtype, --step-cache, --attention and --execution, as one argument `stream_options`."""

    @functools.wraps(command)
    def with_options(
        *,
        positions: str,
        kv_dtype: str | None,
        step_cache: float | None,
        attention: str,
        execution: str,
        **settings: Any,
    ) -> Any:
        asked = StreamOptions(
            positions=positions, kv_dtype=kv_dtype, step_cache=step_cache, attention=attention, execution=execution
        )
        return command(stream_options=asked, **settings)

    return _with(
        with_options,
        click.option(
            "--positions",
            type=click.Choice(POSITIONS),
            default="absolute",
            show_default=True,
            help="How the model sees time: absolute counts frames from the start of the video; relative counts within "
            "what the cache holds, so that no distance exceeds the model's training, however long the video.",
        ),
        click.option(
            "--kv-dtype",
            metavar="int8|fp8",
            help="Store the cache in small numbers, with any policy: half the bytes, or a quarter of float32's.",
        ),
        click.option(
            "--step-cache",
            type=float,
            metavar="THRESHOLD",
            help="TeaCache: leave the model's blocks out of denoising steps that change little (published: 0.2).",
        ),
        click.option(
            "--attention",
            metavar="NAME",
            default=AUTO,
            show_default=True,
            help=f"Back end that computes attention to the history: {', '.join(BACKENDS)}; or auto, the best known for "
            "the device. A name that is not there is answered with those that are.",
        ),
        click.option(
            "--execution",
            default="eager",
            show_default=True,
            metavar="eager|compile|cuda-graphs|compile+cuda-graphs",
            help="How passes are run: as they are, compiled (seconds, once), or replayed as CUDA graphs.",
        ),
    )


precision = click.option(
    "--precision",
    metavar="fp8",
    help="Linear layers in fp8, but for the first and last block: an H100 or newer. [that of --dtype]",
)


def placement(command: Command) -> Command:
    """--device, --dtype and --text-encoder-device."""
    return _with(
        command,
        click.option(
            "--device", default="auto", show_default=True, help="cpu, cuda, cuda:N, or auto: a GPU if there is one."
        ),
        click.option("--dtype", default="auto", show_default=True, help="float32, bfloat16, float16, or auto."),
        click.option(
            "--text-encoder-device",
            default="auto",
            show_default=True,
            help="Where prompts are encoded; cpu saves 11 GB of GPU memory.",
        ),
    )


def decoding(command: Command) -> Command:
    """--decoder, --vae-dtype, --vae-layout, --compile-vae and --overlap/--no-overlap, as one argument `decoding`."""

    @functools.wraps(command)
    def with_options(
        *,
        decoder_file: Path | None,
        vae_dtype: str,
        vae_layout: Layout,
        compile_vae: bool,
        overlap: bool | None,
        **settings: Any,
    ) -> Any:
        asked = DecoderOptions(
            file=decoder_file, dtype=vae_dtype, layout=vae_layout, compiled=compile_vae, overlap=overlap
        )
        return command(decoding=asked, **settings)

    return _with(
        with_options,
        click.option(
            "--decoder",
            "decoder_file",
            metavar="FILE",
            type=click.Path(path_type=Path),
            help="Decode with a tiny decoder (TAEHV's taew2_1, .pth or .safetensors) instead of the VAE: a small part "
            "of its work and memory, less sharp.",
        ),
        click.option(
            "--vae-dtype", default="auto", help="float32, bfloat16 or float16, of VAE or --decoder. [the model's]"
        ),
        click.option(
            "--vae-layout",
            type=click.Choice(LAYOUTS),
            default="auto",
            help="How the weights of VAE or --decoder lie in memory. [what suits the device]",
        ),
        click.option("--compile-vae", is_flag=True, help="Decode through torch.compile: a slow start, then quicker."),
        click.option(
            "--overlap/--no-overlap",
            default=None,
            help="Decode and write a chunk while the next one is made. [on a GPU]",
        ),
    )


def _with(command: Command, *options: Command) -> Command:
    """The command with these options, which `--help` lists in this order."""
    for option in reversed(options):
        command = option(command)
    return command
