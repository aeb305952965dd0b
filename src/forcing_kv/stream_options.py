"""How a stream is computed: what may be chosen besides what it shows and what its cache keeps."""

from dataclasses import dataclass
from typing import Any

import torch

from forcing_kv.attention import AUTO, AttentionBackend, Placement, choose_backend
from forcing_kv.cache import POSITIONS, check_kv_dtype
from forcing_kv.errors import UnknownNameError
from forcing_kv.execution import EXECUTIONS, Execution, check_execution, check_together
from forcing_kv.step_cache import check_threshold


@dataclass(frozen=True, kw_only=True)
class StreamOptions:
    """What is asked for; what depends on the device is checked there (`backend_on`), the back end's name too.

    Attributes:
        positions: `absolute` counts frames from the start of the stream; `relative` counts within what the cache holds,
            so that no temporal distance exceeds the frames the model was trained at.
        kv_dtype: How the cache stores keys and values: `int8` or `fp8`, or None for as they are.
        step_cache: TeaCache's threshold under which a denoising step leaves its blocks out (published: 0.2); None never
            does.
        attention: Back end that computes attention to the history (`forcing_kv.attention.BACKENDS`); `auto` takes the
            best that is known for the device.
        execution: How passes are run: `eager`, `compile`, `cuda-graphs` or `compile+cuda-graphs`.

    Raises:
        UnknownNameError: An unknown way to count positions, to store the cache or to run passes.
        ConfigurationError: A threshold out of range, or two choices that do not go together.
    """

    positions: str = "absolute"
    kv_dtype: str | None = None
    step_cache: float | None = None
    attention: str = AUTO
    execution: str = "eager"

    def __post_init__(self) -> None:
        if self.positions not in POSITIONS:
            raise UnknownNameError("positions", self.positions, POSITIONS)
        check_kv_dtype(self.kv_dtype, positions=self.positions)
        if self.step_cache is not None:
            check_threshold(self.step_cache)
        if self.execution not in EXECUTIONS:
            raise UnknownNameError("execution", self.execution, EXECUTIONS)
        check_together(self.execution, step_cache=self.step_cache)

    @property
    def way(self) -> Execution:
        """What `execution` stands for."""
        return EXECUTIONS[self.execution]

    def backend_on(self, device: torch.device, *, dtype: torch.dtype, head_dim: int) -> AttentionBackend:
        """What `attention` comes to there, where all else is checked, too.

        Raises:
            ForcingKVError: The attention back end or the execution cannot be had; with what is missing.
        """
        check_execution(self.execution, device=device)
        return choose_backend(self.attention, Placement(device=device, dtype=dtype, head_dim=head_dim))

    def changing_results(self) -> dict[str, Any]:
        """Those that change what is made by more than rounding, by name: a video made with others is another video."""
        return {"positions": self.positions, "kv_dtype": self.kv_dtype, "step_cache": self.step_cache}
