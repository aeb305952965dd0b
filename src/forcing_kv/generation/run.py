"""One video, from a pipeline into a file, so that a crash costs seconds and not the run.

After each chunk its frames become a segment of the video, then a snapshot of the stream is saved beside it, unless
snapshots have taken a tenth of the time already. A run that is killed is gone on with from the newest snapshot and
gives the same file as one that was not; a run that is interrupted by the user gives a shorter file, at once. Decoding,
writing and saving may run beside the diffusion of the next chunk (`video.overlap`), with the same file as a result.
"""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from forcing_kv.clock import milliseconds_since
from forcing_kv.errors import ConfigurationError, OutputError
from forcing_kv.generation.kept_latents import KeptLatents
from forcing_kv.generation.report import GenerationReport
from forcing_kv.generation.request import VideoRequest, check_requests
from forcing_kv.generation.source import Source, open_source
from forcing_kv.geometry import pixel_frames
from forcing_kv.output_files import atomic_write
from forcing_kv.pipeline import VideoPipeline
from forcing_kv.rollout import Chunk
from forcing_kv.snapshot import StreamSnapshot
from forcing_kv.versions import package_version
from forcing_kv.video import ChunkOutput, Decoded, VideoWriter, probe
from forcing_kv.video.decoders import VAE_NAME, LoadedDecoder
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
        fps: Pixel frames of the newest chunk per second since the one before it was done; 0 before this run's first.
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
        **request.options.changing_results(),
        "decoder": _own_decoder(pipeline),
        "precision": pipeline.precision,
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


@dataclass(kw_only=True)
class _Made:
    """A chunk on its way to disk.

    Attributes:
        chunk: Without frames.
        latents: To be kept, on the CPU, [F, C, h, w]; None if they are not.
        snapshot: Of the stream after the chunk, to be saved once that is on disk; None for none.
        encode_ms: What H.264 took.
    """

    chunk: Chunk
    latents: Tensor | None
    snapshot: StreamSnapshot | None
    encode_ms: float = 0.0


