"""The training loop that both stages of the embedded model share: steps, averages, checkpoints.

Everything random in a step comes from a generator seeded with (seed, step), so a run that was stopped and resumed takes
exactly the steps of one that was not. Weights and optimiser stay in fp32; the loss function may compute in bf16.
"""

import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from forcing_kv.errors import CheckpointError, ConfigurationError

GradientFunction = Callable[[torch.Generator, int], float]
"""(generator of this step, on the CPU; number of the step) -> the loss; leaves the gradients in the parameters."""


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How long and how fast to train. The learning rate warms up, stays, and falls to nearly nothing at the end.

    Raises:
        ConfigurationError: for counts or shares out of range.
    """

    num_steps: int
    learning_rate: float
    stop_step: int | None = None
    """Where training ends, if before the schedule does."""
    warmup_steps: int = 50
    decay_share: float = 0.4
    """The last share of the steps, in which the rate falls along a cosine."""
    betas: tuple[float, float] = (0.9, 0.98)
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    average_decay: float = 0.995
    muon: bool = False
    """Whether matrices inside a module list take Muon's orthogonal steps (of AdamW's size); AdamW takes the rest."""

    def __post_init__(self) -> None:
        if self.num_steps < 1 or self.warmup_steps < 0:
            raise ConfigurationError(
                f"num_steps is {self.num_steps}, warmup_steps {self.warmup_steps}; need >= 1, >= 0"
            )
        if not 0 <= self.decay_share <= 1:
            raise ConfigurationError(f"decay_share is {self.decay_share}; it is a share of the steps, 0 to 1")

    @property
    def last_step(self) -> int:
        """Steps to be taken."""
        return self.num_steps if self.stop_step is None else min(self.num_steps, self.stop_step)

    def rate_at(self, step: int) -> float:
        """Learning rate of a step (0-based)."""
        rate = self.learning_rate * min(1.0, (step + 1) / max(self.warmup_steps, 1))
        decay_start = self.num_steps * (1 - self.decay_share)
        if step <= decay_start:
            return rate
        along = min(1.0, (step - decay_start) / max(self.num_steps - decay_start, 1))
        return rate * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * along)))


@dataclass(frozen=True, kw_only=True)
class Progress:
    """What a step reports."""

    step: int
    num_steps: int
    loss: float
    seconds: float
    """Training time so far, over all resumed parts."""


class Trainer:
    """Trains a module in place and keeps an exponential average of its weights.

    Args:
        model: the module; its parameters are trained.
        schedule: steps and rates.
        seed: of the steps' generators.
        checkpoint: the file to save to and to resume from.
    """

    def __init__(self, model: nn.Module, schedule: Schedule, *, seed: int, checkpoint: Path) -> None:
        self.model = model
        self.schedule = schedule
        self.seed = seed
        self.checkpoint = checkpoint
        self.step = 0
        self.seconds = 0.0
        self.losses: list[float] = []
        self.parameters = dict(model.named_parameters())
        self.average = {name: value.detach().clone() for name, value in self.parameters.items()}
        self.optimisers = _optimisers(self.parameters, schedule)

    def run(
        self, add_gradients: GradientFunction, *, max_seconds: float = math.inf, save_every_seconds: float = 60.0
    ) -> Iterator[Progress]:
        """Train until the schedule ends or `max_seconds` of this call are over; yields after each step.

        A checkpoint is written every `save_every_seconds` and at the end.
        """
        started = saved = before = time.monotonic()
        while self.step < self.schedule.last_step and before - started < max_seconds:
            loss = self._take_step(add_gradients)
            now = time.monotonic()
            self.seconds += now - before
            before = now
            self.losses.append(loss)
            self.step += 1
            if now - saved > save_every_seconds:
                self.save()
                saved = time.monotonic()
            yield Progress(step=self.step, num_steps=self.schedule.last_step, loss=loss, seconds=self.seconds)
        self.save()

    def _take_step(self, add_gradients: GradientFunction) -> float:
        for optimiser in self.optimisers:
            for group in optimiser.param_groups:
                group["lr"] = self.schedule.rate_at(self.step)
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.step)
        self.model.zero_grad(set_to_none=True)
        loss = add_gradients(generator, self.step)
        torch.nn.utils.clip_grad_norm_(self.parameters.values(), self.schedule.clip_norm)
        for optimiser in self.optimisers:
            optimiser.step()
        decay = min(self.schedule.average_decay, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            torch._foreach_lerp_(
                list(self.average.values()), [value.detach() for value in self.parameters.values()], 1 - decay
            )
        return loss

    def save(self) -> None:
        """Write the checkpoint; the old one stays until the new one is complete."""
        self.checkpoint.parent.mkdir(parents=True, exist_ok=True)
        partial = self.checkpoint.with_suffix(".partial")
        torch.save(
            {
                "model": {name: value.detach() for name, value in self.parameters.items()},
                "average": self.average,
                "optimisers": [optimiser.state_dict() for optimiser in self.optimisers],
                "step": self.step,
                "seconds": self.seconds,
                "losses": self.losses,
                "seed": self.seed,
            },
            partial,
        )
        os.replace(partial, self.checkpoint)

    def resume(self) -> bool:
        """Go on from the checkpoint, if there is one.

        Returns:
            Whether there was one.

        Raises:
            CheckpointError: if it belongs to another model or seed.
        """
        if not self.checkpoint.exists():
            return False
        state: dict[str, Any] = torch.load(self.checkpoint, weights_only=True, map_location="cpu")
        if state["seed"] != self.seed:
            raise CheckpointError(
                f"{self.checkpoint} was trained from seed {state['seed']}, not {self.seed}; "
                "use that seed, or another output folder"
            )
        if {name: value.shape for name, value in state["model"].items()} != {
            name: value.shape for name, value in self.parameters.items()
        }:
            raise CheckpointError(f"{self.checkpoint} holds a model of other shapes; use another output folder")
        with torch.no_grad():
            for name, value in self.parameters.items():
                value.copy_(state["model"][name])
                self.average[name].copy_(state["average"][name])
        for optimiser, saved in zip(self.optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)
        self.step, self.seconds, self.losses = state["step"], state["seconds"], state["losses"]
        return True

    def to(self, device: str) -> None:
        """Move everything to a device; call it once, after `resume`."""
        self.model.to(device)
        self.parameters = dict(self.model.named_parameters())
        self.average = {name: value.to(device) for name, value in self.average.items()}
        saved = [optimiser.state_dict() for optimiser in self.optimisers]
        self.optimisers = _optimisers(self.parameters, self.schedule)
        for optimiser, state in zip(self.optimisers, saved, strict=True):
            optimiser.load_state_dict(state)

    @torch.no_grad()
    def use_average(self) -> None:
        """Put the averaged weights into the model (for evaluation and export; training ends here)."""
        for name, value in self.parameters.items():
            value.copy_(self.average[name])


@contextmanager
def one_core_per_part(num_parts: int = 2) -> Iterator[None]:
    """While this holds, each of `num_parts` threads computes with its share of the cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(max(1, before // num_parts))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def add_mean_gradients(parameters: Sequence[Tensor], loss_of: Callable[[int], Tensor], num_parts: int) -> float:
    """Put into the parameters the mean of the gradients of some losses, each computed by a thread of its own.

    On two CPU cores that is a third quicker than one batch on both.

    Args:
        parameters: leaves of the losses.
        loss_of: number of the part -> its loss.
        num_parts: how many.

    Returns:
        The mean loss.
    """

    def gradients_of(part: int) -> tuple[float, tuple[Tensor, ...]]:
        loss = loss_of(part)
        return float(loss.detach()), torch.autograd.grad(loss, parameters)

    with ThreadPoolExecutor(num_parts) as threads:
        results = list(threads.map(gradients_of, range(num_parts)))
    for index, parameter in enumerate(parameters):
        parameter.grad = torch.stack([gradients[index] for _, gradients in results]).mean(0)
    return sum(loss for loss, _ in results) / num_parts


def _optimisers(parameters: dict[str, nn.Parameter], schedule: Schedule) -> list[torch.optim.Optimizer]:
    matrices = [value for name, value in parameters.items() if schedule.muon and _is_inner_matrix(name, value)]
    others = [value for name, value in parameters.items() if not (schedule.muon and _is_inner_matrix(name, value))]
    optimisers: list[torch.optim.Optimizer] = []
    if others:
        optimisers.append(
            torch.optim.AdamW(
                others, lr=schedule.learning_rate, betas=schedule.betas, weight_decay=schedule.weight_decay
            )
        )
    if matrices:
        if not hasattr(torch.optim, "Muon"):
            raise ConfigurationError(
                f"training the embedded model needs torch.optim.Muon, which torch {torch.__version__} lacks; "
                "use 2.9 or newer"
            )
        optimisers.append(
            torch.optim.Muon(
                matrices,
                lr=schedule.learning_rate,
                weight_decay=schedule.weight_decay,
                adjust_lr_fn="match_rms_adamw",
            )
        )
    return optimisers


def _is_inner_matrix(name: str, value: Tensor) -> bool:
    return value.dim() == 2 and ".blocks." in name


def condensed(losses: list[float], num_points: int = 40) -> list[float]:
    """The loss curve as means of `num_points` equal stretches (fewer where there are fewer steps)."""
    num_points = min(num_points, len(losses))
    edges = [round(index * len(losses) / num_points) for index in range(num_points + 1)] if num_points else [0]
    return [round(sum(losses[start:end]) / (end - start), 5) for start, end in pairwise(edges)]
