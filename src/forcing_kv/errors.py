"""Everything this package raises on purpose.

    ForcingKVError
    ├── ConfigurationError   a setting that cannot work: a policy, a geometry, a resolution, a schedule
    ├── UnknownNameError     a name that is not in a list; the message shows the list
    ├── HeadMapError         a head-map file that is broken or does not fit the model
    ├── CheckpointError      weights that are missing, unexpected, mis-shaped or unreadable
    ├── PromptError          an empty prompt, a prompt outside a grammar, a bad line in a prompt file
    ├── MemoryLimitError     a run that the device cannot hold; the message says what would make it fit
    ├── OutputError          a file or folder that exists, is missing, or cannot be written
    └── SnapshotError        a snapshot that does not belong to this stream

Every message names the value, the limit and the fix. All are `ValueError`s too, so that code which does not know this
package can still catch them.
"""

from collections.abc import Iterable


class ForcingKVError(ValueError):
    """Base of all errors that a user can cause and correct."""


class ConfigurationError(ForcingKVError):
    """A setting that cannot work, alone or together with the others."""


class UnknownNameError(ForcingKVError):
    """A name that is not among the choices."""

    def __init__(self, kind: str, name: str, choices: Iterable[str]) -> None:
        super().__init__(f"unknown {kind} {name!r}; choose one of: {', '.join(choices)}")


class HeadMapError(ForcingKVError):
    """A head map that cannot be read or does not fit the model."""


class CheckpointError(ForcingKVError):
    """Model weights that cannot be used as they are."""


class PromptError(ForcingKVError):
    """A prompt, or a line of a prompt file, that cannot be used."""


class MemoryLimitError(ForcingKVError):
    """A run that needs more memory than the device has."""


class OutputError(ForcingKVError):
    """An output path that cannot be written as asked."""


class SnapshotError(ForcingKVError):
    """A snapshot that cannot be restored into this stream."""
