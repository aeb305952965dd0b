"""`compare`: makes every video of a comparison, measures it on the way, and keeps it as soon as it is finished.

Prompts are made in fixed batches, the reference first and then every other policy from the same noise. A batch under
one policy is the unit that is finished or made again, so that a run which was killed gives, when it is gone on with,
what it would have given.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from forcing_kv.errors import ConfigurationError, PromptError
from forcing_kv.evaluation.comparison import (
    Chosen,
    Comparison,
    Contestant,
    choose_metrics,
    folder_name,
    num_together,
)
from forcing_kv.evaluation.finished import ComparedVideo, FinishedVideos
from forcing_kv.evaluation.measuring import Measuring
from forcing_kv.evaluation.metrics import Meter, series_of
from forcing_kv.evaluation.reference import ReferenceChunks
from forcing_kv.evaluation.worlds import Judge
from forcing_kv.generation.request import slug
from forcing_kv.models.weights import weights_sha256
from forcing_kv.pipeline import VideoPipeline
from forcing_kv.policies.base import head_map_of
from forcing_kv.rollout import Chunk
from forcing_kv.step_cache import num_steps_skipped
from forcing_kv.versions import package_version
from forcing_kv.video import VideoWriter

Progress = Callable[[int, int], None]

_REFERENCE_FOLDER = "reference-chunks"
_MADE = (
    "report.json",
    "report.html",
    f"{_REFERENCE_FOLDER}/*",
    "measured/*/[0-9]*.json",
    "videos/*/[0-9]*.mp4",
    "videos/*/[0-9]*.mp4.partial",
)
"""What is made in the folder of a comparison, its reports included."""


@dataclass(frozen=True, kw_only=True)
class Compared:
    """All videos of a comparison, measured.

    Attributes:
        asked: What was compared.
        prompts: One video each per policy.
        contestants: The reference first.
        chosen: The metrics.
        videos: By the contestant's name, in the order of the prompts.
        paths: Where the videos lie, likewise.
        not_judged: By index of the prompt, why the world's rules say nothing about it.
        settings: Everything that decides the values; of a plain reference some are other ones.
    """

    asked: Comparison
    prompts: tuple[str, ...]
    contestants: tuple[Contestant, ...]
    chosen: Chosen
    videos: Mapping[str, Sequence[ComparedVideo]]
    paths: Mapping[str, Sequence[Path]]
    not_judged: Mapping[int, str]
    settings: Mapping[str, Any]

    @property
    def reference(self) -> str:
        """Name of the one that the others are measured against."""
        return self.contestants[0].name


def compare(
    pipeline: VideoPipeline,
    prompts: Sequence[str],
    asked: Comparison,
    folder: Path,
    *,
    chosen: Chosen | None = None,
    plain_pipeline: VideoPipeline | None = None,
    overwrite: bool = False,
    check_memory: bool = True,
    on_progress: Progress = lambda done, total: None,
) -> Compared:
    """Makes what is missing, and reads what is there.

    Args:
        pipeline: The model.
        prompts: One video each per policy; the seed of each is one more than that of the one before.
        asked: What is compared.
        folder: Where videos and measurements go; made if missing.
        chosen: What `choose_metrics` gave; None asks it.
        plain_pipeline: The same model in its own precision, for a plain reference; None if `pipeline` is that.
        overwrite: Whether what lies there is made again.
        check_memory: Whether a stream that the device cannot hold is refused.
        on_progress: Told the number of chunks done by this run, and of all that it makes, each of a batch of prompts.

    Raises:
        ForcingKVError: A setting that cannot work, a prompt that the model does not understand, a file that was made
            with other settings or cannot be written. What is finished is kept.
    """
    run = _Run(
        pipeline,
        prompts,
        asked,
        folder,
        chosen=chosen,
        plain_pipeline=plain_pipeline or pipeline,
        check_memory=check_memory,
    )
    run.encode_prompts()
    if overwrite:
        run.clear()
    return run.run(on_progress)


class _Run:
    """The state of one call of `compare`."""

    def __init__(
        self,
        pipeline: VideoPipeline,
        prompts: Sequence[str],
        asked: Comparison,
        folder: Path,
        *,
        chosen: Chosen | None,
        plain_pipeline: VideoPipeline,
        check_memory: bool,
    ) -> None:
        if not prompts:
            raise PromptError("there is nothing to compare on: give at least one prompt")
        self.pipeline, self.prompts, self.asked, self.folder = pipeline, tuple(prompts), asked, folder
        self.plain_pipeline, self.check_memory = plain_pipeline, check_memory
        self.contestants = asked.contestants(pipeline.head_map)
        geometry = pipeline.geometry(asked.resolution)
        self.num_chunks = pipeline.num_chunks(asked.num_frames)
        size = num_together(asked, chunk_tokens=geometry.chunk_tokens)
        self.batches = [range(first, min(first + size, len(prompts))) for first in range(0, len(prompts), size)]
        resolution = asked.resolution or pipeline.preset.default_resolution
        self.chosen = choose_metrics(asked, pipeline.preset, device=pipeline.device) if chosen is None else chosen
        self.judges, self.not_judged = self._judges()
        self.settings: dict[str, Any] = {
            "model": pipeline.preset.name,
            "weights": pipeline.weights,
            "weights_sha256": weights_sha256(pipeline.transformer),
            "resolution": list(resolution),
            "fps": pipeline.preset.fps,
            "num_chunks": self.num_chunks,
            "chunk_frames": pipeline.preset.chunk_frames,
            "timesteps": [round(timestep, 3) for timestep in pipeline.preset.sampler.timesteps],
            "dtype": str(pipeline.dtype).removeprefix("torch."),
            "device": pipeline.device.type,
            **self._computing(self.contestants[-1]),
            "together": size,
            "reference": self.contestants[0].name,
        }
        if self.chosen.flow is not None:
            self.settings["flow"] = self.chosen.flow
        names = [f"{index + 1:03d}-{slug(prompt)}" for index, prompt in enumerate(prompts)]
        self.stores = {
            contestant.name: FinishedVideos(
                folder / "measured" / folder_name(contestant), folder / "videos" / folder_name(contestant), names
            )
            for contestant in self.contestants
        }

    def encode_prompts(self) -> None:
        """All before the first video, so that a large text encoder is loaded once, and one that is unknown is told."""
        for index, prompt in enumerate(self.prompts):
            try:
                self.pipeline.encode_prompt([prompt])
            except PromptError as error:
                raise PromptError(f"prompt {index + 1}: {error}") from error

    def clear(self) -> None:
        """Removes what earlier runs have made in the folder, under other policies too, and nothing else."""
        for path in [path for pattern in _MADE for path in self.folder.glob(pattern)]:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        for path in [path for folder in ("measured", "videos") for path in (self.folder / folder).glob("*")]:
            with suppress(OSError):  # the user has something in it
                path.rmdir()

    def run(self, on_progress: Progress) -> Compared:
        """Batch by batch, the reference first."""
        found = {contestant.name: self._finished(contestant) for contestant in self.contestants}
        for store in self.stores.values():
            store.make_folders()
        missing = [self._missing(batch, found) for batch in self.batches]
        total = self.num_chunks * sum(len(contestants) for contestants in missing)
        done = 0

        def advance() -> None:
            nonlocal done
            done += 1
            on_progress(done, total)

        on_progress(0, total)
        for batch, contestants in zip(self.batches, missing, strict=True):
            chunks = ReferenceChunks(self._reference_folder(batch))
            for contestant in contestants:
                self._make(batch, contestant, chunks, advance)
            chunks.discard()
        with suppress(OSError):  # not there, or not ours alone
            self._reference_folder(self.batches[0]).parent.rmdir()
        # All from their files, those just made too: so a run in one go and one in two give the same.
        found = {contestant.name: self._finished(contestant) for contestant in self.contestants}
        return Compared(
            asked=self.asked,
            prompts=self.prompts,
            contestants=tuple(self.contestants),
            chosen=self.chosen,
            videos={name: [videos[index] for index in range(len(self.prompts))] for name, videos in found.items()},
            paths={
                name: [store.video_path(index) for index in range(len(self.prompts))]
                for name, store in self.stores.items()
            },
            not_judged=self.not_judged,
            settings=self.settings,
        )

    def _judges(self) -> tuple[list[Judge | None], dict[int, str]]:
        world = self.chosen.world
        if world is None:
            return [None] * len(self.prompts), {}
        judges: list[Judge | None] = []
        reasons = {}
        for index, prompt in enumerate(self.prompts):
            try:
                judges.append(world.judge(prompt, num_frames=self.asked.num_frames))
            except PromptError as error:
                judges.append(None)
                reasons[index] = str(error)
        return judges, reasons

    def _pipeline(self, contestant: Contestant) -> VideoPipeline:
        return self.plain_pipeline if contestant.is_plain else self.pipeline

    def _computing(self, contestant: Contestant) -> dict[str, Any]:
        """The settings in which a plain reference may differ from the others."""
        pipeline, options = self._pipeline(contestant), contestant.options
        head_dim = pipeline.transformer.config.head_dim
        return {
            "precision": pipeline.precision,
            **options.changing_results(),
            "steps_skipped": num_steps_skipped(
                pipeline.transformer, pipeline.preset.sampler.timesteps, threshold=options.step_cache
            ),
            "attention": options.backend_on(pipeline.device, dtype=pipeline.dtype, head_dim=head_dim).name,
            "execution": options.execution,
        }

    def _identity(self, index: int, contestant: Contestant) -> dict[str, Any]:
        head_map = head_map_of(contestant.policy)
        return {
            **self.settings,
            **self._computing(contestant),
            "policy": contestant.policy.spec(),
            "head_map": None if head_map is None else hashlib.sha256(json.dumps(head_map.roles).encode()).hexdigest(),
            "prompt": self.prompts[index],
            "seed": self.asked.seed + index,
        }

    def _series(self, contestant: Contestant) -> list[str]:
        """Names of what is measured in its videos."""
        is_reference = contestant is self.contestants[0]
        return [
            series.name for series in series_of(self.chosen.metrics) if not (is_reference and series.against_reference)
        ]

    def _finished(self, contestant: Contestant) -> dict[int, ComparedVideo]:
        store, series = self.stores[contestant.name], self._series(contestant)
        loaded = {
            index: store.load(
                index,
                identity=self._identity(index, contestant),
                series=series,
                is_judged=self.judges[index] is not None,
            )
            for index in range(len(self.prompts))
        }
        return {index: video for index, video in loaded.items() if video is not None}

    def _missing(self, batch: range, found: Mapping[str, Mapping[int, ComparedVideo]]) -> list[Contestant]:
        """Who is to make a batch, the reference among them if another one needs its frames."""
        reference = self.contestants[0]
        missing = [one for one in self.contestants if any(index not in found[one.name] for index in batch)]
        if not missing or missing[0] is reference:
            return missing
        is_there = ReferenceChunks(self._reference_folder(batch)).is_complete
        return missing if is_there else [reference, *missing]

    def _reference_folder(self, batch: range) -> Path:
        return self.folder / _REFERENCE_FOLDER / f"{batch.start:05d}"

    def _make(
        self, batch: range, contestant: Contestant, reference: ReferenceChunks, advance: Callable[[], None]
    ) -> None:
        """Makes, measures and keeps one contestant's videos of a batch."""
        is_reference = contestant is self.contestants[0]
        stream = self._pipeline(contestant).stream(
            [self.prompts[index] for index in batch],
            policy=contestant.policy,
            seed=self.asked.seed + batch.start,
            resolution=self.asked.resolution,
            num_frames=self.asked.num_frames,
            options=contestant.options,
            check_memory=self.check_memory,
        )
        if is_reference:
            reference.start()
        meters: dict[str, Meter] = {name: self.chosen.meters[name] for name in self._series(contestant)}
        measuring = Measuring(meters, [self.judges[index] for index in batch])
        writers = [self._writer(index, contestant) for index in batch]
        milliseconds = {"diffusion": 0.0, "decode": 0.0}
        try:
            for chunk in stream:
                frames, latents = self._pictures(chunk), chunk.latents.cpu()
                if is_reference:
                    reference.keep(chunk.index, frames=frames, latents=latents)
                measuring.add(frames, latents, reference=None if is_reference else reference.load(chunk.index))
                for writer, video in zip(writers, frames, strict=True):
                    writer.write(video)
                milliseconds["diffusion"] += chunk.timings.diffusion_ms
                milliseconds["decode"] += chunk.timings.decode_ms
                advance()
            measured = measuring.finish()
        except BaseException:
            for writer in writers:
                with suppress(OSError):  # what went wrong is worth more than what cannot be tidied up
                    writer.discard()
            raise
        for writer in writers:
            writer.finish()
        if is_reference:
            reference.finish()
        size = len(batch)
        for index, values in zip(batch, measured, strict=True):
            video = ComparedVideo(
                identity=self._identity(index, contestant),
                measured=values,
                cache_bytes=stream.cache.nbytes // size,
                full_cache_bytes=stream.cache.full_nbytes // size,
                milliseconds={name: value / size for name, value in milliseconds.items()},
            )
            self.stores[contestant.name].keep(index, video)

    def _pictures(self, chunk: Chunk) -> Any:
        if chunk.frames is None:
            raise ConfigurationError(f"the model {self.pipeline.preset.name!r} was loaded without a VAE: no video")
        return chunk.frames

    def _writer(self, index: int, contestant: Contestant) -> VideoWriter:
        prompt = self.prompts[index]
        return VideoWriter(
            self.stores[contestant.name].video_path(index),
            fps=self.pipeline.preset.fps,
            title=prompt,
            metadata={
                "prompt": prompt,
                "seed": self.asked.seed + index,
                "model": self.pipeline.preset.name,
                "weights": self.pipeline.weights,
                "policy": contestant.policy.spec(),
                "precision": self._pipeline(contestant).precision,
                **contestant.options.changing_results(),
                "version": package_version(),
            },
            overwrite=True,  # what is unfinished is made again
        )
