"""Files of many prompts: one video per line.

A line is a prompt as it is, or, where it begins with `{`, JSON with prompts that take over from each other in time:
`{"prompts": [{"at_seconds": 0, "text": "a red circle"}, {"at_seconds": 2, "text": "a blue square"}]}`.
Every line is checked before any work starts, and a bad one is named by its number.
"""

import json
from pathlib import Path
from typing import Any

from forcing_kv.errors import PromptError
from forcing_kv.prompt_schedule import PromptSchedule, ScheduledPrompt, prompt_schedule

MAX_CHARACTERS = 4000
"""Of one prompt. Text encoders here read 512 tokens at most, some 2,500 characters of English: more is a mistake."""


def read_prompt_file(path: str | Path) -> list[PromptSchedule]:
    """Read and check a prompt file.

    Args:
        path: UTF-8 text. Empty lines are allowed at the end only, so that line numbers are video numbers.

    Returns:
        One schedule per line.

    Raises:
        PromptError: The file is missing, not UTF-8 or empty, or a line is bad; the message names the line's number.
    """
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8-sig").rstrip().splitlines()
    except UnicodeDecodeError as error:
        raise PromptError(f"the prompt file {path} is not UTF-8 text: {error.reason} at byte {error.start}") from error
    except OSError as error:
        raise PromptError(f"the prompt file {path} cannot be read: {error.strerror}") from error
    if not lines:
        raise PromptError(f"the prompt file {path} is empty: write one prompt per line")
    schedules = []
    for number, line in enumerate(lines, start=1):
        try:
            schedules.append(parse_prompt_line(line))
        except PromptError as error:
            raise PromptError(f"{path}, line {number}: {error}") from error
    return schedules


def read_single_prompts(path: str | Path, *, what: str) -> list[str]:
    """The texts of a prompt file in which no prompt changes over time.

    Args:
        path: As in `read_prompt_file`.
        what: What takes such a file, for the error: `a comparison`.

    Raises:
        PromptError: As `read_prompt_file`, or a line's prompt changes.
    """
    prompts: list[str] = []
    for number, schedule in enumerate(read_prompt_file(path), start=1):
        if len(schedule) > 1:
            raise PromptError(f"{path}, line {number}: {what} takes one prompt per line, not a schedule")
        prompts += schedule[0].texts(1)
    return prompts


def parse_prompt_line(line: str) -> PromptSchedule:
    """Read one line of a prompt file.

    Raises:
        PromptError: The line is empty, no valid JSON, no valid schedule, or has a prompt that is far too long.
    """
    schedule = _schedule(line.strip())
    for prompt in schedule:
        length = len(prompt.texts(1)[0])
        if length > MAX_CHARACTERS:
            raise PromptError(f"a prompt of {length:,} characters is too long: write at most {MAX_CHARACTERS:,}")
    return schedule


def _schedule(line: str) -> PromptSchedule:
    if not line:
        raise PromptError("the line is empty: remove it or write a prompt")
    if not line.startswith("{"):
        return prompt_schedule(line)
    try:
        document = json.loads(line)
    except json.JSONDecodeError as error:
        raise PromptError(f"no valid JSON: {error.msg} at column {error.colno}") from error
    prompts = document.get("prompts")
    if set(document) != {"prompts"} or not isinstance(prompts, list) or not prompts:
        raise PromptError('the JSON must be {"prompts": [{"at_seconds": 0, "text": "..."}, ...]}')
    return prompt_schedule([_scheduled_prompt(prompt) for prompt in prompts])


def _scheduled_prompt(document: Any) -> ScheduledPrompt:
    if not isinstance(document, dict) or not set(document) <= {"at_seconds", "text"}:
        raise PromptError(f'{json.dumps(document)} is no prompt: write {{"at_seconds": 0, "text": "..."}}')
    at_seconds, text = document.get("at_seconds", 0), document.get("text", "")
    if isinstance(at_seconds, bool) or not isinstance(at_seconds, int | float):
        raise PromptError(f"at_seconds is {json.dumps(at_seconds)}: write a number of seconds")
    if not isinstance(text, str):
        raise PromptError(f"text is {json.dumps(text)}: write a prompt in quotes")
    return ScheduledPrompt(at_seconds=float(at_seconds), text=text)
