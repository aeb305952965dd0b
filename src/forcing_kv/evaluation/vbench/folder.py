"""The folder of one benchmark run: what is where in it, and what its videos were made with.

settings.json            what every video was made with, and how many there are to be
VBench_full_info.json    the prompt suite, as it was given
videos/                  PROMPT-INDEX.mp4, and nothing else: VBench goes by the first file that it finds
evaluation/DIMENSION/    log.txt of the evaluator, about.json: what it ran on
results/                 DIMENSION_eval_results.json, as VBench wrote them; zipped, what its leaderboard takes
report.json              all of it, with the totals
"""

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from forcing_kv.errors import ConfigurationError, ForcingKVError, OutputError
from forcing_kv.evaluation.vbench.plan import SamplePlan, video_name
from forcing_kv.evaluation.vbench.scores import DIMENSIONS
from forcing_kv.evaluation.vbench.suite import SUITE_FILE, PromptSuite, parse_suite
from forcing_kv.output_files import atomic_write, check_work_folder, reason
from forcing_kv.video.writer import partial_folder

FORMAT = "forcing-kv-vbench"
VERSION = 1


@dataclass(frozen=True, kw_only=True)
class FolderSettings:
    """What is said of all videos of a folder.

    Attributes:
        made_with: Whatever decides what the videos show: model, weights, policy, seed and so on.
        plan: How many there are to be.
        environment: Versions and hardware of the newest run.
    """

    made_with: dict[str, Any]
    plan: SamplePlan
    environment: dict[str, Any]


