"""Every command in the README and the docs is one that the program understands, and every link leads somewhere."""

import re
import shlex
from pathlib import Path

import click
import pytest

from forcing_kv.cli import COMMANDS, cli

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def commands(page):
    """The lines in code blocks that begin with the program's name."""
    blocks = re.findall(r"^ *```\w*\n(.*?)^ *```$", page.read_text(), flags=re.M | re.S)
    lines = [line.strip() for block in blocks for line in block.splitlines()]
    lines = [line.partition(" > ")[0] for line in lines if line.startswith("forcing-kv ")]
    return [shlex.split(line, comments=True) for line in lines]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands(page):
    for _, name, *arguments in commands(page):
        assert name in COMMANDS, name
        parse(cli.get_command(None, name), name, arguments)


def parse(command, name, arguments):
    """Refuses unknown flags, those of a command within a command too."""
    with command.make_context(name, arguments) as context:
        if isinstance(command, click.Group):
            name, command, arguments = command.resolve_command(context, context._protected_args + context.args)
            parse(command, name, arguments)


def test_there_are_commands():
    assert sum(len(commands(page)) for page in PAGES) > 15


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links(page):
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
        assert (page.parent / target).exists(), target
