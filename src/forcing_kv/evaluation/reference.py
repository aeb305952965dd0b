"""The reference's frames and latents of the prompts in work, chunk by chunk on disk, exact.

A policy is compared with the reference while it streams. The MP4 of the reference is not good enough for that, and its
frames in memory would grow with the video; so each chunk is a file here until every policy has been compared with it.
"""

import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from forcing_kv.errors import OutputError
from forcing_kv.output_files import atomic_write, reason

_COMPLETE = "complete"


class ReferenceChunks:
    """The chunks of one batch of prompts.

    Args:
        folder: Made by `start`; holds nothing else.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @property
    def is_complete(self) -> bool:
        """Whether all chunks are there."""
        return (self._folder / _COMPLETE).exists()

    def start(self) -> None:
        """Makes the folder, and drops what lies in it.

        Raises:
            OutputError: It cannot be made.
        """
        self.discard()
        try:
            self._folder.mkdir(parents=True)
        except OSError as error:
            raise OutputError(f"the folder {self._folder} cannot be made: {reason(error)}") from error

    def keep(self, index: int, *, frames: Tensor, latents: Tensor) -> None:
        """Writes a chunk.

        Args:
            index: Its number.
            frames: uint8 [batch, frames, H, W, 3].
            latents: float32 [batch, latent_frames, channels, rows, columns].

        Raises:
            OutputError: It cannot be written.
        """
        with atomic_write(self._path(index)) as temporary:
            save_file({"frames": frames.contiguous(), "latents": latents.float().contiguous()}, temporary)

    def finish(self) -> None:
        """Says that all chunks are there."""
        with atomic_write(self._folder / _COMPLETE) as temporary:
            temporary.touch()

    def load(self, index: int) -> tuple[Tensor, Tensor]:
        """The frames and latents of a chunk, as they were kept."""
        stored = load_file(self._path(index))
        assert stored["frames"].dtype == torch.uint8
        return stored["frames"], stored["latents"]

    def discard(self) -> None:
        """Drops everything."""
        if self._folder.exists():
            shutil.rmtree(self._folder)

    def _path(self, index: int) -> Path:
        return self._folder / f"{index:05d}.safetensors"
