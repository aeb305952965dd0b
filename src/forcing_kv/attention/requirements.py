"""What back ends may need, each as a test that answers with what is missing: they are chained with `or`."""

import importlib.util
from collections.abc import Collection
from importlib import metadata

import torch

from forcing_kv.attention.backend import Placement


def lacks_capability(
    placement: Placement, *, since: tuple[int, int], before: tuple[int, int] | None = None
) -> str | None:
    """Unless it is an NVIDIA GPU of compute capability `since` or newer, and older than `before`."""
    capability = placement.capability
    if capability is None:
        return "needs an NVIDIA GPU"
    if since <= capability and (before is None or capability < before):
        return None
    limits = (
        f"{_dotted(since)} or newer" if before is None else f"{_dotted(since)} or newer and before {_dotted(before)}"
    )
    return f"needs compute capability {limits}; this GPU has {_dotted(capability)}"


def lacks_dtype(placement: Placement, dtypes: Collection[torch.dtype]) -> str | None:
    """Unless it is one of these."""
    if placement.dtype in dtypes:
        return None
    return f"needs {' or '.join(str(dtype).removeprefix('torch.') for dtype in dtypes)}"


def lacks_head_dim(placement: Placement, *, multiple_of: int, at_most: int) -> str | None:
    """Unless it divides so and is no larger."""
    if placement.head_dim % multiple_of == 0 and placement.head_dim <= at_most:
        return None
    return f"needs a multiple of {multiple_of} values per head, at most {at_most}"


def lacks_package(module: str, *, package: str, since: tuple[int, int] | None = None) -> str | None:
    """Unless the module is installed, in version `since` or newer; it is not imported."""
    if importlib.util.find_spec(module) is None:
        return f"needs {package}: pip install {package}"
    try:
        version = metadata.version(package)
    except metadata.PackageNotFoundError:  # it comes in a package of another name
        return None
    if since is None or tuple(int(part) for part in version.split(".")[:2]) >= since:
        return None
    return f"needs {package} {_dotted(since)} or newer; {version} is installed"


def _dotted(numbers: tuple[int, int]) -> str:
    return f"{numbers[0]}.{numbers[1]}"
