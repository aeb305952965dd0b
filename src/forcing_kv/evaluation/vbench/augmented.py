"""Longer prompts in place of the suite's own, which is how models trained on long captions are benchmarked.

The videos keep the names of the short prompts, by which the evaluator finds them and against which it scores them.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from forcing_kv.errors import PromptError
from forcing_kv.evaluation.vbench.suite import PromptSuite

MAX_CHARACTERS = 10_000
"""More than any text encoder here reads; a longer line is a file that is no list of prompts."""


@dataclass(frozen=True, kw_only=True)
class AugmentedPrompts:
    """Prompts by the prompt of the suite they stand for.

    Attributes:
        name: Of the file.
        sha256: Of the file.
        texts: What the model is given, by the suite's text.
    """

    name: str
    sha256: str
    texts: dict[str, str]


def read_augmented(path: Path, suite: PromptSuite, *, needed: Sequence[str]) -> AugmentedPrompts:
    """Reads a file of longer prompts: JSON `{"short": "long", ...}`, or a line for every entry of the suite, in order.

    Where the suite has a text twice, the first of its lines counts.

    Args:
        path: UTF-8 text.
        suite: What the prompts are for.
        needed: Texts of the suite that must have one.

    Raises:
        PromptError: The file cannot be read, has another number of lines than the suite has entries, an empty or
            over-long prompt, a prompt for a text that is not in the suite, or none for one that is needed.
    """
    try:
        content = path.read_bytes()
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise PromptError(f"the prompts {path} are not UTF-8 text: {error.reason} at byte {error.start}") from error
    except OSError as error:
        raise PromptError(f"the prompts {path} cannot be read: {error.strerror}") from error
    texts = _from_json(path, text, suite) if text.lstrip().startswith("{") else _from_lines(path, text, suite)
    missing = [prompt for prompt in needed if prompt not in texts]
    if missing:
        raise PromptError(
            f"{path} has no prompt for {len(missing)} of the {len(needed)} that are asked for; the first is "
            f"{missing[0]!r}"
        )
    return AugmentedPrompts(name=path.name, sha256=hashlib.sha256(content).hexdigest(), texts=texts)


def _from_json(path: Path, text: str, suite: PromptSuite) -> dict[str, str]:
    try:
        document = json.loads(text)
    except json.JSONDecodeError as error:
        raise PromptError(f"{path} is not valid JSON: {error.msg} in line {error.lineno}") from error
    known = set(suite.entries)
    for short, long in document.items():
        if short not in known:
            raise PromptError(f"{path}: {short!r} is no prompt of the suite; its texts must be matched to the letter")
        if not isinstance(long, str):
            raise PromptError(f"{path}: the prompt for {short!r} is {json.dumps(long)[:80]}: write a text in quotes")
        _check(long, f"{path}: the prompt for {short!r}")
    return {short: long.strip() for short, long in document.items()}


def _from_lines(path: Path, text: str, suite: PromptSuite) -> dict[str, str]:
    # Only line ends: a prompt may hold the rarer characters that splitlines() takes for one.
    lines = [line.strip() for line in text.rstrip().replace("\r\n", "\n").split("\n")]
    if len(lines) != len(suite.entries):
        raise PromptError(
            f"{path} has {len(lines)} lines and the suite {len(suite.entries)} entries: write a line for every entry, "
            'in the suite\'s order, or JSON {"short prompt": "long prompt", ...}'
        )
    texts: dict[str, str] = {}
    for number, (short, long) in enumerate(zip(suite.entries, lines, strict=True), start=1):
        _check(long, f"{path}, line {number}")
        texts.setdefault(short, long)
    return texts


def _check(prompt: str, where: str) -> None:
    if not prompt.strip():
        raise PromptError(f"{where} is empty: say what the video shows")
    if len(prompt) > MAX_CHARACTERS:
        raise PromptError(f"{where} has {len(prompt)} characters, and at most {MAX_CHARACTERS} are read: shorten it")