class _Run:
    """The state of one call of `generate_video`."""

    writer: VideoWriter

    def __init__(self, pipeline: VideoPipeline, request: VideoRequest, *, check_memory: bool) -> None:
        self.pipeline = pipeline
        self.request = request
        self.decoder = _loaded_decoder(pipeline).new_stream()
        self.text_ms = self.diffusion_ms = self.decode_ms = self.encode_ms = self.waited_ms = 0.0
        self.snapshot_ms = self.given_ms = 0.0
        self.is_snapshot_on_its_way = False
        self.compile_ms = 0.0
        self.frames_made = 0
        self.started = time.perf_counter()
        self.latents = KeptLatents(request.path, request.latents_path)
        self.source = _source(pipeline, request)
        given = None
        if self.source is not None:
            started = time.perf_counter()
            given = self.source.read(pipeline)
            self.given_ms = milliseconds_since(started)
        self.stream = pipeline.stream(
            request.prompts,
            policy=request.policy,
            seed=request.seed,
            resolution=request.resolution,
            num_frames=request.num_frames,
            options=request.options,
            continue_from=given,
            decode_apart=True,
            check_memory=check_memory,
        )
        self.metadata: dict[str, Any] = {
            "prompt": request.prompt_json(),
            "seed": request.seed,
            "model": pipeline.preset.name,
            "weights": pipeline.weights,
            "policy": self.stream.cache.policy.spec(),
            **request.options.changing_results(),
            "decoder": _own_decoder(pipeline),
            "precision": pipeline.precision,
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
            snapshot = StreamSnapshot.load(self.writer.snapshot_path)
            self.stream.restore(snapshot)
            self.decoder.load_state(snapshot.part("decoder"), snapshot.progress["decoder"])
        self.writer.keep_segments(min(self.stream.chunk_index, self.num_chunks))
        self.latents.check_resumed(self.writer.num_segments)

    @property
    def num_chunks(self) -> int:
        """Chunks of the whole video."""
        return self.pipeline.num_chunks(self.request.num_frames, given_frames=self.stream.given_frames)

    def make_chunks(self, on_progress: Callable[[ChunkProgress], None]) -> None:
        """Make what is missing. However this ends, chunks that were made are on disk then, in their order."""
        on_progress(ChunkProgress(chunks_done=self.writer.num_segments, num_chunks=self.num_chunks, fps=0.0))
        output = ChunkOutput(
            self.decoder, self._store, device=self.pipeline.device, overlapped=self.pipeline.is_overlapped
        )
        newest_at = time.perf_counter()

        def tell() -> None:
            nonlocal newest_at
            for made in output.delivered():
                self._count(made)
                fps = made.num_frames / (made.written_at - newest_at)
                newest_at = made.written_at
                done = made.item.chunk.index + 1
                on_progress(ChunkProgress(chunks_done=done, num_chunks=self.num_chunks, fps=fps))

        try:
            with output:
                for chunk in self.stream:
                    self._put(chunk, output)
                    tell()
            tell()
        finally:
            self.waited_ms += output.waited_ms
            for made in output.delivered():
                self._count(made)

    def finish(self, *, interrupted: bool) -> GenerationReport:
        """Put the files in place and say what they are."""
        self.latents.join(self.writer.num_segments, metadata=self.metadata)
        info = self.writer.info
        started = time.perf_counter()
        self.writer.finish()
        joining_ms = milliseconds_since(started)
        self.encode_ms += joining_ms
        self.waited_ms += joining_ms
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
            waited_ms=self.waited_ms,
            snapshot_ms=self.snapshot_ms,
            cache_bytes=cache.nbytes,
            full_cache_bytes=cache.full_nbytes,
            policy=cache.policy.spec(),
            **self.request.options.changing_results(),
            steps_skipped=self.stream.steps_skipped,
            attention=cache.attention.name,
            model=self.pipeline.preset.name,
            weights=self.pipeline.weights,
            device=_device_name(self.pipeline.device),
            **_loaded_decoder(self.pipeline).settings(),
            overlapped=self.pipeline.is_overlapped,
            dtype=str(self.pipeline.dtype).removeprefix("torch."),
            seed=self.request.seed,
            continue_from=self.metadata.get("continue_from"),
            first_frames_left_out=self.source.first_frames_left_out if self.source else 0,
            last_frames_left_out=self.source.last_frames_left_out if self.source else 0,
            precision=self.pipeline.precision,
            execution=self.request.options.execution,
            compile_ms=self.compile_ms,
            interrupted=interrupted,
        )

    def _put(self, chunk: Chunk, output: "ChunkOutput[_Made]") -> None:
        """Has a chunk decoded, written and, perhaps, followed by a snapshot."""
        waited_ms, started = output.waited_ms, time.perf_counter()
        wants_snapshot = (
            chunk.index + 1 < self.num_chunks  # after the last only the joining is left
            and not self.is_snapshot_on_its_way
            and self.snapshot_ms <= MAX_SNAPSHOT_SHARE * milliseconds_since(self.started)
        )
        snapshot = None
        if wants_snapshot and self.pipeline.is_overlapped:  # the stream goes on before the chunk is on disk
            snapshot = self.stream.snapshot()
            self.is_snapshot_on_its_way = True
            self.snapshot_ms += milliseconds_since(started)
        made = _Made(chunk=chunk, latents=self.latents.of_chunk(chunk.latents), snapshot=snapshot)
        output.put(chunk.latents, made, wants_state=snapshot is not None)
        self.text_ms += chunk.timings.text_ms
        self.compile_ms += chunk.timings.compile_ms
        if chunk.given:
            if chunk.first_frame + chunk.latents.shape[1] >= self.stream.given_frames:
                output.wait()  # what follows is timed
            self.given_ms += chunk.timings.diffusion_ms + output.waited_ms - waited_ms
            self.waited_ms -= output.waited_ms - waited_ms  # in no speed
        else:
            self.diffusion_ms += chunk.timings.diffusion_ms
        if wants_snapshot and snapshot is None:
            tensors, progress = self.decoder.state()
            self._save_snapshot(self.stream.snapshot().with_part("decoder", tensors, progress))

    def _store(self, decoded: "Decoded[_Made]") -> None:
        """Segment first, snapshot second: a snapshot never covers a chunk that is not on disk."""
        made = decoded.item
        assert decoded.frames is not None
        if made.latents is not None:
            self.latents.save_part(made.chunk.index, made.latents)
        started = time.perf_counter()
        self.writer.write(decoded.frames[0])
        made.encode_ms = milliseconds_since(started)
        if made.snapshot is not None:
            assert decoded.state is not None
            self._save_snapshot(made.snapshot.with_part("decoder", *decoded.state))
            made.snapshot = None
            self.is_snapshot_on_its_way = False

    def _save_snapshot(self, snapshot: StreamSnapshot) -> None:
        started = time.perf_counter()
        with atomic_write(self.writer.snapshot_path) as temporary:
            snapshot.save(temporary)
        self.snapshot_ms += milliseconds_since(started)

    def _count(self, made: "Decoded[_Made]") -> None:
        if not made.item.chunk.given:
            self.decode_ms += made.decode_ms
            self.encode_ms += made.item.encode_ms
            self.frames_made += made.num_frames


def _source(pipeline: VideoPipeline, request: VideoRequest) -> Source | None:
    if request.continue_from is None:
        return None
    return open_source(
        request.continue_from,
        preset=pipeline.preset,
        num_channels=pipeline.transformer.config.in_dim,
        resolution=request.resolution,
        has_encoder=pipeline.vae is not None,
    )


def _loaded_decoder(pipeline: VideoPipeline) -> LoadedDecoder:
    if pipeline.decoder is None:
        raise ConfigurationError(f"the model {pipeline.preset.name!r} was loaded without a VAE: no video")
    return pipeline.decoder


def _own_decoder(pipeline: VideoPipeline) -> str | None:
    """The decoder, where it is not the model's own."""
    name = _loaded_decoder(pipeline).name
    return None if name == VAE_NAME else name


def _device_name(device: torch.device) -> str:
    return f"{device} ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else str(device)
