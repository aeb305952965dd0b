"""One video, from a pipeline into a file, so that a crash costs seconds and not the run.

After each chunk its frames become a segment of the video, then a snapshot of the stream is saved beside it, unless
snapshots have taken a tenth of the time already. A run that is killed is gone on with from the newest snapshot and
gives the same file as one that was not; a run that is interrupted by the user gives a shorter file, at once.
"""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from forcing_kv.errors import ConfigurationError, OutputError
from forcing_kv.generation.report import GenerationReport
from forcing_kv.generation.request import VideoRequest, check_requests
from forcing_kv.generation.source import Source, open_source
from forcing_kv.geometry import pixel_frames
from forcing_kv.output_files import atomic_write
from forcing_kv.pipeline import VideoPipeline
from forcing_kv.rollout import Chunk
from forcing_kv.snapshot import StreamSnapshot
from forcing_kv.versions import package_version
from forcing_kv.video import VideoWriter, probe
from forcing_kv.video.writer import partial_folder

MAX_SNAPSHOT_SHARE = 0.1
"""Part of a run's time that snapshots may take. Where one is large (gigabytes, for a large model), not every chunk gets
one, and a run that is killed loses the chunks since the newest."""


@dataclass(frozen=True, kw_only=True)
class ChunkProgress:
    """Where a run stands.

    Attributes:
        chunks_done: Chunks in the file so far.
        num_chunks: Chunks of the whole video.
        fps: Pixel frames per second of the newest chunk, diffusion, decode and encode; 0 before this run's first.
    """

    chunks_done: int
    num_chunks: int
    fps: float


def generate_video(
    pipeline: VideoPipeline,
    request: VideoRequest,
    *,
    resume: bool = False,
    overwrite: bool = False,
    check_memory: bool = True,
    on_progress: Callable[[ChunkProgress], None] = lambda _: None,
) -> GenerationReport:
    """Make one video file.

    Ctrl-C (`KeyboardInterrupt`) ends the video with the chunks that are finished: the report says `interrupted`. Where
    none is finished, nothing is left and the interrupt goes on to the caller. After any other failure the partial
    folder stays, to be resumed.

    Args:
        pipeline: The loaded model.
        request: What to make.
        resume: Go on with an unfinished video of the same request; start where there is none.
        overwrite: Replace a finished file, or drop an unfinished one.
        check_memory: Refuse a video that the device cannot hold.
        on_progress: Called at the start and after each chunk.

    Raises:
        OutputError: The file cannot be written as asked.
        ForcingKVError: A setting or a source that cannot work; nothing has been written then.
    """
    check_requests([request], resume=resume, overwrite=overwrite)
    run = _Run(pipeline, request, check_memory=check_memory)
    if resume and partial_folder(request.path).exists():
        run.resume()
    else:
        run.start(overwrite=overwrite)
    interrupted = False
    try:
        run.make_chunks(on_progress)
    except KeyboardInterrupt:
        if not run.writer.num_segments:
            run.writer.discard()
            raise
        interrupted = True
    except BaseException:
        if not run.writer.num_segments:
            run.writer.discard()
        raise
    return run.finish(interrupted=interrupted)


def check_made_alike(pipeline: VideoPipeline, request: VideoRequest) -> None:
    """Refuse to pass a finished video off as this request if it was made otherwise.

    Raises:
        OutputError: The file's model, weights, beginning, length or a setting is not the request's.
    """
    source = _source(pipeline, request)
    num_chunks = pipeline.num_chunks(request.num_frames, given_frames=source.given_frames if source else 0)
    info = probe(request.path)
    made = {**json.loads(info.metadata["comment"]), "frames": info.num_frames}
    asked = {
        "model": pipeline.preset.name,
        "weights": pipeline.weights,
        "policy": pipeline.policy(request.policy).spec(),
        "positions": request.positions,
        "kv_dtype": request.kv_dtype,
        "step_cache": request.step_cache,
        "continue_from": source.name if source else None,
        "frames": pixel_frames(num_chunks * pipeline.preset.chunk_frames),
    }
    for name, value in asked.items():
        if made.get(name) != value:
            raise OutputError(
                f"{request.path} is finished, with {name} {made.get(name)!r}, not {value!r}: choose another name, or "
                "replace it with --overwrite"
            )
    if request.latents_path is not None and not request.latents_path.exists():
        raise OutputError(
            f"{request.path} is finished, and its latents were not kept in {request.latents_path}: make it again with "
            "--overwrite, or leave out --save-latents"
        )


