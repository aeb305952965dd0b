"""Which videos VBench wants: how many samples of which prompts, and under which names."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from forcing_kv.errors import ConfigurationError
from forcing_kv.evaluation.vbench.scores import DIMENSIONS, FLICKERING, check_dimensions
from forcing_kv.evaluation.vbench.suite import PromptSuite, SuitePrompt

SAMPLES = 5
"""Videos of a prompt that VBench reads; those of the leaderboard have as many."""

FLICKERING_SAMPLES = 25
"""Videos of a prompt for `temporal_flickering`, of which VBench keeps the first five without motion."""

MAX_FLICKERING_SAMPLES = 100


@dataclass(frozen=True, kw_only=True)
class SamplePlan:
    """How many videos of which prompts.

    Attributes:
        dimensions: Whose prompts, in VBench's order.
        samples: Videos per prompt.
        flickering_samples: Videos per prompt of `temporal_flickering`.

    Raises:
        UnknownNameError: A name that is no dimension.
        ConfigurationError: No dimension, or a number of videos that VBench would not read.
    """

    dimensions: tuple[str, ...] = tuple(DIMENSIONS)
    samples: int = SAMPLES
    flickering_samples: int = FLICKERING_SAMPLES

    def __post_init__(self) -> None:
        object.__setattr__(self, "dimensions", tuple(self.dimensions))  # JSON has lists
        check_dimensions(self.dimensions)
        if not self.dimensions:
            raise ConfigurationError(f"no dimension is asked for; choose among: {', '.join(DIMENSIONS)}")
        if not 1 <= self.samples <= SAMPLES:
            raise ConfigurationError(f"{self.samples} samples per prompt: VBench reads 1 to {SAMPLES}")
        if not 1 <= self.flickering_samples <= MAX_FLICKERING_SAMPLES:
            raise ConfigurationError(
                f"{self.flickering_samples} samples per prompt of {FLICKERING}: ask for 1 to {MAX_FLICKERING_SAMPLES}"
            )

    def num_samples(self, prompt: SuitePrompt) -> int:
        """Videos of one prompt."""
        others = prompt.dimensions.intersection(self.dimensions) - {FLICKERING}
        is_flickering = FLICKERING in prompt.dimensions and FLICKERING in self.dimensions
        return max(self.samples if others else 0, self.flickering_samples if is_flickering else 0)

    def videos(self, suite: PromptSuite) -> Iterator[tuple[SuitePrompt, int]]:
        """Every video: its prompt and the index of the sample; the first sample of all prompts, then the second.

        In this order a run that is stopped has fewer samples of everything, and not everything of a few prompts.
        """
        prompts = suite.chosen(self.dimensions)
        for index in range(max(self.num_samples(prompt) for prompt in prompts)):
            for prompt in prompts:
                if index < self.num_samples(prompt):
                    yield prompt, index

    def file_names(self, suite: PromptSuite, dimension: str) -> list[str]:
        """The videos that one dimension is scored on."""
        samples = range(self.samples_for(dimension))
        return [video_name(prompt.text, index) for prompt in suite.chosen([dimension]) for index in samples]

    def samples_for(self, dimension: str) -> int:
        """Videos per prompt that one dimension is scored on."""
        return self.flickering_samples if dimension == FLICKERING else self.samples

    def to_json(self) -> dict[str, Any]:
        """For the folder's settings; `SamplePlan(**document)` reads it."""
        return {
            "dimensions": list(self.dimensions),
            "samples": self.samples,
            "flickering_samples": self.flickering_samples,
        }


def video_name(prompt: str, index: int) -> str:
    """The name under which VBench looks for a sample of a prompt."""
    return f"{prompt}-{index}.mp4"
