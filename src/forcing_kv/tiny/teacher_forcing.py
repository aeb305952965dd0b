"""Layouts of training samples: which frames stand in one sequence, and which of them each query may read.

A sequence holds clean frames (the history as the commit pass sees it) and then noisy chunks at the same absolute
positions. Each chunk's queries read a list of token ranges, so attention is a handful of dense products and nothing is
masked. All samples of a batch share one layout.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

CHUNK_FRAMES = 3
SEGMENTS_PER_FRAME = 6

TokenRange = tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class Read:
    """Queries of one chunk and everything they read, as half-open token ranges of the sequence."""

    queries: TokenRange
    keys: tuple[TokenRange, ...]


@dataclass(frozen=True, kw_only=True)
class Layout:
    """One training sequence: `clean` frames, then `noisy` frames (absolute indices, whole chunks), and the reads."""

    clean: tuple[int, ...]
    noisy: tuple[int, ...]
    reads: tuple[Read, ...]

    @property
    def frames(self) -> tuple[int, ...]:
        """Absolute index of every frame of the sequence."""
        return (*self.clean, *self.noisy)


class LayoutMemory:
    """Self-attention of a layout; stands where the stream cache stands at inference."""

    def __init__(self, layout: Layout) -> None:
        self.reads = layout.reads

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q, k, v [batch, tokens, heads, head_dim] -> the same shape."""
        q, k, v = (x.transpose(1, 2).contiguous() for x in (q, k, v))
        out: Tensor = _ReadAttention.apply(q, k, v, self.reads)  # type: ignore[no-untyped-call]
        return out.transpose(1, 2)


class _ReadAttention(torch.autograd.Function):
    """Attention read by read; the backward pass adds into one gradient, where autograd would pad every slice."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, reads: tuple[Read, ...]) -> Tensor:
        """All tensors [batch, heads, tokens, head_dim]."""
        out = torch.empty_like(q)
        all_weights = []
        for read in reads:
            weights = torch.softmax(
                (_part(q, read.queries) * q.shape[-1] ** -0.5) @ _gather(k, read.keys).transpose(-1, -2), dim=-1
            )
            _part(out, read.queries).copy_(weights @ _gather(v, read.keys))
            all_weights.append(weights)
        ctx.save_for_backward(q, k, v, *all_weights)
        ctx.reads = reads
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        """The softmax's gradient is weights * (g - sum(weights * g))."""
        q, k, v, *all_weights = ctx.saved_tensors
        grad_q, grad_k, grad_v = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        scale = q.shape[-1] ** -0.5
        for read, weights in zip(ctx.reads, all_weights, strict=True):
            grad = _part(grads[0], read.queries)
            _scatter_add(grad_v, read.keys, weights.transpose(-1, -2) @ grad)
            grad_weights = grad @ _gather(v, read.keys).transpose(-1, -2)
            grad_scores = torch.ops.aten._softmax_backward_data(grad_weights, weights, -1, weights.dtype)
            _part(grad_q, read.queries).copy_((grad_scores @ _gather(k, read.keys)) * scale)
            _scatter_add(grad_k, read.keys, grad_scores.transpose(-1, -2) @ (_part(q, read.queries) * scale))
        return grad_q, grad_k, grad_v, None


def full_history(clean_chunks: int, noisy_chunks: Sequence[int], *, frame_tokens: int) -> Layout:
    """A stream from its start, everything kept: clean chunks from 0 on, and noisy ones that read all before them."""
    chunk_tokens = CHUNK_FRAMES * frame_tokens
    reads = [_read(index, ((0, (index + 1) * chunk_tokens),), chunk_tokens) for index in range(clean_chunks)]
    for place, chunk in enumerate(noisy_chunks):
        own = _tokens_of(clean_chunks + place, chunk_tokens)
        history = ((0, chunk * chunk_tokens),) if chunk else ()
        reads.append(_read(clean_chunks + place, (*history, own), chunk_tokens))
    return Layout(clean=_frames_of(range(clean_chunks)), noisy=_frames_of(noisy_chunks), reads=tuple(reads))


def sink_and_window(
    first_chunk: int,
    num_chunks: int,
    *,
    sink_frames: int,
    recent_frames: int,
    segment_keep: Tensor | None = None,
    frame_tokens: int,
) -> Layout:
    """A stream far from its start: sink frames, a gap, and chunks that read sink, the recent frames, and themselves.

    Args:
        first_chunk: chunk number of the window's first clean chunk.
        num_chunks: clean chunks in the window; all but the first appear noisy too, and one more after them.
        sink_frames: sink frames read, at most a chunk.
        recent_frames: whole frames before a chunk that it reads.
        segment_keep: bool [num_chunks + 1, CHUNK_FRAMES * SEGMENTS_PER_FRAME]: which segments of the frames just before
            the recent ones a chunk reads besides; None for none.
        frame_tokens: tokens per frame.
    """
    chunk_tokens = CHUNK_FRAMES * frame_tokens
    window_start = chunk_tokens  # the sink's chunk comes first
    sink = (0, sink_frames * frame_tokens)
    reads = [_read(0, ((0, chunk_tokens),), chunk_tokens)]
    for is_noisy in (False, True):
        for chunk in range(1 if is_noisy else 0, num_chunks + 1 if is_noisy else num_chunks):
            place = 1 + chunk + (num_chunks - 1 if is_noisy else 0)
            end = window_start + chunk * chunk_tokens
            start = max(window_start, end - recent_frames * frame_tokens)
            keys = [sink, (start, end)] if end > start else [sink]
            if segment_keep is not None:
                keys += _segments(segment_keep[chunk], start, window_start, frame_tokens)
            reads.append(_read(place, (*keys, _tokens_of(place, chunk_tokens)), chunk_tokens))
    window = range(first_chunk, first_chunk + num_chunks)
    return Layout(
        clean=_frames_of([0, *window]),
        noisy=_frames_of(range(first_chunk + 1, first_chunk + num_chunks + 1)),
        reads=tuple(reads),
    )


