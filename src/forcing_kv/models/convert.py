"""From any source of weights to our saved folder: the released names, one format, nothing left to strip or merge."""

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import SafetensorError

from forcing_kv.errors import OutputError
from forcing_kv.models.checkpoint import Checkpoint, LazyTensor, num_bytes
from forcing_kv.models.components import Components
from forcing_kv.models.folder import save_transformer
from forcing_kv.models.zoo import ModelSource
from forcing_kv.output_files import check_new_folder, reason


def convert(
    source: ModelSource,
    folder: str | Path,
    *,
    dtype: torch.dtype | None = None,
    overwrite: bool = False,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Writes a model in our layout; the folder takes its name only when all of it is written.

    Text encoder and VAE are copied where they lie in a folder of the user's; the hub's are not: the saved preset names
    the repository.

    Args:
        source: What `find_model` found.
        folder: To make.
        dtype: Of the saved weights; None keeps theirs, and loading them back is bit-exact then.
        overwrite: Whether a folder that is there may be replaced.
        on_progress: Told the number of weight files written, and of all.

    Raises:
        CheckpointError: Weights that cannot be had or do not fit.
        OutputError: The folder exists or cannot be written, or the disk is too small.
    """
    folder = Path(folder)
    disk = check_new_folder(folder)
    if folder.exists() and not overwrite:
        raise OutputError(f"{folder} exists: choose another name, or replace it with --overwrite")
    weights = source.open_weights()
    if dtype is not None:
        weights = {name: _converted(tensor, dtype) for name, tensor in weights.items()}
    parts = _parts_to_copy(source)
    _check_space(folder, disk, sum(map(num_bytes, weights.values())) + sum(map(_folder_bytes, parts.values())))
    partial, replaced = (
        folder.absolute().with_name(f".{folder.absolute().name}.{what}") for what in ("partial", "old")
    )
    shutil.rmtree(partial, ignore_errors=True)  # of a run that was killed
    partial.parent.mkdir(parents=True, exist_ok=True)
    try:
        _write(source, weights, parts, partial, on_progress)
        if folder.exists():
            os.replace(folder, replaced)
        os.replace(partial, folder)
    except (OSError, SafetensorError) as error:
        raise OutputError(f"{folder} cannot be written: {reason(error)}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    shutil.rmtree(replaced, ignore_errors=True)


def _write(
    source: ModelSource,
    weights: Checkpoint,
    parts: dict[str, Path],
    folder: Path,
    on_progress: Callable[[int, int], None],
) -> None:
    save_transformer(
        folder,
        preset=source.preset,
        config=source.config,
        weights=weights,
        head_map=source.head_map,
        on_progress=on_progress,
    )
    for part, path in parts.items():
        shutil.copytree(path, folder / part)


def _parts_to_copy(source: ModelSource) -> dict[str, Path]:
    components = source.components
    if components == Components.on_hub(source.preset.components):
        return {}
    return {
        "vae": components.vae.fetch(),
        "text_encoder": components.text_encoder.fetch(),
        "tokenizer": components.tokenizer.fetch(),
    }


def _converted(tensor: LazyTensor, dtype: torch.dtype) -> LazyTensor:
    return replace(tensor, dtype=dtype, read=lambda: tensor.read().to(dtype))


def _check_space(folder: Path, disk: Path, needed_bytes: int) -> None:
    free_bytes = shutil.disk_usage(disk).free
    if needed_bytes > free_bytes:
        raise OutputError(
            f"{folder} needs {needed_bytes / 1e9:.1f} GB, the disk has {free_bytes / 1e9:.1f} GB free: make "
            "room, choose another disk, or store less with --dtype bfloat16"
        )


def _folder_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
