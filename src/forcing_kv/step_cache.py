"""TeaCache: denoising steps whose noise level tells the model little new leave its blocks out. A baseline, to compare.

Between steps the change of the time modulation, through a polynomial that was fitted to Wan2.1-1.3B, estimates how much
the blocks' output changes. While what has added up stays under a threshold, the blocks' newest residual (output less
input) is used again. The modulation depends on the noise level alone, so which steps are left out is settled once, on
the host, before the first chunk.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from forcing_kv.errors import ConfigurationError
from forcing_kv.wan import (
    CausalWanTransformer,
    NoiseLevel,
    Pieces,
    SelfAttentionMemory,
    TextMemory,
    TokenPositions,
)

DEFAULT_THRESHOLD = 0.2

POLYNOMIAL = (2396.76752, -1311.10545, 201.331979, -8.29855975, 0.137887774)
"""From the relative change of the modulation to that of the output, highest power first; published for Wan2.1-1.3B."""


class StepCache:
    """A transformer that leaves its blocks out where it may; called as the transformer is, for denoising passes only.

    It holds the residual of one chunk of one stream: every stream needs its own.

    Args:
        transformer: Shared.
        timesteps: Of a chunk's denoising passes, in order.
        threshold: A step is left out while the estimated change since the newest run of the blocks is below; 0 leaves
            nothing out.
        pieces: Of the blocks, where they are not to run as they are.

    Attributes:
        skipped: Whether each step's blocks are left out; never the first's.
    """

    def __init__(
        self,
        transformer: CausalWanTransformer,
        timesteps: Sequence[float],
        *,
        threshold: float = DEFAULT_THRESHOLD,
        pieces: Pieces | None = None,
    ) -> None:
        check_threshold(threshold)
        self._transformer = transformer
        self._pieces = pieces
        self.skipped = skipped_steps(modulation_changes(transformer, timesteps), threshold=threshold)
        self._is_skipped = dict(zip(timesteps, self.skipped, strict=True))
        self._residual: Tensor | None = None

    def __call__(
        self,
        latents: Tensor,
        level: NoiseLevel | float,
        *,
        text: TextMemory,
        positions: TokenPositions,
        memory: SelfAttentionMemory,
    ) -> Tensor:
        """As `CausalWanTransformer.at_level`, at one of the timesteps."""
        model = self._transformer
        level = level if isinstance(level, NoiseLevel) else model.noise_level(level)
        begun = model.begin(latents, level.timesteps, positions, level.modulation)
        if self._is_skipped[level.timestep]:
            assert self._residual is not None, "the first step is never left out"
            return model.finish(begun, begun.x + self._residual)
        x = model.run_blocks(begun, text=text, positions=positions, memory=memory, pieces=self._pieces)
        self._residual = x - begun.x
        return model.finish(begun, x)


def check_threshold(threshold: float) -> None:
    """Raises `ConfigurationError` for a threshold that is no number from 0 up."""
    if not 0 <= threshold < float("inf"):
        raise ConfigurationError(f"step cache threshold {threshold:g} must be at least 0; published is 0.2")


def num_steps_skipped(transformer: CausalWanTransformer, timesteps: Sequence[float], *, threshold: float | None) -> int:
    """Of a chunk's denoising steps, those that leave their blocks out; None as a threshold leaves nothing out."""
    if threshold is None:
        return 0
    return sum(StepCache(transformer, timesteps, threshold=threshold).skipped)


@torch.no_grad()
def modulation_changes(transformer: CausalWanTransformer, timesteps: Sequence[float]) -> list[float]:
    """Relative change of the time modulation from each step to the next: mean |difference| over mean |before|."""
    levels = torch.tensor([timesteps], dtype=torch.float32, device=transformer.device)
    _, modulation = transformer.embed_time(levels)
    before, after = modulation[0, :-1].double(), modulation[0, 1:].double()
    changes = (after - before).abs().mean(dim=(1, 2)) / before.abs().mean(dim=(1, 2))
    return [float(change) for change in changes]


def skipped_steps(changes: Sequence[float], *, threshold: float) -> tuple[bool, ...]:
    """Which steps are left out.

    Args:
        changes: Of the modulation from each step to the next; one fewer than there are steps.
        threshold: Of the sum since the newest step that was computed.
    """
    skipped, estimated = [False], 0.0
    for change in changes:
        estimated += sum(coefficient * change**power for power, coefficient in enumerate(reversed(POLYNOMIAL)))
        skipped.append(max(estimated, 0.0) < threshold)
        if not skipped[-1]:
            estimated = 0.0
    return tuple(skipped)