@dataclass(frozen=True, kw_only=True)
class Mix:
    """Shares of the kinds of layouts; what is left goes to first chunks alone.

    Attributes:
        start: the first chunks of a stream.
        window: far from the start, under a small cache.
        long: a long full history.
    """

    start: float
    window: float
    long: float


MIXES: tuple[tuple[int, Mix], ...] = (
    (0, Mix(start=0.4, window=0.3, long=0.15)),
    (1000, Mix(start=0.3, window=0.22, long=0.12)),
)
"""(from this step on, mix). First chunks take longest to learn, since they have nothing but the prompt."""


def mix_at(step: int) -> Mix:
    """The mix of a training step."""
    return [mix for first_step, mix in MIXES if first_step <= step][-1]


def random_layout(
    generator: torch.Generator, *, max_chunks: int, frame_tokens: int, mix: Mix = MIXES[0][1]
) -> tuple[Layout, int]:
    """A layout for one pass, and how many samples make the pass about as long as those of the other kinds."""

    def integer(low: int, high: int) -> int:  # low..high inclusive
        return int(torch.randint(low, high + 1, (), generator=generator))

    kind = float(torch.rand((), generator=generator))
    if kind < mix.start:
        chunks = min(7, max_chunks)
        return full_history(chunks - 1, range(chunks), frame_tokens=frame_tokens), 8
    if kind < mix.start + mix.window and max_chunks > 6:
        num_chunks = 4
        keep = None
        recent_frames = (1, 1, 4, 9)[integer(0, 3)]
        if integer(0, 1):
            keep = torch.rand(num_chunks + 1, CHUNK_FRAMES * SEGMENTS_PER_FRAME, generator=generator) < 1 / 3
        layout = sink_and_window(
            integer(1, max_chunks - num_chunks - 1),
            num_chunks,
            sink_frames=(1, 1, 3)[integer(0, 2)],
            recent_frames=recent_frames,
            segment_keep=keep,
            frame_tokens=frame_tokens,
        )
        return layout, 10
    if kind < mix.start + mix.window + mix.long and max_chunks > 8:
        clean = integer(8, max_chunks - 1)
        noisy = sorted({clean, *(integer(5, clean) for _ in range(5))})
        return full_history(clean, noisy, frame_tokens=frame_tokens), 4
    return full_history(0, [0], frame_tokens=frame_tokens), 48


def _segments(keep: Tensor, end: int, floor: int, frame_tokens: int) -> list[TokenRange]:
    """Kept segments of the CHUNK_FRAMES frames that end at token `end`, not before token `floor`."""
    segment_tokens = frame_tokens // SEGMENTS_PER_FRAME
    begin = end - CHUNK_FRAMES * frame_tokens
    starts = [begin + int(segment) * segment_tokens for segment in keep.nonzero().flatten()]
    return [(start, start + segment_tokens) for start in starts if start >= floor]


def _frames_of(chunks: Sequence[int]) -> tuple[int, ...]:
    return tuple(chunk * CHUNK_FRAMES + frame for chunk in chunks for frame in range(CHUNK_FRAMES))


def _tokens_of(place: int, chunk_tokens: int) -> TokenRange:
    return place * chunk_tokens, (place + 1) * chunk_tokens


def _read(place: int, keys: tuple[TokenRange, ...], chunk_tokens: int) -> Read:
    return Read(queries=_tokens_of(place, chunk_tokens), keys=keys)


def _gather(x: Tensor, ranges: tuple[TokenRange, ...]) -> Tensor:
    """The tokens of some ranges: [batch, heads, tokens, head_dim] -> fewer tokens."""
    parts = [_part(x, token_range) for token_range in ranges]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)


def _scatter_add(x: Tensor, ranges: tuple[TokenRange, ...], values: Tensor) -> None:
    """The gradient of `_gather`: add values back to where they came from."""
    offset = 0
    for start, end in ranges:
        x[:, :, start:end] += values[:, :, offset : offset + end - start]
        offset += end - start


def _part(x: Tensor, token_range: TokenRange) -> Tensor:
    return x[:, :, token_range[0] : token_range[1]]
