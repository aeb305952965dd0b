"""Which versions made a result."""

import platform
from importlib import metadata

_LIBRARIES = ("torch", "diffusers", "transformers", "av")


def package_version() -> str:
    """The version of this package; `0+unknown` where it runs from a source tree that is not installed."""
    return _version("forcing-kv")


def versions() -> dict[str, str]:
    """Versions of this package, of Python and of the libraries that a video depends on."""
    libraries = {name: _version(name) for name in _LIBRARIES}
    return {"forcing-kv": package_version(), "python": platform.python_version(), **libraries}


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "0+unknown"
