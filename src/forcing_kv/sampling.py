"""Flow-matching schedule, few-step sampler and the noise they use.

A chunk starts as noise; each step predicts the clean chunk and, unless it is the last, puts fresh noise of the next
level on it. Everything is float32 on the host's side of the model: a handful of additions per step.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from forcing_kv.errors import ConfigurationError

NUM_TRAIN_STEPS = 1000


@dataclass(frozen=True, kw_only=True)
class FlowSchedule:
    """Noise level sigma by timestep: linear, then shifted towards noise.

    Attributes:
        shift: 1 keeps it linear; 5 in every release.
    """

    shift: float = 5.0

    @cached_property
    def sigmas(self) -> tuple[float, ...]:
        """The table, from 1 down to just above 0, `NUM_TRAIN_STEPS` entries."""
        linear = (1 - index / NUM_TRAIN_STEPS for index in range(NUM_TRAIN_STEPS))
        return tuple(self.shift * sigma / (1 + (self.shift - 1) * sigma) for sigma in linear)

    def sigma(self, timestep: float) -> float:
        """Noise level at a timestep in 0 .. 1000: that of the nearest entry of the table."""
        return min(self.sigmas, key=lambda sigma: abs(sigma * NUM_TRAIN_STEPS - timestep))

    def warp(self, steps: Sequence[float]) -> tuple[float, ...]:
        """Timesteps of the table entries that a step list such as 1000, 750, 500, 250 means."""
        return tuple(self.sigmas[int(NUM_TRAIN_STEPS - step)] * NUM_TRAIN_STEPS for step in steps)


@dataclass(frozen=True, kw_only=True)
class FewStepSampler:
    """Denoises a chunk in a few steps.

    Attributes:
        steps: The released step list, falling, from 1000.
        warped: Whether the list names table entries (1000, 937.5, 833.3, 625 for the usual list) or timesteps.
        schedule: Noise levels.
        context_noise: Timestep of the commit pass; 0 in every release.

    Raises:
        ConfigurationError: Steps that are empty, out of range or not falling.
    """

    steps: tuple[float, ...] = (1000, 750, 500, 250)
    warped: bool = True
    schedule: FlowSchedule = FlowSchedule()
    context_noise: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "steps", tuple(self.steps))
        falling = all(first > second for first, second in zip(self.steps, self.steps[1:], strict=False))
        if not self.steps or not falling or not (self.steps[-1] > 0 and self.steps[0] <= NUM_TRAIN_STEPS):
            raise ConfigurationError(f"steps {list(self.steps)} must fall from at most {NUM_TRAIN_STEPS} to above 0")

    @cached_property
    def timesteps(self) -> tuple[float, ...]:
        """What the transformer is told, per step."""
        return self.schedule.warp(self.steps) if self.warped else self.steps

    @cached_property
    def sigmas(self) -> tuple[float, ...]:
        """Noise level of each step."""
        return tuple(self.schedule.sigma(timestep) for timestep in self.timesteps)

    @property
    def num_draws(self) -> int:
        """Noise draws that `sample` takes per chunk: its own, and one for each step but the last."""
        return len(self.steps)

    def sample(
        self, noise: Tensor, predict_velocity: Callable[[Tensor, float], Tensor], draw: Callable[[], Tensor]
    ) -> Tensor:
        """Makes one clean chunk.

        Args:
            noise: Pure noise, [batch, frames, channels, height, width], float32.
            predict_velocity: The model: (noisy chunk, timestep) -> velocity, shaped as `noise`.
            draw: Gives fresh noise, shaped as `noise`, once per step but the last.

        Returns:
            The clean chunk, shaped as `noise`, float32.
        """
        x = noise
        for step, (timestep, sigma) in enumerate(zip(self.timesteps, self.sigmas, strict=True)):
            clean = x - sigma * predict_velocity(x, timestep).float()
            if step + 1 < len(self.sigmas):
                next_sigma = self.sigmas[step + 1]
                x = (1 - next_sigma) * clean + next_sigma * draw()
        return clean


class NoiseSource(Protocol):
    """Where noise comes from: `SeededNoise`, or a recording."""

    def draw(self) -> Tensor:
        """The next noise of one chunk's shape, float32: the chunk's own first, then one for each renoising step."""
        ...

    def state(self) -> Tensor:
        """What `load_state` needs to go on from here."""
        ...

    def load_state(self, state: Tensor) -> None:
        """Goes on from a state."""
        ...


class SeededNoise:
    """Gaussian noise from one CPU generator per batch item, seeded seed + item.

    So a video's noise depends on its seed alone: not on the policy, the device or the batch it is made in.

    Args:
        seed: Seed of the first batch item.
        shape: Of one draw, [batch, frames, channels, height, width].
        device: Where the noise is wanted.
    """

    def __init__(self, seed: int, shape: Sequence[int], *, device: torch.device | str = "cpu") -> None:
        self._shape = tuple(shape)
        self._device = torch.device(device)
        self._generators = [torch.Generator().manual_seed(seed + item) for item in range(self._shape[0])]

    def draw(self) -> Tensor:
        """See `NoiseSource.draw`."""
        items = [torch.randn(self._shape[1:], generator=generator) for generator in self._generators]
        noise = torch.stack(items)
        if self._device.type == "cuda":  # out of pinned memory the copy need not be waited for
            return noise.pin_memory().to(self._device, non_blocking=True)
        return noise.to(self._device)

    def state(self) -> Tensor:
        """[batch, state_bytes], uint8."""
        return torch.stack([generator.get_state() for generator in self._generators])

    def load_state(self, state: Tensor) -> None:
        """See `NoiseSource.load_state`."""
        for generator, row in zip(self._generators, state, strict=True):
            generator.set_state(row.cpu().clone())  # a view into a larger tensor crashes torch 2.13
