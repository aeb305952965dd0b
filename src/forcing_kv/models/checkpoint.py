"""Weight files of every released container, read one tensor at a time.

`read_checkpoint` opens `.pt` and `.safetensors`, single or in shards, and gives names, shapes and dtypes at once; the
values stay in the file, mapped into memory, until one is asked for. So a model never needs twice its size. A `.pt` is
opened with `weights_only=True`: a pickle that holds code is refused, always.
"""

import json
import math
import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from forcing_kv.errors import CheckpointError

NESTINGS = ("generator_ema", "generator", "generator_lora", "model", "state_dict")
"""Entries of a checkpoint that hold a transformer's weights, the best first: averaged weights before the raw ones."""

_PICKLES = (".pt", ".pth", ".bin", ".ckpt")
_SUFFIXES = (".safetensors", *_PICKLES)
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


@dataclass(frozen=True, kw_only=True)
class LazyTensor:
    """A tensor that is still in its file.

    Attributes:
        shape: Its sizes.
        dtype: As stored; a name where torch has no such dtype.
        read: Reads it, onto the CPU; the result may be mapped from the file and must not be written into.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype | str
    read: Callable[[], Tensor]


Checkpoint = Mapping[str, LazyTensor]


def lazy(tensor: Tensor) -> LazyTensor:
    """A tensor that is in memory already, or mapped."""
    return LazyTensor(shape=tuple(tensor.shape), dtype=tensor.dtype, read=lambda: tensor)


def num_bytes(tensor: LazyTensor) -> int:
    """Bytes of its values as stored, for a dtype that torch has."""
    assert isinstance(tensor.dtype, torch.dtype)
    return math.prod(tensor.shape) * tensor.dtype.itemsize


def read_checkpoint(path: Path) -> Checkpoint:
    """Opens a weight file, or a folder that holds one weight file or an index and its shards.

    Args:
        path: File or folder.

    Returns:
        Tensors by name as stored, without the nesting of a `.pt` (see `NESTINGS`).

    Raises:
        CheckpointError: Nothing readable is there; the message says what is there instead.
    """
    if path.is_dir():
        return _read_folder(path)
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist: give the path of a weight file or of a folder with one")
    if path.name.endswith(".index.json"):
        return _read_shards(path)
    if path.suffix not in _SUFFIXES:
        raise CheckpointError(f"{path} is no weight file: its name must end in one of {', '.join(_SUFFIXES)}")
    _check_content(path)
    return _read_safetensors(path) if path.suffix == ".safetensors" else _read_pickle(path)


def _read_folder(folder: Path) -> Checkpoint:
    indices = sorted(folder.glob("*.index.json"))
    files = sorted(file for file in folder.iterdir() if file.suffix in _SUFFIXES)
    if len(indices) == 1:
        return _read_shards(indices[0])
    if len(files) == 1 and not indices:
        return read_checkpoint(files[0])
    if not files:
        raise CheckpointError(f"{folder} holds no weight file ({', '.join(_SUFFIXES)}): give the folder that does")
    names = ", ".join(file.name for file in files[:5]) + (", ..." if len(files) > 5 else "")
    raise CheckpointError(
        f"{folder} holds {len(files)} weight files ({names}) and {len(indices)} indices (*.index.json): which of "
        "them belong together? Give one file, or add the index of the shards"
    )


def _read_shards(index: Path) -> Checkpoint:
    try:
        file_of = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        shards = sorted(set(file_of.values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{index} is no index of shards (a JSON object with a weight_map): {error!r}") from error
    missing = [shard for shard in shards if not (index.parent / shard).is_file()]
    if missing:
        raise CheckpointError(
            f"{index.parent} lacks {len(missing)} of the {len(shards)} shards that {index.name} names: "
            f"{', '.join(missing[:5])}; download the rest"
        )
    tensors = {shard: read_checkpoint(index.parent / shard) for shard in shards}
    absent = [name for name, shard in file_of.items() if name not in tensors[shard]]
    if absent:
        raise CheckpointError(
            f"{index.name} names {absent[0]} in {file_of[absent[0]]}, where it is not; download again"
        )
    return {name: tensor for shard in tensors.values() for name, tensor in shard.items()}


def _read_safetensors(path: Path) -> Checkpoint:
    try:
        file: Any = safe_open(str(path), framework="pt")
        names = list(file.keys())
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"cannot read {path}: {error}; {path.stat().st_size:,} bytes are there, so the download may be incomplete"
        ) from error

    def entry(name: str) -> LazyTensor:
        header = file.get_slice(name)
        stored = header.get_dtype()
        return LazyTensor(
            shape=tuple(header.get_shape()), dtype=_DTYPES.get(stored, stored), read=lambda: file.get_tensor(name)
        )

    return {name: entry(name) for name in names}


def _read_pickle(path: Path) -> Checkpoint:
    document = _load_pickle(path)
    nesting = next((key for key in NESTINGS if isinstance(document.get(key), Mapping)), None)
    tensors = _flat(document if nesting is None else document[nesting])
    others = {name: value for name, value in tensors.items() if not isinstance(value, Tensor)}
    if others:
        name, value = next(iter(others.items()))
        raise CheckpointError(
            f"{path}: the entry {name!r} is a {type(value).__name__}, not a tensor; weights are looked for under "
            f"{', '.join(NESTINGS)}, or at the top, and found {'at the top' if nesting is None else 'under ' + nesting}"
        )

    return {name: lazy(tensor) for name, tensor in tensors.items()}


def _load_pickle(path: Path) -> Mapping[str, Any]:
    with path.open("rb") as file:
        is_zip = file.read(2) == b"PK"
    try:
        # Only the newer, zip-like form can be mapped; the older one (torch < 1.6) has to be read whole.
        document = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} is refused: it is no plain file of weights (a pickle with other objects can run code when it is "
            f"opened); ask its author for safetensors. torch says: {_gist(error)}"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, IndexError, AttributeError, TypeError) as error:
        raise CheckpointError(
            f"cannot read {path}: {_gist(error)}; {path.stat().st_size:,} bytes are there, so the download may be "
            "incomplete: get it again"
        ) from error
    if not isinstance(document, Mapping):
        raise CheckpointError(f"{path} holds a {type(document).__name__}, not weights by name")
    return document


def _flat(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}."""
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        name = f"{prefix}{key}"
        flat.update(_flat(value, f"{name}.") if isinstance(value, Mapping) else {name: value})
    return flat


def _check_content(path: Path) -> None:
    """Names what downloads bring in place of weights."""
    with path.open("rb") as file:
        start = file.read(200)
    if not start:
        raise CheckpointError(f"{path} is empty: download it again")
    text = start.lstrip().lower()
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        raise CheckpointError(f"{path} is a web page, not weights (a login or error page was saved): download it again")
    if text.startswith(b"version https://git-lfs"):
        raise CheckpointError(f"{path} is a git-lfs pointer, not the file: run `git lfs pull`, or download it again")


def _gist(error: Exception) -> str:
    """The first sentence of torch's long messages."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:200]
