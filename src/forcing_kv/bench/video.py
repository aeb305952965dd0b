"""One video of a benchmark, timed part by part."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from forcing_kv.bench.arithmetic import history_tokens
from forcing_kv.bench.plan import SEED, BenchmarkPlan, PolicyPlan
from forcing_kv.clock import milliseconds_since
from forcing_kv.geometry import pixel_frames
from forcing_kv.pipeline import VideoPipeline
from forcing_kv.rollout import VideoStream
from forcing_kv.video import ChunkOutput, Decoded, VideoWriter


@dataclass(frozen=True, kw_only=True)
class TimedChunk:
    """Where the time of a chunk went.

    Attributes:
        index: Its number in the stream, from 0.
        frames: Pixel frames it makes.
        text_ms: Encoding the prompt; 0 but for the first.
        compile_ms: Compiling, and capturing graphs.
        diffusion_ms: Transformer passes, commit included.
        decode_ms: VAE; 0 without one.
        encode_ms: H.264; 0 without pixels.
        queued_ms: Waiting for its turn between these, where they are overlapped with those of other chunks.
        cache_bytes: Held after it.
        history_tokens: Read by each of its passes, summed over all heads of all layers.
    """

    index: int
    frames: int
    text_ms: float
    compile_ms: float = 0.0
    diffusion_ms: float
    decode_ms: float
    encode_ms: float
    cache_bytes: int
    history_tokens: int
    queued_ms: float = 0.0

    @property
    def latency_ms(self) -> float:
        """From its begin until it is written."""
        return self.text_ms + self.compile_ms + self.diffusion_ms + self.decode_ms + self.encode_ms + self.queued_ms


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
    def compile_ms(self) -> float:
        """Compiling and capturing, after the end of the video too."""
        last = self.chunks[-1].index
        later = (chunk.compile_ms for chunk in self.steady_chunks if chunk.index > last)
        return sum(chunk.compile_ms for chunk in self.chunks) + sum(later)

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
        options=plan.options,
        decode_apart=True,
        check_memory=False,
    )
    chunks: list[TimedChunk] = []
    if plan.decodes:
        writer = VideoWriter(path, fps=pipeline.preset.fps)
        with _output(pipeline, writer) as output:
            for _ in range(plan.num_chunks):
                begun = time.perf_counter()
                latents, timed = _make_chunk(stream)
                chunks.append(timed)
                output.put(latents, begun)
                on_chunk()
        writer.finish()
        total_ms = milliseconds_since(started)
        path.unlink(missing_ok=True)
        delivered = list(output.delivered())
        chunks = [_delivered(*pair) for pair in zip(chunks, delivered, strict=True)]
        first_frame_ms = 1e3 * (delivered[0].decoded_at - started)
    else:
        for index in range(plan.num_chunks):
            chunks.append(_make_chunk(stream)[1])
            if index == 0:
                first_frame_ms = milliseconds_since(started)
            on_chunk()
        total_ms = milliseconds_since(started)
    for _ in range(plan.num_chunks, policy.num_chunks):  # on to the steady state
        chunks.append(_make_chunk(stream)[1])
        on_chunk()
    return TimedVideo(
        chunks=tuple(chunks[: plan.num_chunks]),
        steady_chunks=tuple(chunk for chunk in chunks if chunk.index in policy.steady),
        first_frame_ms=first_frame_ms,
        total_ms=total_ms,
    )


def _output(pipeline: VideoPipeline, writer: VideoWriter) -> ChunkOutput[float]:
    """Takes latents with the time at which their making was begun."""

    def write(decoded: Decoded[float]) -> None:
        assert decoded.frames is not None
        writer.write(decoded.frames[0])

    assert pipeline.decoder is not None
    return ChunkOutput(pipeline.decoder.new_stream(), write, device=pipeline.device, overlapped=pipeline.is_overlapped)


def _make_chunk(stream: VideoStream) -> tuple[Tensor, TimedChunk]:
    """The latents of the next chunk, and what it took so far."""
    tokens = history_tokens(stream.cache)
    chunk = next(stream)
    end_frame = chunk.first_frame + stream.cache.geometry.chunk_frames
    return chunk.latents, TimedChunk(
        index=chunk.index,
        frames=pixel_frames(end_frame) - pixel_frames(chunk.first_frame),
        text_ms=chunk.timings.text_ms,
        compile_ms=chunk.timings.compile_ms,
        diffusion_ms=chunk.timings.diffusion_ms,
        decode_ms=0.0,
        encode_ms=0.0,
        cache_bytes=stream.cache.nbytes,
        history_tokens=tokens,
    )


def _delivered(chunk: TimedChunk, decoded: Decoded[float]) -> TimedChunk:
    worked_ms = chunk.text_ms + chunk.compile_ms + chunk.diffusion_ms + decoded.decode_ms + decoded.write_ms
    return replace(
        chunk,
        decode_ms=decoded.decode_ms,
        encode_ms=decoded.write_ms,
        queued_ms=max(0.0, 1e3 * (decoded.written_at - decoded.item) - worked_ms),
    )
