"""Files for the user: checked before work starts, complete or not there at all.

`check_output_file` refuses a path that cannot or must not be written, so that no GPU minute is spent on a result with
nowhere to go. `atomic_write` gives a temporary name to write to and moves the file to its own name at the end, so that
a crash never leaves half a file under a name that someone trusts.
"""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from forcing_kv.errors import OutputError


def check_output_file(path: str | Path, *, overwrite: bool = False) -> Path:
    """Refuse a path that cannot be written as asked; touches nothing.

    Raises:
        OutputError: The file exists and `overwrite` is off, the path is a folder, or its folder is missing or not
            writable.
    """
    path = Path(path)
    if path.is_dir():
        raise OutputError(
            f"{path} is a folder: name a file in it, such as {path / ('video' + (path.suffix or '.mp4'))}"
        )
    check_output_folder(path.absolute().parent)
    if path.exists() and not overwrite:
        raise OutputError(f"{path} exists: choose another name, or replace it with --overwrite")
    return path


def check_output_folder(folder: str | Path) -> Path:
    """Refuse a folder that is missing or not writable; touches nothing.

    Raises:
        OutputError: As said.
    """
    folder = Path(folder)
    if not folder.exists():
        raise OutputError(f"the output folder {folder} does not exist: create it first")
    if not folder.is_dir():
        raise OutputError(f"the output folder {folder} is a file: choose another place")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise OutputError(f"the output folder {folder} is not writable: change its permissions or choose another place")
    return folder


def check_new_folder(folder: str | Path) -> Path:
    """Refuse a folder that could not be made, with the folders above it; touches nothing.

    Returns:
        The nearest folder above it that exists.

    Raises:
        OutputError: As said.
    """
    above = next(parent for parent in Path(folder).absolute().parents if parent.exists())
    return check_output_folder(above)


def check_work_folder(folder: Path, *, what: str, resume: bool, overwrite: bool) -> None:
    """Refuse a folder of a long run that cannot be written as asked; touches nothing.

    Args:
        folder: Of the run's output; it may be missing, and folders above it too.
        what: What is in it, for the error: `comparison`.
        resume: Whether a run that was begun there is gone on with.
        overwrite: Whether it is replaced.

    Raises:
        OutputError: It holds something, and is neither to be gone on with nor to be replaced, or is to be both; or it
            cannot be written.
    """
    if resume and overwrite:
        raise OutputError(
            f"--resume goes on with the {what} in {folder}, --overwrite starts it over: give one of the two"
        )
    if not folder.exists():
        check_new_folder(folder)
        return
    check_output_folder(folder)
    if any(folder.iterdir()) and not (resume or overwrite):
        raise OutputError(
            f"{folder} exists: go on with an unfinished {what} with --resume, replace it with --overwrite, or choose "
            "another name"
        )


@contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Write a file under a temporary name beside `path`; it takes its own name only when the block ends well.

    Yields:
        The temporary path to write to.

    Raises:
        OutputError: The disk is full, or the file cannot be written for another reason of the system's.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    except (OSError, SafetensorError) as error:
        temporary.unlink(missing_ok=True)
        raise OutputError(f"{path} cannot be written: {reason(error)}") from error
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def reason(error: Exception) -> str:
    """Why a write failed, in words that name the fix where there is one."""
    # safetensors and FFmpeg report a full disk in text of their own, without an errno that can be relied on.
    is_full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "no space left" in str(error).lower()
    if is_full:
        return "the disk is full; free some space"
    return getattr(error, "strerror", None) or str(error)
