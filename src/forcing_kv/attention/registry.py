"""Back ends by name, and the choice of one: by the user, or by the order for the device."""

from forcing_kv.attention.backend import AttentionBackend, Placement
from forcing_kv.attention.dense import CUDNN, PLAIN, SDPA
from forcing_kv.attention.flash3 import FA3
from forcing_kv.attention.flex import FLEX
from forcing_kv.attention.orders import order_for
from forcing_kv.attention.triton_backend import TRITON
from forcing_kv.errors import ConfigurationError, UnknownNameError

BACKENDS: dict[str, AttentionBackend] = {backend.name: backend for backend in (SDPA, CUDNN, FA3, FLEX, TRITON, PLAIN)}

AUTO = "auto"
"""The name that leaves the choice to the order for the device."""


def choose_backend(name: str, placement: Placement) -> AttentionBackend:
    """The back end of that name; for `auto` the first in the order for the device that can be had.

    Args:
        name: A name of `BACKENDS`, or `auto`.
        placement: What it is to work on.

    Raises:
        UnknownNameError: No such back end; the message lists all, with what the others lack here.
        ConfigurationError: It cannot be had here; the message says why, and lists those that can.
    """
    if name == AUTO:
        ranked = (BACKENDS[ranked] for ranked in order_for(placement).names)
        return next(backend for backend in ranked if backend.lacks(placement) is None)
    if name not in BACKENDS:
        raise UnknownNameError("attention back end", name, _described(placement))
    missing = BACKENDS[name].lacks(placement)
    if missing is not None:
        raise ConfigurationError(
            f"attention back end {name!r} cannot be had on {placement}: {missing}; choose one of: "
            f"{', '.join(_described(placement))}"
        )
    return BACKENDS[name]


def _described(placement: Placement) -> list[str]:
    """All names, those that can be had first; the others with what they lack."""
    lacking = {name: backend.lacks(placement) for name, backend in BACKENDS.items()}
    there = [name for name, missing in lacking.items() if missing is None]
    return [AUTO, *there, *(f"{name} (not here: {missing})" for name, missing in lacking.items() if missing)]
