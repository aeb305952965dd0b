"""The ways to run a pass, by name, and what each needs of a machine."""

from dataclasses import dataclass

import torch

from forcing_kv.devices import lacks_compiler
from forcing_kv.errors import ConfigurationError, UnknownNameError


@dataclass(frozen=True, kw_only=True)
class Execution:
    """A way to run passes.

    Attributes:
        compiles: Whether torch compiles what a block does besides self-attention.
        replays: Whether a whole pass is captured as a CUDA graph and replayed.
    """

    compiles: bool = False
    replays: bool = False


EXECUTIONS = {
    "eager": Execution(),
    "compile": Execution(compiles=True),
    "cuda-graphs": Execution(replays=True),
    "compile+cuda-graphs": Execution(compiles=True, replays=True),
}
"""What `execution` may be."""


def check_together(execution: str, *, step_cache: float | None) -> None:
    """Refuses a step cache beside passes that are replayed whole.

    Raises:
        ConfigurationError: That.
    """
    if EXECUTIONS[execution].replays and step_cache is not None:
        raise ConfigurationError(
            f"execution {execution!r} replays whole passes, and step_cache={step_cache:g} leaves blocks out of some; "
            "use one of the two"
        )


def check_execution(execution: str, *, device: torch.device) -> None:
    """Refuses a way that is unknown or cannot be had here.

    Raises:
        UnknownNameError: No such way.
        ConfigurationError: The device, or what is installed, does not allow it.
    """
    if execution not in EXECUTIONS:
        raise UnknownNameError("execution", execution, EXECUTIONS)
    way, asked = EXECUTIONS[execution], f"execution {execution!r}"
    if way.replays and device.type != "cuda":
        raise ConfigurationError(f"{asked} needs a CUDA GPU, and this runs on {device}; use eager or compile")
    missing = lacks_compiler(device) if way.compiles else None
    if missing is not None:
        raise ConfigurationError(f"{asked} needs {missing}; or use eager")
