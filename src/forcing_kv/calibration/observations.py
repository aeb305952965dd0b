"""What a calibration saw: the score of every head at every prompt, chunk and denoising step, and where its mass lay."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Observations:
    """What a calibration saw; heads by released number.

    Attributes:
        scores: [prompts, chunks, steps, layers, heads] float32: mass on the newest key frames over the mass on all but
            the first ones, averaged over queries.
        standard_errors: Same shape: of the scores, from taking a sample of the queries; 0 where all were taken.
        distance_mass: [layers, heads, distances] float32: mean mass per key frame, by its distance to the first frame
            of the current chunk; sink frames are left out.
        distances: In latent frames, rising; negative for history.
        sink_mass: [layers, heads, sink_frames] float32: mean mass on each of the first frames of the stream.
        prompts: One video each.
        seeds: One per prompt.
        chunks: Indices of the observed chunks.
        steps: Observed denoising steps, by index in the step list.
        settings: Everything else that decides the result.
    """

    scores: Tensor
    standard_errors: Tensor
    distance_mass: Tensor
    distances: tuple[int, ...]
    sink_mass: Tensor
    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    chunks: tuple[int, ...]
    steps: tuple[int, ...]
    settings: Mapping[str, Any]

    def head_scores(self) -> Tensor:
        """[layers, heads]: mean over prompts, chunks and steps."""
        return self.scores.mean(dim=(0, 1, 2))
