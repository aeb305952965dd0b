"""Layouts of training samples: which frames stand in one sequence, and which of them each query may read.

A sequence holds clean frames (the history as the commit pass sees it) and then noisy chunks at the same absolute
positions. Each chunk's queries read a list of token ranges, so attention is a handful of dense products and nothing is
masked. All samples of a batch share one layout.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from forcing_kv.tiny.training.latents import (
    CHUNK_FRAMES,
    FAR_CHUNKS,
    LONG_CHUNKS,
    MEMORY_CHUNKS,
    START_CHUNKS,
    SWITCHED_CHUNKS,
    ClipGroup,
)

SEGMENTS_PER_FRAME = 6

TokenRange = tuple[int, int]
Choice = TypeVar("Choice")


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

    # Not compiled: its reads differ from batch to batch; what is around it is compiled once.
    @torch.compiler.disable  # type: ignore[untyped-decorator]
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
        q = q * q.shape[-1] ** -0.5
        out = torch.empty_like(q)
        all_weights = []
        for read in reads:
            scores = _part(q, read.queries) @ _gather(k, read.keys).transpose(-1, -2)
            weights = torch.softmax(scores, dim=-1)
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
            _scatter_add(grad_k, read.keys, grad_scores.transpose(-1, -2) @ _part(q, read.queries))
        return grad_q, grad_k, grad_v, None


def full_history(clean_chunks: int, noisy_chunks: Sequence[int], *, first_chunk: int = 0, frame_tokens: int) -> Layout:
    """A stream of which everything is kept: clean chunks, and noisy ones that read all before them.

    Args:
        clean_chunks: how many.
        noisy_chunks: their numbers in the stream; as often as wanted.
        first_chunk: number of the first clean chunk; what was before it is forgotten, as it is after a re-cache.
        frame_tokens: tokens per frame.
    """
    chunk_tokens = CHUNK_FRAMES * frame_tokens
    reads = [_read(index, ((0, (index + 1) * chunk_tokens),), chunk_tokens) for index in range(clean_chunks)]
    for place, chunk in enumerate(noisy_chunks):
        own = _tokens_of(clean_chunks + place, chunk_tokens)
        history = ((0, (chunk - first_chunk) * chunk_tokens),) if chunk > first_chunk else ()
        reads.append(_read(clean_chunks + place, (*history, own), chunk_tokens))
    clean = range(first_chunk, first_chunk + clean_chunks)
    return Layout(clean=_frames_of(clean), noisy=_frames_of(noisy_chunks), reads=tuple(reads))


def sink_and_window(
    first_chunk: int,
    num_chunks: int,
    *,
    sink_frames: int,
    recent_frames: int,
    segment_keep: Tensor | None = None,
    frame_tokens: int,
    levels_per_chunk: int = 1,
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
        levels_per_chunk: how often each noisy chunk appears.
    """
    chunk_tokens = CHUNK_FRAMES * frame_tokens
    window_start = chunk_tokens  # the sink's chunk comes first
    sink = (0, sink_frames * frame_tokens)
    reads = [_read(0, ((0, chunk_tokens),), chunk_tokens)]
    noisy = [*range(1, num_chunks + 1)] * levels_per_chunk
    for place, chunk in enumerate([*range(num_chunks), *noisy], start=1):
        end = window_start + chunk * chunk_tokens
        start = max(window_start, end - recent_frames * frame_tokens)
        keys = [sink, (start, end)] if end > start else [sink]
        if segment_keep is not None:
            keys += _segments(segment_keep[chunk], start, window_start, frame_tokens)
        reads.append(_read(place, (*keys, _tokens_of(place, chunk_tokens)), chunk_tokens))
    window = range(first_chunk, first_chunk + num_chunks)
    return Layout(
        clean=_frames_of([0, *window]),
        noisy=_frames_of([first_chunk + chunk for chunk in noisy]),
        reads=tuple(reads),
    )


def long_history(num_chunks: int, noisy_chunks: Sequence[int], *, recent_chunks: int, frame_tokens: int) -> Layout:
    """A long stream from its start. Noisy chunks read all before them, clean ones the first chunk and some recent ones.

    Had the clean ones read everything, the longest streams could not be afforded.
    """
    chunk_tokens = CHUNK_FRAMES * frame_tokens
    reads = []
    for chunk in range(num_chunks):
        start = max(0, chunk - recent_chunks)
        near = (start * chunk_tokens, (chunk + 1) * chunk_tokens)
        reads.append(_read(chunk, (near,) if start == 0 else ((0, chunk_tokens), near), chunk_tokens))
    for place, chunk in enumerate(noisy_chunks, start=num_chunks):
        reads.append(_read(place, ((0, chunk * chunk_tokens), _tokens_of(place, chunk_tokens)), chunk_tokens))
    return Layout(clean=_frames_of(range(num_chunks)), noisy=_frames_of(noisy_chunks), reads=tuple(reads))


MIX = {
    "first": 0.04,
    "pair": 0.05,
    "start": 0.03,
    "switch": 0.19,
    "memory": 0.36,
    "wrap": 0.06,
    "far": 0.02,
    "long": 0.25,
}
"""Shares of the steps that each kind of clips gets."""

_LEVELS_PER_CHUNK = 2
"""How often each chunk appears noisy: the history is computed once for all of them."""

_NOISY_CHUNKS = 8
"""Of a clip of ten seconds or more: not all, as its history costs much already."""

_NOT_RETURNING_WEIGHT = 0.15

