"""From the names that training frameworks leave in a checkpoint to the names of the transformer.

Wrappers (FSDP, torch.compile, PEFT, a `model` attribute) put words of their own between the dots. None of them is a
part of any name of the transformer, so they are dropped wherever they stand.
"""

from collections.abc import Mapping
from typing import TypeVar

from forcing_kv.errors import CheckpointError
from forcing_kv.models.checkpoint import NESTINGS

WRAPPERS = frozenset(
    {
        "model",
        "generator",
        "generator_ema",
        "generator_lora",
        "module",
        "base_model",
        "base_layer",
        "_fsdp_wrapped_module",
        "_checkpoint_wrapped_module",
        "_orig_mod",
    }
)
_FLAT_NESTINGS = tuple(nesting for nesting in NESTINGS if nesting.startswith("generator"))

T = TypeVar("T")


def released_names(stored: Mapping[str, T], *, source: str) -> dict[str, T]:
    """Strips what wrappers added; where a flat file holds averaged and raw weights, the averaged ones are taken.

    Args:
        stored: Anything, by the name it has in the file.
        source: The file, for errors.

    Raises:
        CheckpointError: Two names become one.
    """
    tops = {name.partition(".")[0] for name in stored}
    kept = next((nesting for nesting in _FLAT_NESTINGS if nesting in tops), None)
    dropped = {nesting for nesting in _FLAT_NESTINGS if nesting != kept}
    renamed: dict[str, T] = {}
    origin: dict[str, str] = {}
    for name, value in stored.items():
        if name.partition(".")[0] in dropped:
            continue
        bare = ".".join(word for word in name.split(".") if word not in WRAPPERS)
        if bare in renamed:
            raise CheckpointError(f"{source} holds {bare} twice, as {origin[bare]} and as {name}: which one is meant?")
        renamed[bare] = value
        origin[bare] = name
    return renamed
