"""`forcing-kv models`: what can be run."""

import click

from forcing_kv.models import list_models


@click.command("models")
def command() -> None:
    """What can be run."""
    for source in list_models():
        click.echo(f"{source.preset.name}  {source.preset.description}".rstrip())
