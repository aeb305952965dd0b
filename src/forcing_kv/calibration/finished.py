"""The prompts that a calibration has finished, on disk: one small file each, complete or not there at all."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from forcing_kv.calibration.observations import CIRCUMSTANCES, Observations, first_difference
from forcing_kv.errors import OutputError
from forcing_kv.output_files import atomic_write, reason


class FinishedPrompts:
    """Observations by number of the prompt, in a folder.

    Args:
        folder: Made when the first is kept.
    """

    def __init__(self, folder: str | Path) -> None:
        self._folder = Path(folder)

    def load(self, prompts: Sequence[str], *, seed: int, settings: Mapping[str, Any]) -> dict[int, Observations]:
        """Those that are there, by number.

        Args:
            prompts: All prompts of the run.
            seed: Of the first.
            settings: What must be the same: an `Observations.identity`.

        Raises:
            OutputError: One was made otherwise, or cannot be read.
        """
        settings = {name: value for name, value in settings.items() if name not in CIRCUMSTANCES}
        finished = {}
        for index, prompt in enumerate(prompts):
            path = self._path(index)
            if not path.exists():
                continue
            part = Observations.load(path)
            made = {"prompt": part.prompts[0], "seed": part.seeds[0], **part.identity()}
            difference = first_difference(made, {"prompt": prompt, "seed": seed + index, **settings})
            if difference is not None:
                raise OutputError(
                    f"{path} was made with {difference}: go on with the same settings, choose another folder, or start "
                    "over with --overwrite"
                )
            finished[index] = part
        return finished

    def keep(self, index: int, observations: Observations) -> None:
        """Writes those of one prompt.

        Raises:
            OutputError: It cannot be written.
        """
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"the folder {self._folder} cannot be made: {reason(error)}") from error
        with atomic_write(self._path(index)) as temporary:
            observations.save(temporary)

    def clear(self) -> None:
        """Removes what an earlier run has kept, and nothing else."""
        for path in self._folder.glob("[0-9]*.safetensors"):
            path.unlink()

    def _path(self, index: int) -> Path:
        return self._folder / f"{index:05d}.safetensors"
