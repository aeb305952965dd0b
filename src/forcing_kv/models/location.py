"""Where a file or folder of a model lies: on this machine, or on the hub until it is wanted.

Downloads are huggingface_hub's: resumable, shared with every other program that uses its cache, and silent in offline
mode (`HF_HUB_OFFLINE=1`). `HF_HOME` and `HF_HUB_CACHE` say where they go.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from forcing_kv.errors import CheckpointError
from forcing_kv.output_files import reason

NUM_SAMPLES = 32
SAMPLE_BYTES = 65_536


class Location(Protocol):
    """A file or folder that can be asked for."""

    def find(self) -> Path | None:
        """Where it lies on this machine; None if it would have to be downloaded."""
        ...

    def fetch(self) -> Path:
        """Where it lies on this machine, after a download if need be.

        Raises:
            CheckpointError: It is not there and cannot be had.
        """
        ...

    def label(self) -> str:
        """A short text that tells contents apart: what videos, snapshots and cached prompts were made with."""
        ...


@dataclass(frozen=True)
class LocalPath:
    """A file or folder of the user's."""

    path: Path

    def __str__(self) -> str:
        return str(self.path)

    def find(self) -> Path | None:
        """See `Location.find`."""
        return self.path if self.path.exists() else None

    def fetch(self) -> Path:
        """See `Location.fetch`."""
        if not self.path.exists():
            raise CheckpointError(f"{self.path} does not exist")
        return self.path

    def label(self) -> str:
        """See `Location.label`: the name, and a hash of samples of the content (all of it may be gigabytes)."""
        files = sorted(self.path.rglob("*")) if self.path.is_dir() else [self.path]
        digest = hashlib.sha256()
        for file in filter(Path.is_file, files):
            size = file.stat().st_size
            digest.update(f"{file.relative_to(self.path)} {size} ".encode())
            with file.open("rb") as content:
                for number in range(NUM_SAMPLES):
                    content.seek(number * size // NUM_SAMPLES)
                    digest.update(content.read(SAMPLE_BYTES))
        return f"{self.path.name} ({digest.hexdigest()[:16]})"


@dataclass(frozen=True)
class HubFile:
    """One file of a repository on the hub."""

    repo: str
    path: str

    def __str__(self) -> str:
        return f"{self.repo}: {self.path}"

    def find(self) -> Path | None:
        """See `Location.find`."""
        from huggingface_hub import try_to_load_from_cache

        found = try_to_load_from_cache(self.repo, self.path)
        return Path(found) if isinstance(found, str) else None

    def fetch(self) -> Path:
        """See `Location.fetch`."""
        from huggingface_hub import hf_hub_download

        with _hub_errors(self, f"hf download {self.repo} {self.path}"):
            return Path(hf_hub_download(self.repo, self.path, tqdm_class=_progress_bar()))

    def label(self) -> str:
        """See `Location.label`: a release does not change."""
        return str(self)


@dataclass(frozen=True)
class HubFolder:
    """One folder of a repository on the hub, such as `vae`; it has a file `marker` in it."""

    repo: str
    path: str
    marker: str

    def __str__(self) -> str:
        return f"{self.repo}: {self.path}/"

    def find(self) -> Path | None:
        """See `Location.find`."""
        marker = HubFile(self.repo, f"{self.path}/{self.marker}").find()
        return None if marker is None else marker.parent

    def fetch(self) -> Path:
        """See `Location.fetch`."""
        from huggingface_hub import snapshot_download

        pattern = f"{self.path}/*"
        with _hub_errors(self, f"hf download {self.repo} --include '{pattern}'"):
            # Everything of the folder is there or fetched; a snapshot without it (offline) fails at the marker below.
            snapshot = Path(snapshot_download(self.repo, allow_patterns=[pattern], tqdm_class=_progress_bar()))
        folder = snapshot / self.path
        if not (folder / self.marker).exists():
            raise CheckpointError(
                f"{self} is not complete on this machine ({folder} has no {self.marker}); get it with: "
                f"hf download {self.repo} --include '{pattern}'"
            )
        return folder

    def label(self) -> str:
        """See `Location.label`: a release does not change."""
        return str(self)


@contextmanager
def _hub_errors(location: Location, command: str) -> Iterator[None]:
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    advice = (
        f"get it with: {command}; or give a local copy with --weights (weights) or --components (VAE, text encoder)"
    )
    try:
        yield
    except LocalEntryNotFoundError as error:
        from huggingface_hub import constants

        why = (
            "offline mode is on (HF_HUB_OFFLINE)" if constants.HF_HUB_OFFLINE else "the hub could not be reached for it"
        )
        raise CheckpointError(f"{location} is not on this machine, and {why}; {advice}") from error
    except HfHubHTTPError as error:
        raise CheckpointError(f"the hub refuses {location}: {_first_line(error)}; {advice}") from error
    except OSError as error:
        raise CheckpointError(f"{location} could not be downloaded: {reason(error)}; {advice}") from error


def _first_line(error: Exception) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _progress_bar() -> Any:
    """A bar of our own: the command line silences the library's, which shows one for every small local file as well."""
    from tqdm import tqdm

    class DownloadBar(tqdm):  # type: ignore[type-arg]
        def __init__(self, *args: Any, **settings: Any) -> None:
            super().__init__(*args, **{**settings, "disable": None, "leave": False})  # only where somebody looks

    return DownloadBar
