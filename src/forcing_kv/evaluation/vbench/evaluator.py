"""VBench's evaluator, in an environment of its own: found, asked what it is, and run for one dimension at a time.

It runs as a process that writes into a log, and into a folder of its own until it has finished well: a dimension is
evaluated whole or not at all, and none is lost with another one.
"""

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from forcing_kv.errors import ConfigurationError, ForcingKVError, OutputError
from forcing_kv.evaluation.vbench.folder import BenchmarkFolder
from forcing_kv.evaluation.vbench.results import RESULT_ENDING, read_result_file
from forcing_kv.evaluation.vbench.scores import FLICKERING
from forcing_kv.evaluation.vbench.suite import SUITE_FILE
from forcing_kv.output_files import atomic_write, reason

PYTHON_VARIABLE = "FORCING_KV_VBENCH_PYTHON"
INSTALL = (
    "python3.11 -m venv vbench-env",
    "vbench-env/bin/pip install torch==2.5.1 torchvision==0.20.1 --index-url https://download.pytorch.org/whl/cu121",
    "vbench-env/bin/pip install vbench==0.1.5 'setuptools<70' wheel",
    "vbench-env/bin/pip install --no-build-isolation 'git+https://github.com/facebookresearch/detectron2.git'",
)
"""What makes the environment, command by command."""

_SCRIPT = Path(__file__).with_name("evaluate_dimension.py")
_ASK = (
    "import importlib.util, json, os; spec = importlib.util.find_spec('vbench'); "
    "print(json.dumps(spec and os.path.dirname(spec.origin)))"
)
_ASK_TIMEOUT_S = 120.0
_POLL_S = 0.2
_TERMINATE_TIMEOUT_S = 10.0
_TAIL_BYTES = 8192
_TAIL_LINES = 6
_LINE_CHARACTERS = 200


class EvaluatorError(ForcingKVError):
    """A dimension that VBench has not come to the end of.

    Attributes:
        dimension: Which one.
        log: What it has printed.
    """

    def __init__(self, dimension: str, log: Path, what: str) -> None:
        super().__init__(f"{dimension} {what}; the log is {log}, which ends: {last_lines(log, 1)[0]}")
        self.dimension = dimension
        self.log = log


@dataclass(frozen=True, kw_only=True)
class Evaluator:
    """VBench in its environment.

    Attributes:
        python: Its interpreter.
        package: The folder of the package `vbench`.
    """

    python: Path
    package: Path

    @property
    def suite_path(self) -> Path:
        """The prompt suite that came with it."""
        return self.package / SUITE_FILE


def find_evaluator(python: Path | None) -> Evaluator:
    """Asks an interpreter for the VBench that it has.

    Raises:
        ConfigurationError: None is given, it does not run, or it has no VBench; the message says what to install.
    """
    how = f"make an environment for it with: {' && '.join(INSTALL)}; and give --vbench-python vbench-env/bin/python"
    if python is None:
        raise ConfigurationError(f"VBench's evaluator needs an environment of its own, and none is given: {how}")
    python = python.absolute()  # not resolved: the link in an environment is what makes it one
    try:
        answer = subprocess.run(
            [str(python), "-c", _ASK], capture_output=True, text=True, timeout=_ASK_TIMEOUT_S, check=True
        )
        package = json.loads(answer.stdout)
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        raise ConfigurationError(f"{python} is no Python interpreter that runs ({error}): {how}") from error
    if package is None:
        raise ConfigurationError(f"{python} has no package vbench: {how}")
    return Evaluator(python=python, package=Path(package))


def evaluate(
    evaluator: Evaluator,
    folder: BenchmarkFolder,
    dimension: str,
    *,
    device: str = "auto",
    static_filter: bool = True,
    max_silence_s: float = 3600.0,
    on_line: Callable[[str], None] = lambda _: None,
) -> None:
    """Scores the videos of one dimension and puts the result into the folder.

    Args:
        evaluator: Where VBench is.
        folder: Whose videos.
        dimension: Which one.
        device: Where it computes: `auto`, `cuda`, `cpu` and so on.
        static_filter: For `temporal_flickering`, score only the videos that VBench's filter finds static, as its
            instructions want it.
        max_silence_s: Time without a word in the log after which it counts as stuck and is ended.
        on_line: Told the newest line of the log, several times a second.

    Raises:
        EvaluatorError: VBench failed, was stuck or gave no score.
        OutputError: Its files cannot be written.
    """
    kept, result_path = folder.evaluation(dimension), folder.result_path(dimension)
    work = kept / "unfinished"
    filters = static_filter and dimension == FLICKERING
    try:
        shutil.rmtree(work, ignore_errors=True)  # of a run that was killed
        work.mkdir(parents=True)
        folder.results.mkdir(exist_ok=True)
    except OSError as error:
        raise OutputError(f"{kept} cannot be written: {reason(error)}") from error
    log = kept / "log.txt"
    command = [str(evaluator.python), str(_SCRIPT)]
    command += ["--videos", str(folder.videos.absolute()), "--suite", str(folder.suite_path.absolute())]
    command += ["--output", str(work.absolute()), "--dimension", dimension, "--device", device]
    started = time.monotonic()
    _run(command + ["--static-filter"] * filters, dimension, log, max_silence_s=max_silence_s, on_line=on_line)
    about = _about(work, dimension, log)
    written = work / f"{dimension}{RESULT_ENDING}"
    try:
        results = read_result_file(written)
    except OutputError as error:
        raise EvaluatorError(dimension, log, f"was evaluated without a usable result: {error}") from error
    if list(results) != [dimension]:
        raise EvaluatorError(dimension, log, f"was evaluated, and the result is of {', '.join(results)}")
    about |= {
        "samples": folder.settings().plan.samples_for(dimension),
        "static_filter": filters if dimension == FLICKERING else None,
        "seconds": round(time.monotonic() - started, 1),
    }
    with atomic_write(result_path) as temporary:
        shutil.copyfile(written, temporary)
    with atomic_write(kept / "about.json") as temporary:  # last: it says that all is there
        temporary.write_text(json.dumps(about, indent=2) + "\n")
    shutil.rmtree(work, ignore_errors=True)


