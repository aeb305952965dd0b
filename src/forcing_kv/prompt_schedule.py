"""Which prompt holds from when on."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from forcing_kv.errors import PromptError


@dataclass(frozen=True, kw_only=True)
class ScheduledPrompt:
    """A prompt and the time from which it holds.

    Attributes:
        at_seconds: Video time; the prompt takes effect at the first chunk that starts at or after it.
        text: One text for all batch items, or one per item.

    Raises:
        PromptError: A text that is empty, or a time below 0.
    """

    at_seconds: float = 0.0
    text: str | tuple[str, ...]

    def __post_init__(self) -> None:
        if isinstance(self.text, list):
            object.__setattr__(self, "text", tuple(self.text))
        if not self.texts(1) or not all(text.strip() for text in self.texts(1)):
            raise PromptError("the prompt is empty; say what the video shows")
        if not self.at_seconds >= 0:
            raise PromptError(f"a prompt cannot begin at {self.at_seconds} seconds; use 0 or later")

    def texts(self, batch_size: int) -> tuple[str, ...]:
        """The text of every batch item; a single text serves all."""
        return (self.text,) * batch_size if isinstance(self.text, str) else tuple(self.text)


PromptSchedule = tuple[ScheduledPrompt, ...]


def prompt_schedule(prompt: str | Sequence[str] | Sequence[ScheduledPrompt]) -> PromptSchedule:
    """Brings every way of giving a prompt into one form, in order of time.

    Args:
        prompt: A text; one text per batch item; or scheduled prompts, the first of them at 0 seconds.

    Raises:
        PromptError: An empty text, no prompt at 0 seconds, or two prompts for the same time.
    """
    if isinstance(prompt, str):
        return (ScheduledPrompt(text=prompt),)
    texts = tuple(item for item in prompt if isinstance(item, str))
    scheduled = sorted((item for item in prompt if isinstance(item, ScheduledPrompt)), key=lambda item: item.at_seconds)
    if texts and scheduled:
        raise PromptError("give texts or scheduled prompts, not both at once")
    if texts:
        return (ScheduledPrompt(text=texts),)
    times = [item.at_seconds for item in scheduled]
    if not times or times[0] != 0:
        raise PromptError("a prompt schedule must begin with a prompt at 0 seconds")
    if len(set(times)) != len(times):
        raise PromptError(f"two prompts are scheduled for the same time: {times}")
    return tuple(scheduled)


def schedule_to_json(schedule: PromptSchedule) -> str | list[dict[str, Any]]:
    """A schedule for a single video as files hold it: the text, or all prompts where there is more than one."""
    if len(schedule) == 1:
        return schedule[0].texts(1)[0]
    return [{"at_seconds": prompt.at_seconds, "text": prompt.texts(1)[0]} for prompt in schedule]


def schedule_from_json(document: str | list[dict[str, Any]]) -> PromptSchedule:
    """What `schedule_to_json` gave."""
    return prompt_schedule(
        document if isinstance(document, str) else [ScheduledPrompt(**prompt) for prompt in document]
    )


def taken_over(first: PromptSchedule, second: PromptSchedule, *, at_seconds: float) -> PromptSchedule:
    """`first` until `at_seconds`, then `second`; where the same prompt goes on, nothing changes there."""
    before = [prompt for prompt in first if prompt.at_seconds < at_seconds]
    due = [prompt for prompt in second if prompt.at_seconds <= at_seconds][-1]
    after = [prompt for prompt in second if prompt.at_seconds > at_seconds]
    changes = due.text != before[-1].text
    return (*before, *([replace(due, at_seconds=at_seconds)] if changes else []), *after)


def shifted(schedule: PromptSchedule, *, seconds: float) -> PromptSchedule:
    """A schedule as it is seen by who joins `seconds` after its start."""
    past = [prompt for prompt in schedule if prompt.at_seconds <= seconds]
    coming = [prompt for prompt in schedule if prompt.at_seconds > seconds]
    return (
        replace(past[-1], at_seconds=0.0),
        *(replace(prompt, at_seconds=prompt.at_seconds - seconds) for prompt in coming),
    )