class _Run:
    """The state of one call of `generate_video`."""

    writer: VideoWriter

    def __init__(self, pipeline: VideoPipeline, request: VideoRequest, *, check_memory: bool) -> None:
        self.pipeline = pipeline
        self.request = request
        self.text_ms = self.diffusion_ms = self.decode_ms = self.encode_ms = self.snapshot_ms = self.given_ms = 0.0
        self.frames_made = 0
        self.started = time.perf_counter()
        self.source = _source(pipeline, request)
        given = None
        if self.source is not None:
            started = time.perf_counter()
            given = self.source.read(pipeline)
            self.given_ms = _milliseconds_since(started)
        self.stream = pipeline.stream(
            request.prompts,
            policy=request.policy,
            seed=request.seed,
            resolution=request.resolution,
            num_frames=request.num_frames,
            positions=request.positions,
            kv_dtype=request.kv_dtype,
            step_cache=request.step_cache,
            continue_from=given,
            check_memory=check_memory,
        )
        self.metadata: dict[str, Any] = {
            "prompt": request.prompt_json(),
            "seed": request.seed,
            "model": pipeline.preset.name,
            "weights": pipeline.weights,
            "policy": self.stream.cache.policy.spec(),
            "positions": self.stream.cache.positions,
            "kv_dtype": request.kv_dtype,
            "step_cache": request.step_cache,
            "version": package_version(),
        }
        if self.source is not None:
            self.metadata["continue_from"] = self.source.name

    def start(self, *, overwrite: bool) -> None:
        """Begin a new file."""
        self.writer = VideoWriter(
            self.request.path,
            fps=self.pipeline.preset.fps,
            title=self.request.title,
            metadata=self.metadata,
            overwrite=overwrite,
        )

    def resume(self) -> None:
        """Go on with an unfinished file, from its snapshot; from the beginning if it was killed before the first."""
        self.writer = VideoWriter.resume(
            self.request.path, fps=self.pipeline.preset.fps, title=self.request.title, metadata=self.metadata
        )
        if self.writer.snapshot_path.exists():
            self.stream.restore(StreamSnapshot.load(self.writer.snapshot_path))
        self.writer.keep_segments(min(self.stream.chunk_index, self.num_chunks))
        if self.request.latents_path is not None:
            self._check_latents_parts()
        elif self._latents_part(0).exists():
            raise OutputError(
                f"{self.request.path} was begun with --save-latents, and its latents would be lost: resume with "
                "--save-latents, or start over with --overwrite"
            )

    @property
    def num_chunks(self) -> int:
        """Chunks of the whole video."""
        return self.pipeline.num_chunks(self.request.num_frames, given_frames=self.stream.given_frames)

    def make_chunks(self, on_progress: Callable[[ChunkProgress], None]) -> None:
        """Make what is missing, each chunk on disk before the next is begun."""
        on_progress(ChunkProgress(chunks_done=self.writer.num_segments, num_chunks=self.num_chunks, fps=0.0))
        for chunk in self.stream:
            num_frames, chunk_ms = self._store(chunk)
            on_progress(
                ChunkProgress(
                    chunks_done=self.writer.num_segments, num_chunks=self.num_chunks, fps=1e3 * num_frames / chunk_ms
                )
            )

    def finish(self, *, interrupted: bool) -> GenerationReport:
        """Put the files in place and say what they are."""
        if self.request.latents_path is not None:
            self._save_latents()
        info = self.writer.info
        started = time.perf_counter()
        self.writer.finish()
        self.encode_ms += _milliseconds_since(started)
        cache, chunk_frames = self.stream.cache, self.pipeline.preset.chunk_frames
        num_given_chunks = self.stream.given_frames // chunk_frames
        return GenerationReport(
            path=self.request.path,
            prompt=self.request.prompt_json(),
            frames=self.writer.num_frames,
            frames_given=pixel_frames(min(self.writer.num_segments, num_given_chunks) * chunk_frames),
            frames_requested=self.request.num_frames,
            frames_made=self.frames_made,
            width=info.width,
            height=info.height,
            fps_video=info.fps,
            given_ms=self.given_ms,
            text_ms=self.text_ms,
            diffusion_ms=self.diffusion_ms,
            decode_ms=self.decode_ms,
            encode_ms=self.encode_ms,
            snapshot_ms=self.snapshot_ms,
            cache_bytes=cache.nbytes,
            full_cache_bytes=cache.full_nbytes,
            policy=cache.policy.spec(),
            positions=cache.positions,
            kv_dtype=cache.kv_dtype,
            step_cache=self.request.step_cache,
            steps_skipped=self.stream.steps_skipped,
            model=self.pipeline.preset.name,
            weights=self.pipeline.weights,
            device=_device_name(self.pipeline.device),
            dtype=str(self.pipeline.dtype).removeprefix("torch."),
            seed=self.request.seed,
            continue_from=self.metadata.get("continue_from"),
            first_frames_left_out=self.source.first_frames_left_out if self.source else 0,
            last_frames_left_out=self.source.last_frames_left_out if self.source else 0,
            interrupted=interrupted,
        )

    def _store(self, chunk: Chunk) -> tuple[int, float]:
        """Segment first, snapshot second: a snapshot never covers a chunk that is not on disk."""
        if chunk.frames is None:
            raise ConfigurationError(f"the model {self.pipeline.preset.name!r} was loaded without a VAE: no video")
        if self.request.latents_path is not None:
            with atomic_write(self._latents_part(chunk.index)) as temporary:
                save_file({"latents": chunk.latents[0].cpu().contiguous()}, temporary)
        started = time.perf_counter()
        self.writer.write(chunk.frames[0])
        encode_ms = _milliseconds_since(started)
        num_frames = int(chunk.frames.shape[1])
        chunk_ms = chunk.timings.diffusion_ms + chunk.timings.decode_ms + encode_ms
        self.text_ms += chunk.timings.text_ms
        if chunk.given:
            self.given_ms += chunk_ms
        else:
            self.diffusion_ms += chunk.timings.diffusion_ms
            self.decode_ms += chunk.timings.decode_ms
            self.encode_ms += encode_ms
            self.frames_made += num_frames
        is_last = self.writer.num_segments == self.num_chunks  # then only the joining is left
        if not is_last and self.snapshot_ms <= MAX_SNAPSHOT_SHARE * _milliseconds_since(self.started):
            started = time.perf_counter()
            with atomic_write(self.writer.snapshot_path) as temporary:
                self.stream.snapshot().save(temporary)
            self.snapshot_ms += _milliseconds_since(started)
        return num_frames, chunk_ms

    def _save_latents(self) -> None:
        """All latents [F, C, h, w], float32, standardised, as one tensor `latents`."""
        assert self.request.latents_path is not None
        parts: list[Tensor] = []
        for index in range(self.writer.num_segments):
            parts.append(load_file(self._latents_part(index))["latents"])
        metadata = {"comment": json.dumps(self.metadata)}  # as in the MP4
        with atomic_write(self.request.latents_path) as temporary:
            save_file({"latents": torch.cat(parts)}, temporary, metadata=metadata)

    def _check_latents_parts(self) -> None:
        if not all(self._latents_part(index).exists() for index in range(self.writer.num_segments)):
            raise OutputError(
                f"{self.request.latents_path} cannot be written: the run that is resumed kept no latents; resume "
                "without --save-latents, or start over with --overwrite"
            )

    def _latents_part(self, index: int) -> Path:
        return self.writer.partial_folder / f"latents-{index:05d}.safetensors"


def _source(pipeline: VideoPipeline, request: VideoRequest) -> Source | None:
    if request.continue_from is None:
        return None
    return open_source(
        request.continue_from,
        preset=pipeline.preset,
        num_channels=pipeline.transformer.config.in_dim,
        resolution=request.resolution,
    )


def _device_name(device: torch.device) -> str:
    return f"{device} ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else str(device)


def _milliseconds_since(started: float) -> float:
    return 1e3 * (time.perf_counter() - started)
