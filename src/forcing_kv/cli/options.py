"""Options that several commands have, written down once: which model, and where it runs."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

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


def stream_savings(command: Command) -> Command:
    """--kv-dtype and --step-cache."""
    return _with(
        command,
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


def _with(command: Command, *options: Command) -> Command:
    """The command with these options, which `--help` lists in this order."""
    for option in reversed(options):
        command = option(command)
    return command
