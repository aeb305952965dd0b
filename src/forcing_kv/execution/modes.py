"""The ways to run a pass, by name, and what each needs of a machine."""

import importlib.util
import os
import shutil
import sys
from dataclasses import dataclass

import torch

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


def check_execution(execution: str, *, device: torch.device, step_cache: float | None = None) -> None:
    """Refuses a way that is unknown or cannot be had here.

    Raises:
        UnknownNameError: No such way.
        ConfigurationError: The device, or what is installed, does not allow it; a step cache beside CUDA graphs.
    """
    if execution not in EXECUTIONS:
        raise UnknownNameError("execution", execution, EXECUTIONS)
    way, asked = EXECUTIONS[execution], f"execution {execution!r}"
    if way.replays and device.type != "cuda":
        raise ConfigurationError(f"{asked} needs a CUDA GPU, and this runs on {device}; use eager or compile")
    if way.replays and step_cache is not None:
        raise ConfigurationError(
            f"{asked} replays whole passes, and step_cache={step_cache:g} leaves blocks out of some; use one of the two"
        )
    if not way.compiles:
        return
    if device.type == "cuda" and importlib.util.find_spec("triton") is None:
        raise ConfigurationError(f"{asked} needs Triton on a GPU: pip install triton, or use another execution")
    if device.type == "cpu" and shutil.which(_cpp_compiler()) is None:
        raise ConfigurationError(
            f"{asked} needs a C++ compiler on a CPU, and there is no {_cpp_compiler()}; install it, name another one "
            "in CXX, or use eager"
        )


def _cpp_compiler() -> str:
    """The one that torch takes."""
    return os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")
