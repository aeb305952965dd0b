"""One video of a benchmark, timed part by part."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from forcing_kv.bench.arithmetic import history_tokens
from forcing_kv.bench.plan import SEED, BenchmarkPlan, PolicyPlan
from forcing_kv.geometry import pixel_frames
from forcing_kv.pipeline import VideoPipeline
from forcing_kv.rollout import VideoStream
from forcing_kv.video import VideoWriter


@dataclass(frozen=True, kw_only=True)
class TimedChunk:
    """Where the time of a chunk went.

    Attributes:
        index: Its number in the stream, from 0.
        frames: Pixel frames it makes.
        text_ms: Encoding the prompt; 0 but for the first.
        diffusion_ms: Transformer passes, commit included.
        decode_ms: VAE; 0 without one.
        encode_ms: H.264; 0 without pixels.
        cache_bytes: Held after it.
        history_tokens: Read by each of its passes, summed over all heads of all layers.
    """

    index: int
    frames: int
    text_ms: float
    diffusion_ms: float
    decode_ms: float
    encode_ms: float
    cache_bytes: int
    history_tokens: int

    @property
    def latency_ms(self) -> float:
        """Everything that is done for it."""
        return self.text_ms + self.diffusion_ms + self.decode_ms + self.encode_ms


@dataclass(frozen=True, kw_only=True)
class TimedVideo:
    """Where the time of a video went.

    Attributes:
        chunks: Of the video.
        steady_chunks: Those in the steady state, also after the end of the video.
        first_frame_ms: From the wish for a video to the first chunk's pixels, or latents where there are no pixels.
        total_ms: From that wish to the finished file, or the last latents.
    """

    chunks: tuple[TimedChunk, ...]
    steady_chunks: tuple[TimedChunk, ...]
    first_frame_ms: float
    total_ms: float

    @property
    def frames(self) -> int:
        """Pixel frames of the video."""
        return sum(chunk.frames for chunk in self.chunks)

    @property
    def fps_diffusion(self) -> float:
        """Pixel frames per second of transformer passes."""
        return 1e3 * self.frames / sum(chunk.diffusion_ms for chunk in self.chunks)

    @property
    def fps_end_to_end(self) -> float:
        """Pixel frames per second of everything, the making of the cache and the joining of the file included."""
        return 1e3 * self.frames / self.total_ms


def time_video(
    pipeline: VideoPipeline,
    plan: BenchmarkPlan,
    policy: PolicyPlan,
    path: Path,
    *,
    on_chunk: Callable[[], None] = lambda: None,
) -> TimedVideo:
    """Makes one video and, if it ends before the steady state, chunks up to that, which count for nothing else.

    Args:
        pipeline: The loaded model.
        plan: What all videos of the benchmark have in common.
        policy: Whose turn it is.
        path: Where an MP4 may be made; it is removed again.
        on_chunk: Called after every chunk.
    """
    pipeline.encode_prompt.forget()  # or the first video alone would pay for the prompt that all share
    started = time.perf_counter()
    stream = pipeline.stream(
        plan.prompt,
        policy=policy.name,
        seed=SEED,
        resolution=plan.resolution,
        num_frames=pixel_frames(policy.num_chunks * plan.geometry.chunk_frames),
        kv_dtype=plan.kv_dtype,
        step_cache=plan.step_cache,
        check_memory=False,
    )
    writer = VideoWriter(path, fps=pipeline.preset.fps) if plan.decodes else None
    chunks = []
    for index in range(policy.num_chunks):
        in_video = index < plan.num_chunks
        chunk, made_at = _time_chunk(stream, writer if in_video else None)
        chunks.append(chunk)
        if index == 0:
            first_frame_ms = 1e3 * (made_at - started)
        if index == plan.num_chunks - 1:
            if writer is not None:
                writer.finish()
            total_ms = _milliseconds_since(started)
            path.unlink(missing_ok=True)
        on_chunk()
    return TimedVideo(
        chunks=tuple(chunks[: plan.num_chunks]),
        steady_chunks=tuple(chunk for chunk in chunks if chunk.index in policy.steady),
        first_frame_ms=first_frame_ms,
        total_ms=total_ms,
    )


def _time_chunk(stream: VideoStream, writer: VideoWriter | None) -> tuple[TimedChunk, float]:
    """The next chunk, and the time at which it was there, not yet written."""
    tokens = history_tokens(stream.cache)
    chunk = next(stream)
    made_at = time.perf_counter()
    if writer is not None:
        assert chunk.frames is not None
        writer.write(chunk.frames[0])
    end_frame = chunk.first_frame + stream.cache.geometry.chunk_frames
    timed = TimedChunk(
        index=chunk.index,
        frames=pixel_frames(end_frame) - pixel_frames(chunk.first_frame),
        text_ms=chunk.timings.text_ms,
        diffusion_ms=chunk.timings.diffusion_ms,
        decode_ms=0.0 if chunk.frames is None else chunk.timings.decode_ms,
        encode_ms=0.0 if writer is None else _milliseconds_since(made_at),
        cache_bytes=stream.cache.nbytes,
        history_tokens=tokens,
    )
    return timed, made_at


def _milliseconds_since(started: float) -> float:
    return 1e3 * (time.perf_counter() - started)
