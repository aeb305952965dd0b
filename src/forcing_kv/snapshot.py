"""A stream's whole state as one small file.

Tensors and JSON lie together in one safetensors file; nothing in it can execute. It is small because the cache is.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from forcing_kv.errors import SnapshotError

FORMAT = "forcing-kv-snapshot"
VERSION = 4


@dataclass(frozen=True, kw_only=True)
class StreamSnapshot:
    """Copies of everything a stream needs to go on bit for bit.

    Attributes:
        identity: What the stream was made from (model, policy, sizes); must match on restore.
        tensors: By name: cache, noise generators, prompt states, newest latents, decoder.
        progress: Counters and prompts, as JSON can hold them.
    """

    identity: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    progress: Mapping[str, Any]

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    def save(self, path: str | Path) -> None:
        """Writes the snapshot; the caller makes the write atomic if it must be."""
        document = {
            "format": FORMAT,
            "version": VERSION,
            "identity": dict(self.identity),
            "progress": dict(self.progress),
        }
        tensors = {name: tensor.contiguous().cpu() for name, tensor in self.tensors.items()}
        save_file(tensors, str(path), metadata={"snapshot": json.dumps(document)})

    @classmethod
    def load(cls, path: str | Path) -> "StreamSnapshot":
        """Reads a snapshot file.

        Raises:
            SnapshotError: The file is missing, broken, or of another version.
        """
        try:
            with safe_open(str(path), framework="pt") as file:
                document = json.loads((file.metadata() or {}).get("snapshot", "{}"))
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a dict
        except (OSError, SafetensorError, ValueError) as error:
            raise SnapshotError(f"cannot read snapshot {str(path)!r}: {error}") from error
        if document.get("format") != FORMAT or document.get("version") != VERSION:
            raise SnapshotError(
                f"{str(path)!r} is no snapshot that this release reads ({FORMAT} version {VERSION}); start over"
            )
        return cls(identity=document["identity"], tensors=tensors, progress=document["progress"])

    def with_part(self, name: str, tensors: Mapping[str, Tensor], progress: Mapping[str, Any]) -> "StreamSnapshot":
        """The same with one more part, that `part` and `progress` find under its name."""
        named = {f"{name}/{key}": tensor for key, tensor in tensors.items()}
        return replace(self, tensors={**self.tensors, **named}, progress={**self.progress, name: progress})

    def part(self, name: str) -> dict[str, Tensor]:
        """The tensors whose names begin with `name/`, without that beginning."""
        prefix = name + "/"
        return {key.removeprefix(prefix): tensor for key, tensor in self.tensors.items() if key.startswith(prefix)}
