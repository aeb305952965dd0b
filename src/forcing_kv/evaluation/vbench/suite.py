"""VBench's prompt suite, as its file `VBench_full_info.json` holds it: which prompts, and what each is made to measure.

The file belongs to VBench and is read where it lies. A few texts stand in it twice, for different dimensions; VBench
looks for the same file names both times, so that here they are one prompt with the dimensions of both.
"""

import hashlib
import json
from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from forcing_kv.errors import ConfigurationError
from forcing_kv.evaluation.vbench.scores import DIMENSIONS

SUITE_FILE = "VBench_full_info.json"
OFFICIAL_SHA256 = "5dd2de80ee43cda750b2b72ea7023657c0b90d3702041c7e4608c65dbe50dccd"
"""Of the file in vbench 0.1.5."""


@dataclass(frozen=True, kw_only=True)
class SuitePrompt:
    """One prompt, and the dimensions its videos are scored in."""

    text: str
    dimensions: frozenset[str]


@dataclass(frozen=True, kw_only=True)
class PromptSuite:
    """What a suite file holds.

    Attributes:
        content: The file, byte for byte; the evaluator reads it again.
        entries: The text of every entry, repeated ones too: the lines that VBench's lists of prompts have.
        prompts: Every distinct prompt, in order.
    """

    content: bytes
    entries: tuple[str, ...]
    prompts: tuple[SuitePrompt, ...]

    @cached_property
    def sha256(self) -> str:
        """Of the file."""
        return hashlib.sha256(self.content).hexdigest()

    @property
    def is_official(self) -> bool:
        """Whether this is the suite that published scores are of."""
        return self.sha256 == OFFICIAL_SHA256

    @property
    def dimensions(self) -> tuple[str, ...]:
        """Those that have prompts, in VBench's order."""
        return tuple(name for name in DIMENSIONS if any(name in prompt.dimensions for prompt in self.prompts))

    def chosen(self, dimensions: Collection[str]) -> list[SuitePrompt]:
        """The prompts that any of these dimensions is scored on.

        Raises:
            ConfigurationError: A dimension without a prompt.
        """
        for name in dimensions:
            if name not in self.dimensions:
                raise ConfigurationError(
                    f"the prompt suite has no prompt for {name}; it has some for: {', '.join(self.dimensions)}"
                )
        return [prompt for prompt in self.prompts if not prompt.dimensions.isdisjoint(dimensions)]


def read_suite(path: Path) -> PromptSuite:
    """Reads a suite file, or the one in a folder: a checkout of VBench, or its installed package.

    Raises:
        ConfigurationError: There is none, it cannot be read, or it is no suite.
    """
    if path.is_dir():
        found = [path / SUITE_FILE, path / "vbench" / SUITE_FILE]
        path = next((file for file in found if file.is_file()), found[0])
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ConfigurationError(
            f"the prompt suite {path} cannot be read: {error.strerror}; give {SUITE_FILE} of VBench, or a folder that "
            "holds it"
        ) from error
    return parse_suite(content, where=str(path))


def parse_suite(content: bytes, *, where: str) -> PromptSuite:
    """Reads what a suite file holds.

    Raises:
        ConfigurationError: It is no suite; `where` names it.
    """
    try:
        document = json.loads(content)
    except ValueError as error:
        raise ConfigurationError(f"the prompt suite {where} is not valid JSON: {error}") from error
    if not isinstance(document, list) or not document:
        raise ConfigurationError(f"the prompt suite {where} is no list of prompts: give {SUITE_FILE} of VBench")
    entries = [_entry(item, number, where) for number, item in enumerate(document, start=1)]
    united: dict[str, frozenset[str]] = {}
    for entry in entries:
        united[entry.text] = united.get(entry.text, frozenset()) | entry.dimensions
    return PromptSuite(
        content=content,
        entries=tuple(entry.text for entry in entries),
        prompts=tuple(SuitePrompt(text=text, dimensions=dimensions) for text, dimensions in united.items()),
    )


def _entry(item: Any, number: int, where: str) -> SuitePrompt:
    text, dimensions = (item.get("prompt_en"), item.get("dimension")) if isinstance(item, dict) else (None, None)
    if not isinstance(text, str) or not text.strip() or not isinstance(dimensions, list) or not dimensions:
        raise ConfigurationError(
            f'the prompt suite {where}, entry {number}: no {{"prompt_en": "...", "dimension": [...]}} but '
            f"{json.dumps(item)[:80]}"
        )
    unknown = [name for name in dimensions if name not in DIMENSIONS]
    if unknown:
        raise ConfigurationError(
            f"the prompt suite {where}, entry {number}: dimension {unknown[0]!r} is none of VBench 1's: "
            f"{', '.join(DIMENSIONS)}"
        )
    if "/" in text or "\0" in text:
        raise ConfigurationError(
            f"the prompt suite {where}, entry {number}: {text!r} cannot be part of a file name, by which VBench finds "
            "its videos: take the / out"
        )
    return SuitePrompt(text=text, dimensions=frozenset(dimensions))
