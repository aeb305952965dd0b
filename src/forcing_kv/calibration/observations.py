"""What a calibration saw, as tensors and settings, and its file."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from forcing_kv.errors import ConfigurationError, OutputError

FORMAT = "forcing-kv-observations"
VERSION = 1

CIRCUMSTANCES = ("versions", "device")
"""Settings in which observations that belong together may differ."""

_TENSORS = ("scores", "standard_errors", "distance_mass", "sink_mass")
_LISTS = ("distances", "prompts", "seeds", "chunks", "steps")


@dataclass(frozen=True, kw_only=True)
class Observations:
    """What a calibration saw; heads by released number.

    Attributes:
        scores: Mean over queries of the mass on the newest frames over that on all but the first ones,
            [prompts, chunks, steps, layers, heads], float32.
        standard_errors: Of each score, from the sample of queries; shaped as `scores`, 0 where every query was taken.
        distance_mass: Mean mass per key frame by its distance to the first frame of the current chunk, over everything
            that was seen at that distance, the first frames of the stream left out; [layers, heads, distances],
            float32.
        distances: In latent frames; history is below 0, the current chunk 0 and above.
        sink_mass: Mean mass on each of the first frames of the stream, [layers, heads, sink_frames], float32.
        prompts: One per video.
        seeds: One per prompt.
        chunks: Observed chunks, by index.
        steps: Observed denoising steps, by index in the step list.
        settings: What else the numbers depend on: sink_frames, recent_frames, chunk_frames, max_queries, model,
            weights_sha256, ...; JSON values.
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
        """Score of every head, the mean over all that was seen; [layers, heads], float32."""
        return self.scores.double().mean(dim=(0, 1, 2)).float()

    def head_standard_errors(self) -> Tensor:
        """Standard error of `head_scores` from the sample of queries alone; [layers, heads], float32."""
        num_passes = self.scores[..., 0, 0].numel()
        return (self.standard_errors.double().square().sum(dim=(0, 1, 2)).sqrt() / num_passes).float()

    def identity(self) -> dict[str, Any]:
        """What must be the same in observations that belong together, by name."""
        settings = {name: value for name, value in self.settings.items() if name not in CIRCUMSTANCES}
        return {**settings, "chunks": list(self.chunks), "steps": list(self.steps)}

    @classmethod
    def concatenate(cls, parts: Sequence["Observations"]) -> "Observations":
        """Those of several prompts as one; settings that may differ are taken from the last.

        Raises:
            ConfigurationError: Nothing was given, or observations that do not belong together.
        """
        if not parts:
            raise ConfigurationError("there is nothing to concatenate: observe at least one prompt")
        for part in parts:
            difference = first_difference(part.identity(), parts[0].identity())
            if difference is not None:
                raise ConfigurationError(f"observations with {difference} do not belong together")
        shares = torch.tensor([len(part.prompts) for part in parts], dtype=torch.float64)
        shares /= shares.sum()

        def mean(tensors: list[Tensor]) -> Tensor:
            return (torch.stack(tensors, dim=-1).double() * shares).sum(dim=-1).float()

        return replace(
            parts[-1],
            scores=torch.cat([part.scores for part in parts]),
            standard_errors=torch.cat([part.standard_errors for part in parts]),
            distance_mass=mean([part.distance_mass for part in parts]),
            sink_mass=mean([part.sink_mass for part in parts]),
            prompts=tuple(prompt for part in parts for prompt in part.prompts),
            seeds=tuple(seed for part in parts for seed in part.seeds),
        )

    def save(self, path: str | Path) -> None:
        """Writes one safetensors file; the caller makes the write atomic if it must be."""
        document = {
            "format": FORMAT,
            "version": VERSION,
            **{name: getattr(self, name) for name in _LISTS},
            "settings": dict(self.settings),
        }
        tensors = {name: getattr(self, name).contiguous() for name in _TENSORS}
        save_file(tensors, str(path), metadata={"observations": json.dumps(document)})

    @classmethod
    def load(cls, path: str | Path) -> "Observations":
        """Reads such a file.

        Raises:
            OutputError: The file is missing, broken, or of another version.
        """
        try:
            with safe_open(str(path), framework="pt") as file:
                document = json.loads((file.metadata() or {}).get("observations", "{}"))
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a dict
        except (OSError, SafetensorError, ValueError) as error:
            raise OutputError(f"the observations {str(path)!r} cannot be read: {error}; remove the file") from error
        if document.get("format") != FORMAT or document.get("version") != VERSION:
            raise OutputError(
                f"{str(path)!r} holds no observations that this release reads ({FORMAT} version {VERSION}); start over"
            )
        lists: dict[str, Any] = {name: tuple(document[name]) for name in _LISTS}
        return cls(**tensors, **lists, settings=document["settings"])


def first_difference(ours: Mapping[str, Any], wanted: Mapping[str, Any]) -> str | None:
    """The first entry in which two identities differ, with both values; None where there is none."""
    for name in {**wanted, **ours}:
        if ours.get(name) != wanted.get(name):
            return f"{name} {ours.get(name)!r}, not {wanted.get(name)!r}"
    return None