def is_evaluated(folder: BenchmarkFolder, dimension: str, *, static_filter: bool = True) -> bool:
    """Whether a dimension was evaluated as asked, with all the samples that the folder now has."""
    about = read_about(folder, dimension)
    if about is None or not folder.result_path(dimension).is_file():
        return False
    is_filtered = static_filter if dimension == FLICKERING else None
    made = (about.get("samples"), about.get("static_filter"))
    return made == (folder.settings().plan.samples_for(dimension), is_filtered)


def read_about(folder: BenchmarkFolder, dimension: str) -> dict[str, Any] | None:
    """What a dimension was evaluated on: versions, device, samples, seconds; None where that is not known."""
    try:
        about = json.loads((folder.evaluation(dimension) / "about.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return about if isinstance(about, dict) else None


def ready_dimensions(
    folder: BenchmarkFolder, asked: tuple[str, ...] | None = None
) -> tuple[tuple[str, ...], dict[str, int]]:
    """The dimensions that can be scored, and for the others of the folder how many videos they lack.

    Args:
        folder: Whose videos.
        asked: What is to be scored; None for all that the folder was made for and that are complete.

    Raises:
        OutputError: One that is asked for lacks videos, or all do.
    """
    wanted = folder.settings().plan.dimensions if asked is None else asked
    missing = {name: folder.missing_videos(name) for name in wanted}
    ready = tuple(name for name in wanted if not missing[name])
    incomplete = {name: len(names) for name, names in missing.items() if names}
    if incomplete and (asked is not None or not ready):
        name = next(iter(incomplete))
        raise OutputError(
            f"{incomplete[name]} of the videos for {name} are missing in {folder.videos}, the first of them "
            f"{missing[name][0]!r}: make them with forcing-kv vbench generate --resume"
        )
    return ready, incomplete


def last_lines(log: Path, num_lines: int = _TAIL_LINES) -> list[str]:
    """The newest lines of a log, at least one; a progress bar that redraws itself is one line each time."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL_BYTES))
            text = file.read().decode(errors="replace")
    except OSError:
        text = ""
    lines = (" ".join(line.split())[:_LINE_CHARACTERS] for line in text.replace("\r", "\n").splitlines())
    return [line for line in lines if line][-num_lines:] or ["(nothing)"]


def _run(
    command: list[str], dimension: str, log: Path, *, max_silence_s: float, on_line: Callable[[str], None]
) -> None:
    """Runs the evaluator to its end; ends it where it is stuck, and where this process is interrupted."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=log.parent,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
            start_new_session=True,  # so that it can be ended with the processes that it starts
        )
    size, changed = 0, time.monotonic()
    try:
        while process.poll() is None:
            with suppress(subprocess.TimeoutExpired):
                process.wait(timeout=_POLL_S)
            if log.stat().st_size != size:
                size, changed = log.stat().st_size, time.monotonic()
                on_line(last_lines(log, 1)[0])
            elif time.monotonic() - changed > max_silence_s:
                raise EvaluatorError(dimension, log, f"said nothing for {max_silence_s:g} s and was ended")
    finally:
        _end(process)
    if process.returncode < 0:
        name = signal.Signals(-process.returncode).name
        raise EvaluatorError(dimension, log, f"was ended by {name}" + " (out of memory?)" * (name == "SIGKILL"))
    if process.returncode:
        raise EvaluatorError(dimension, log, f"failed with exit code {process.returncode}")


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ends a process and what it has started, if it is still there."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        if process.poll() is not None:
            return
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=_TERMINATE_TIMEOUT_S)


def _about(work: Path, dimension: str, log: Path) -> dict[str, Any]:
    try:
        about: dict[str, Any] = json.loads((work / "about.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise EvaluatorError(dimension, log, f"did not say what it ran on ({error})") from error
    return about