_LONG_HISTORIES = ((24, 2), (48, 1), (LONG_CHUNKS - 1, 1), (LONG_CHUNKS - 1, 1))
"""Chunks and clips of the passes of long streams: half as long as can be, for there most goes wrong."""

RECACHED_CHUNKS = 1
"""What a stream keeps of the past when its prompt changes: with more of it, more of it goes on."""

_CHUNKS_AFTER_SWITCH = 7
"""Of a clip that switches: what is later is like any other stream, and its history costs more."""


def random_sample(
    group: ClipGroup, generator: torch.Generator, *, frame_tokens: int, batch_scale: float = 1.0
) -> tuple[Layout, Tensor]:
    """Some clips of a group, int64 [samples], and a layout for them; passes of all kinds take about as long."""
    draws = _Draws(group=group, generator=generator, batch_scale=batch_scale)
    return _SAMPLES[group.kind](draws, frame_tokens)


@dataclass(frozen=True, kw_only=True)
class _Draws:
    """What is drawn at random for a sample of a group."""

    group: ClipGroup
    generator: torch.Generator
    batch_scale: float

    def one_of(self, choices: Sequence[Choice]) -> Choice:
        return choices[int(torch.randint(len(choices), (), generator=self.generator))]

    def clips(self, num: int) -> Tensor:
        """Clips of the group, int64 [num], or as many as the batch's scale leaves."""
        num = max(1, round(num * self.batch_scale))
        return torch.randint(len(self.group.scenes), (num,), generator=self.generator)

    def returning_chunks(self, clips: Tensor, start: int, stop: int) -> list[int]:
        """Some of the chunks from `start` to before `stop`, mostly those in which something comes into sight."""
        due = ~self.group.overdue[clips]
        weights = _NOT_RETURNING_WEIGHT * due.float().mean(0) + (due & self.group.returning[clips]).sum(0)
        drawn = torch.multinomial(weights[start:stop].clamp(min=1e-6), _NOISY_CHUNKS, generator=self.generator)
        return [start + chunk for chunk in sorted(drawn.tolist())]


def _first_chunks(draws: _Draws, frame_tokens: int) -> tuple[Layout, Tensor]:
    return full_history(0, [0], frame_tokens=frame_tokens), draws.clips(64)


def _starts(draws: _Draws, frame_tokens: int) -> tuple[Layout, Tensor]:
    noisy = [*range(START_CHUNKS)] * _LEVELS_PER_CHUNK
    return full_history(START_CHUNKS - 1, noisy, frame_tokens=frame_tokens), draws.clips(4)


def _switches(draws: _Draws, frame_tokens: int) -> tuple[Layout, Tensor]:
    """Twice the two chunks in which most is new, and some of the later ones, behind what a stream keeps of the past."""
    switch_chunk = draws.group.switch_chunk
    soon = [switch_chunk, switch_chunk + 1]
    last = min(switch_chunk + _CHUNKS_AFTER_SWITCH, SWITCHED_CHUNKS) - 1
    later = switch_chunk + 2 + torch.randperm(last - soon[1], generator=draws.generator)
    noisy = sorted([*soon, *soon, *later[: _NOISY_CHUNKS - 4].tolist()])
    first = switch_chunk - RECACHED_CHUNKS
    return full_history(last - first, noisy, first_chunk=first, frame_tokens=frame_tokens), draws.clips(4)


def _returns(draws: _Draws, frame_tokens: int) -> tuple[Layout, Tensor]:
    clips = draws.clips(3)
    noisy = draws.returning_chunks(clips, 1, MEMORY_CHUNKS)  # the first chunk shows a return never
    return full_history(MEMORY_CHUNKS - 1, noisy, frame_tokens=frame_tokens), clips


def _far_pieces(draws: _Draws, frame_tokens: int) -> tuple[Layout, Tensor]:
    """As a compressed cache leaves them: a sink, recent frames, and in half of the samples random segments."""
    num_chunks = FAR_CHUNKS - 1
    keep = None
    if draws.one_of((False, True)):
        keep = torch.rand(num_chunks + 1, CHUNK_FRAMES * SEGMENTS_PER_FRAME, generator=draws.generator) < 1 / 3
    layout = sink_and_window(
        draws.group.frames[CHUNK_FRAMES] // CHUNK_FRAMES,
        num_chunks,
        sink_frames=draws.one_of((1, 1, 3)),
        recent_frames=draws.one_of((1, 1, 4, 9)),
        segment_keep=keep,
        frame_tokens=frame_tokens,
        levels_per_chunk=_LEVELS_PER_CHUNK,
    )
    return layout, draws.clips(6)


def _long_streams(draws: _Draws, frame_tokens: int) -> tuple[Layout, Tensor]:
    """The later half is learned."""
    num_chunks, num_clips = draws.one_of(_LONG_HISTORIES)
    clips = draws.clips(num_clips)
    noisy = draws.returning_chunks(clips, num_chunks // 2, num_chunks + 1)
    return long_history(num_chunks, noisy, recent_chunks=MEMORY_CHUNKS, frame_tokens=frame_tokens), clips


_SAMPLES: dict[str, Callable[[_Draws, int], tuple[Layout, Tensor]]] = {
    "first": _first_chunks,
    "pair": _first_chunks,
    "start": _starts,
    "switch": _switches,
    "memory": _returns,
    "wrap": _returns,
    "far": _far_pieces,
    "long": _long_streams,
}
"""How a sample of each kind of clips is drawn."""


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
