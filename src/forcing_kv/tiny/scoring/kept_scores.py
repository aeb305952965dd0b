"""Scores of finished batches in a folder, a file each: what a killed evaluation loses is the batch at hand."""

import ast
import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypedDict
from urllib.parse import quote

from forcing_kv.errors import OutputError
from forcing_kv.output_files import atomic_write


class BatchScores(TypedDict):
    """Per time that is scored, the score of each video; and of each the PSNR in dB, where it has one."""

    videos: list[list[dict[str, Any]]]
    psnr: list[float]


def code_sha256(folder: Path) -> str:
    """A hash of the Python code in a folder, of which comments are no part."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.py")):
        digest.update(ast.dump(ast.parse(path.read_bytes())).encode())
    return digest.hexdigest()


class KeptScores:
    """The scores in a folder. Processes that make different batches may share it.

    Args:
        folder: Made if it is missing.
        of: What the scores are of, for JSON; stands in every file.

    Raises:
        OutputError: The folder cannot be made.
    """

    def __init__(self, folder: Path, *, of: Mapping[str, Any]) -> None:
        self._folder = folder
        self._of = json.loads(json.dumps(of))
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"the folder {folder} cannot be made: {error.strerror}") from error

    def get(self, name: str, make: Callable[[], BatchScores]) -> BatchScores:
        """The scores kept under a name; made and kept if there are none.

        Raises:
            OutputError: They are of something else, or cannot be written.
        """
        path = self._folder / f"{quote(name, safe=' ,=')}.json"
        if path.exists():
            document = json.loads(path.read_text(encoding="utf-8"))
            theirs = document["of"]
            differing = sorted(name for name in theirs | self._of if theirs.get(name) != self._of.get(name))
            if differing:
                raise OutputError(f"{path} has scores of another {' and '.join(differing)}: choose another folder")
            kept: BatchScores = document["scores"]
            return kept
        scores = make()
        with atomic_write(path) as temporary:
            temporary.write_text(json.dumps({"of": self._of, "scores": scores}, indent=1) + "\n", encoding="utf-8")
        return scores
