"""The command line: one file per command, loaded only when it is called.

A command parses, calls and prints; what it does lies in the packages below. Whatever a user can cause and correct ends
as one line on stderr with exit code 2; anything else is a defect and shows its traceback.
"""

import importlib
import os
import sys
import warnings
from collections.abc import Sequence
from typing import Any, TextIO

import click

from forcing_kv.errors import ForcingKVError
from forcing_kv.versions import package_version

PROGRAM = "forcing-kv"
COMMANDS = {
    "generate": "Make a video from a prompt.",
    "models": "What can be run: weights, licence, memory.",
    "convert": "A released checkpoint or a fine-tune -> a model folder.",
    "calibrate": "Which heads of a checkpoint are static: a head map and a report.",
    "bench": "Speed and memory of cache policies, side by side.",
    "compare": "Quality of cache policies, side by side from the same noise.",
    "vbench": "VBench: its prompts made into videos, scored by its evaluator.",
    "prompts": "Valid prompts for the embedded model.",
    "train-tiny": "Train the embedded model from nothing.",
}
"""Command -> what `--help` says of it. `some-command` is the `command` of module `forcing_kv.cli.some_command`."""

_USER_ERROR = 2
_INTERRUPTED = 130


class LazyGroup(click.Group):
    """Knows its commands by name; imports one when it is called, so that `--help` does not wait for torch."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All names, in the order of `COMMANDS`."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command; None for an unknown name."""
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"forcing_kv.cli.{cmd_name.replace('-', '_')}")
        command: click.Command = module.command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click's, with the choices in the error."""
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            ctx.fail(f"unknown command {args[0]!r}; choose one of: {', '.join(COMMANDS)}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def main(self, args: Sequence[str] | None = None, **settings: Any) -> Any:  # type: ignore[override]  # overloads
        """Run, turn errors into one line each, and exit."""
        settings = {"prog_name": PROGRAM, **settings, "standalone_mode": False}
        try:
            exit_code = super().main(args, **settings)
        except ForcingKVError as error:
            _fail(str(error), _USER_ERROR)
        except click.exceptions.NoArgsIsHelpError as error:
            error.show()
            sys.exit(_USER_ERROR)
        except click.ClickException as error:
            _fail(error.format_message(), _USER_ERROR)
        except click.Abort:
            _fail("interrupted", _INTERRUPTED)
        sys.exit(exit_code if isinstance(exit_code, int) else 0)


def _fail(message: str, exit_code: int) -> None:
    click.echo(f"{PROGRAM}: error: {' '.join(message.split())}", err=True)
    sys.exit(exit_code)


def _show_warning(  # noqa: PLR0917  # called by Python with these
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """One line, as errors are; a warning of a library names its kind."""
    kind = "note" if issubclass(category, UserWarning) else category.__name__
    click.echo(f"{PROGRAM}: {kind}: {' '.join(str(message).split())}", err=True)


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.version_option(package_version(), prog_name=PROGRAM)
def cli() -> None:
    """Autoregressive video diffusion with a KV cache compressed by head role.

    \b
    First steps:
      forcing-kv generate "a large red circle bouncing sideways" -o out.mp4
      forcing-kv generate --help
    """


def main() -> None:
    """Entry point of the program."""
    # The libraries below report every file they load; a progress bar of ours and one line per error is what we print.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    warnings.showwarning = _show_warning
    cli.main()