class BenchmarkFolder:
    """A folder by its parts; touches nothing until told to.

    Args:
        root: The folder.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.settings_path = root / "settings.json"
        self.suite_path = root / SUITE_FILE
        self.videos = root / "videos"
        self.results = root / "results"
        self.report_path = root / "report.json"

    @classmethod
    def open(cls, root: Path) -> Self:
        """A folder that `vbench generate` has begun.

        Raises:
            OutputError: It is none.
        """
        folder = cls(root)
        if not folder.settings_path.is_file():
            raise OutputError(
                f"{root} holds no videos of VBench's prompts, for it has no {folder.settings_path.name}: make them "
                f"with forcing-kv vbench generate -o {root}"
            )
        return folder

    def evaluation(self, dimension: str) -> Path:
        """What is kept of the evaluation of a dimension, besides its result."""
        return self.root / "evaluation" / dimension

    def video_path(self, prompt: str, index: int) -> Path:
        """Where the sample of a prompt goes."""
        return self.videos / video_name(prompt, index)

    def check(self, settings: FolderSettings, *, resume: bool, overwrite: bool) -> None:
        """Refuse a folder that cannot be written as asked; touches nothing.

        Raises:
            OutputError: The folder holds something and neither `resume` nor `overwrite` is on, cannot be written, or
                holds videos that were made otherwise, and they are to be gone on with.
        """
        check_work_folder(self.root, what="run", resume=resume, overwrite=overwrite)
        if self.settings_path.exists() and not overwrite:
            self._check_same(settings)

    def check_names(self, names: Sequence[str]) -> None:
        """Refuse names that the file system has no room for.

        Raises:
            ConfigurationError: One is too long.
        """
        above = next(folder for folder in (self.root, *self.root.absolute().parents) if folder.exists())
        limit = os.pathconf(above, "PC_NAME_MAX")
        longest = max((partial_folder(name).name for name in names), key=lambda name: len(os.fsencode(name)))
        if len(os.fsencode(longest)) > limit:
            raise ConfigurationError(
                f"the file system of {above} takes names of {limit} bytes, and VBench's naming needs "
                f"{len(os.fsencode(longest))} for {longest!r}: choose a folder on another one (an encrypted home "
                "folder is often the reason)"
            )

    def begin(self, suite: PromptSuite, settings: FolderSettings, *, overwrite: bool) -> None:
        """Make the folder, or go on with it; call `check` before.

        With `overwrite` everything that an earlier run has made is removed, and nothing else.

        Raises:
            OutputError: It cannot be written.
        """
        if self.settings_path.exists() and not overwrite:
            begun = self.settings().plan
            together = tuple(name for name in DIMENSIONS if name in {*begun.dimensions, *settings.plan.dimensions})
            settings = replace(settings, plan=replace(settings.plan, dimensions=together))
        try:
            if overwrite:
                self._clear()
            self.videos.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"{self.root} cannot be written: {reason(error)}") from error
        with atomic_write(self.suite_path) as temporary:
            temporary.write_bytes(suite.content)
        document = {
            "format": FORMAT,
            "version": VERSION,
            "made_with": settings.made_with,
            "plan": settings.plan.to_json(),
            "environment": settings.environment,
        }
        with atomic_write(self.settings_path) as temporary:
            temporary.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

    def check_case(self, names: Sequence[str]) -> None:
        """Refuse names that are one on a file system that does not tell case apart; call `begin` before.

        Raises:
            ConfigurationError: There are such names and it is such a file system.
        """
        if not self.settings_path.with_name(self.settings_path.name.upper()).exists():
            return
        seen: dict[str, str] = {}
        for name in names:
            first = seen.setdefault(name.casefold(), name)
            if first != name:
                raise ConfigurationError(
                    f"the file system of {self.root} takes {first!r} and {name!r} for one name, and VBench wants both: "
                    "choose a folder on another one, or fewer --dimensions"
                )

    def settings(self) -> FolderSettings:
        """What `begin` has written.

        Raises:
            OutputError: It cannot be read.
        """
        try:
            document = json.loads(self.settings_path.read_text(encoding="utf-8"))
            if (document["format"], document["version"]) != (FORMAT, VERSION):
                raise OutputError(
                    f"{self.settings_path} is of format {document['format']!r}, version {document['version']}, and "
                    f"this program reads {FORMAT!r}, version {VERSION}"
                )
            return FolderSettings(
                made_with=dict(document["made_with"]),
                plan=SamplePlan(**document["plan"]),
                environment=dict(document["environment"]),
            )
        except ForcingKVError:
            raise
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise OutputError(
                f"{self.settings_path} cannot be read ({error}): start over with forcing-kv vbench generate --overwrite"
            ) from error

    def suite(self) -> PromptSuite:
        """The prompt suite that the videos are of.

        Raises:
            OutputError: It cannot be read.
            ConfigurationError: It is no suite.
        """
        try:
            return parse_suite(self.suite_path.read_bytes(), where=str(self.suite_path))
        except OSError as error:
            raise OutputError(f"{self.suite_path} cannot be read: {error.strerror}") from error

    def missing_videos(self, dimension: str) -> list[str]:
        """Names of the videos that a dimension still lacks."""
        present = set(os.listdir(self.videos)) if self.videos.is_dir() else set()
        return [name for name in self.settings().plan.file_names(self.suite(), dimension) if name not in present]

    def check_videos_alone(self) -> None:
        """Refuse anything that is no finished video among the videos, by which VBench would be misled.

        Raises:
            OutputError: There is something.
        """
        for name in sorted(os.listdir(self.videos)):
            if name.endswith(".mp4"):
                continue
            if name.endswith(partial_folder(".mp4").name):
                raise OutputError(
                    f"{self.videos / name} is an unfinished video: finish it with forcing-kv vbench generate --resume"
                )
            raise OutputError(
                f"{self.videos / name} is no video, and VBench takes the ending of whichever file it finds first for "
                "that of all: move it away"
            )

    def _check_same(self, settings: FolderSettings) -> None:
        begun = self.settings()
        asked = json.loads(json.dumps(settings.made_with))  # as it would be read
        differences = [
            (name, begun.made_with.get(name), asked.get(name))
            for name in {**begun.made_with, **asked}
            if begun.made_with.get(name) != asked.get(name)
        ]
        for name in ("samples", "flickering_samples"):
            before, now = getattr(begun.plan, name), getattr(settings.plan, name)
            if now < before:  # more may be added, but what is there would count
                differences.append((name, before, now))
        if differences:
            name, before, now = differences[0]
            raise OutputError(
                f"{self.root} was made with {name} {before!r}, not {now!r}: go on with the same settings, choose "
                "another folder, or start over with --overwrite"
            )

    def _clear(self) -> None:
        if self.videos.is_dir():
            for path in self.videos.iterdir():
                if path.name.endswith(partial_folder(".mp4").name):
                    shutil.rmtree(path)
                elif path.suffix == ".mp4":
                    path.unlink()
        for dimension in DIMENSIONS:
            shutil.rmtree(self.evaluation(dimension), ignore_errors=True)
            self.result_path(dimension).unlink(missing_ok=True)
        for path in (self.report_path, self.suite_path, self.settings_path):
            path.unlink(missing_ok=True)

    def result_path(self, dimension: str) -> Path:
        """The result of a dimension, under the name that VBench gives it."""
        return self.results / f"{dimension}_eval_results.json"
