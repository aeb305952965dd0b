"""The latents of a video, kept beside it: a part per chunk while it is made, one file when it is done."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from forcing_kv.errors import OutputError
from forcing_kv.output_files import atomic_write
from forcing_kv.video.writer import partial_folder


class KeptLatents:
    """What is kept of the latents of one video.

    Args:
        video_path: The video; the parts lie in its partial folder and go with it.
        path: Where all of them go in the end; None keeps nothing.
    """

    def __init__(self, video_path: Path, path: Path | None) -> None:
        self._video_path = video_path
        self._path = path

    def of_chunk(self, latents: Tensor) -> Tensor | None:
        """What is to be kept of a chunk's [1, F, C, h, w]: [F, C, h, w] on the CPU, or None."""
        return None if self._path is None else latents[0].cpu().contiguous()

    def save_part(self, index: int, latents: Tensor) -> None:
        """Put the latents [F, C, h, w] of a chunk on disk."""
        with atomic_write(self._part(index)) as temporary:
            save_file({"latents": latents}, temporary)

    def check_resumed(self, num_chunks: int) -> None:
        """Refuse to go on otherwise than the video was begun.

        Args:
            num_chunks: Those that are made already.

        Raises:
            OutputError: Their latents are missing, or would be lost.
        """
        if self._path is None:
            if self._part(0).exists():
                raise OutputError(
                    f"{self._video_path} was begun with --save-latents, and its latents would be lost: resume with "
                    "--save-latents, or start over with --overwrite"
                )
        elif not all(self._part(index).exists() for index in range(num_chunks)):
            raise OutputError(
                f"{self._path} cannot be written: the run that is resumed kept no latents; resume "
                "without --save-latents, or start over with --overwrite"
            )

    def join(self, num_chunks: int, *, metadata: Mapping[str, Any]) -> None:
        """Write all latents [F, C, h, w], float32, standardised, as one tensor `latents`, if they are kept.

        Args:
            num_chunks: Those that were made.
            metadata: Of the video, as in the MP4.
        """
        if self._path is None:
            return
        parts: list[Tensor] = [load_file(self._part(index))["latents"] for index in range(num_chunks)]
        with atomic_write(self._path) as temporary:
            save_file({"latents": torch.cat(parts)}, temporary, metadata={"comment": json.dumps(metadata)})

    def _part(self, index: int) -> Path:
        return partial_folder(self._video_path) / f"latents-{index:05d}.safetensors"
