"""What VBench writes: for every dimension a score, and what each video got."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from forcing_kv.errors import OutputError
from forcing_kv.evaluation.vbench.scores import DIMENSIONS

RESULT_ENDING = "_eval_results.json"


@dataclass(frozen=True, kw_only=True)
class DimensionResult:
    """The score of one dimension.

    Attributes:
        score: As VBench gives it, before it is normalised.
        num_videos: Videos it is the mean of; VBench passes over those it can make nothing of.
    """

    score: float
    num_videos: int


def read_results(folder: Path) -> dict[str, DimensionResult]:
    """All results in a folder, by dimension, in VBench's order; a file may hold several.

    Raises:
        OutputError: A file cannot be read, or two hold the same dimension.
    """
    found: dict[str, DimensionResult] = {}
    origins: dict[str, Path] = {}
    for path in sorted(folder.glob(f"*{RESULT_ENDING}")):
        for name, result in read_result_file(path).items():
            if name in found:
                raise OutputError(f"{origins[name]} and {path} both hold {name}: keep one of them")
            found[name], origins[name] = result, path
    return {name: found[name] for name in DIMENSIONS if name in found}


def read_result_file(path: Path) -> dict[str, DimensionResult]:
    """The results in one file, by dimension.

    Raises:
        OutputError: It cannot be read, holds no result of VBench, or a score that is no number.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise OutputError(f"the result {path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise OutputError(f"the result {path} is not valid JSON ({error}): evaluate the dimension again") from error
    if not isinstance(document, dict) or not document:
        raise OutputError(f"the result {path} holds no scores by dimension: evaluate the dimension again")
    return {name: _result(name, value, path) for name, value in document.items()}


def _result(name: str, value: Any, path: Path) -> DimensionResult:
    if name not in DIMENSIONS:
        raise OutputError(f"the result {path} holds {name!r}, which is no dimension of VBench 1")
    is_pair = isinstance(value, list) and len(value) == 2 and isinstance(value[1], list)
    score = value[0] if is_pair else None
    if isinstance(score, bool) or not isinstance(score, int | float):
        raise OutputError(f"the result {path} holds no [score, videos] for {name}: evaluate the dimension again")
    if not math.isfinite(score):
        raise OutputError(f"the result {path} gives {name} the score {score}: VBench could score none of its videos")
    return DimensionResult(score=float(score), num_videos=len(value[1]))
