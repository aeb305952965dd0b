"""Text states of prompts seen before, on disk, so that a repeated prompt needs no 11 GB encoder.

One small safetensors file per prompt, named by a hash of encoder and text; padding is not stored. The folder is
`forcing-kv/prompts` in the user's cache folder, or in `FORCING_KV_CACHE`; the prompts used longest ago go first when it
grows past its limit. A file that cannot be read is written again, and a folder that cannot be written costs no more
than a warning: a cache must not stop a run.
"""

import hashlib
import json
import os
import warnings
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from forcing_kv.errors import OutputError
from forcing_kv.output_files import atomic_write

DEFAULT_MAX_BYTES = 512 * 1024**2
VERSION = 1


def cache_folder() -> Path:
    """`FORCING_KV_CACHE`, or `forcing-kv` in the user's cache folder."""
    given = os.environ.get("FORCING_KV_CACHE")
    if given:
        return Path(given).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "forcing-kv"


class PromptCache:
    """States of prompts under one encoder.

    Args:
        encoder: What the states depend on besides the text: model, dtype, length.
        folder: Where the files lie; None for `prompts` in `cache_folder()`.
        max_bytes: Size of the folder above which old files are removed.
    """

    def __init__(self, encoder: str, *, folder: Path | None = None, max_bytes: int = DEFAULT_MAX_BYTES) -> None:
        self._encoder = encoder
        self._folder = cache_folder() / "prompts" if folder is None else folder
        self._max_bytes = max_bytes

    def get(self, text: str) -> Tensor | None:
        """The states [text_len, text_dim] of a cleaned prompt, or None."""
        path = self._path(text)
        try:
            stored = load_file(path)
            states = torch.zeros(stored["shape"].tolist(), dtype=stored["states"].dtype)
            states[: len(stored["states"])] = stored["states"]
        except FileNotFoundError:
            return None
        except (OSError, SafetensorError, KeyError, RuntimeError, TypeError) as error:
            warnings.warn(f"the cached prompt {path} cannot be used and is made again: {error}", stacklevel=2)
            return None
        if os.access(path, os.W_OK):
            os.utime(path)  # used now
        return states

    def put(self, text: str, states: Tensor) -> None:
        """Keeps the states of a cleaned prompt."""
        path = self._path(text)
        used = states.abs().amax(dim=1).nonzero().flatten()
        num_used = int(used[-1]) + 1 if len(used) else 0
        stored = {"states": states[:num_used].contiguous(), "shape": torch.tensor(states.shape)}
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with atomic_write(path) as temporary:
                save_file(stored, temporary)
            self._trim()
        except (OSError, OutputError) as error:
            warnings.warn(f"the prompt was not cached: {error}", stacklevel=2)

    def _path(self, text: str) -> Path:
        key = json.dumps([VERSION, self._encoder, text])
        return self._folder / f"{hashlib.sha256(key.encode()).hexdigest()}.safetensors"

    def _trim(self) -> None:
        files = sorted((file.stat().st_mtime, file.stat().st_size, file) for file in self._folder.glob("*.safetensors"))
        surplus = sum(size for _, size, _ in files) - self._max_bytes
        for _, size, file in files:
            if surplus <= 0:
                break
            file.unlink(missing_ok=True)
            surplus -= size
