"""`forcing-kv models`: what can be run."""

from pathlib import Path

import click

from forcing_kv.models import list_models


@click.command("models")
def command() -> None:
    """What can be run: where its weights come from, licence, memory, and whether it is on this machine.

    Every path of a saved model folder can be given as --model, too.
    """
    for preset, folder in list_models():
        num_bytes = _weight_bytes(folder)
        width, height = preset.default_resolution
        place = f"on this machine, {folder}" if num_bytes else f"not on this machine ({folder} is missing)"
        click.echo(f"{preset.name}  {preset.description}".rstrip())
        click.echo(f"  weights     {place}")
        click.echo(f"  licence     {preset.licence}")
        click.echo(f"  memory      {num_bytes / 1e6:.1f} MB of weights")
        click.echo(
            f"  video       {width}x{height}, {preset.fps} frames per second, {preset.chunk_frames}-frame chunks"
        )
        click.echo(f"  policy      {preset.default_policy}")


def _weight_bytes(folder: Path) -> int:
    """Bytes of all weights of a saved model; 0 where there are none."""
    return sum(file.stat().st_size for file in folder.rglob("*.safetensors"))
