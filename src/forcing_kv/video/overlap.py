"""From latents to files, beside the diffusion of the next chunk.

Decoding and writing are two stages behind the diffusion (`stages`): while the caller makes chunk i + 1, one thread
decodes chunk i and another writes chunk i - 1. On a GPU the decoder has a CUDA stream of its own, waits for nothing but
its own latents, and its pictures are copied through pinned memory. What is decoded and in which order is the same with
and without the overlap, and so is every byte of the result.
"""

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache
from types import TracebackType
from typing import Any, Generic, Protocol, Self, TypeVar

import torch
from torch import Tensor

from forcing_kv.clock import milliseconds_since
from forcing_kv.video.stages import StageLine

Item = TypeVar("Item")
DecoderState = tuple[dict[str, Tensor], dict[str, Any]]


class Decoder(Protocol):
    """The decoder of one stream; see `StreamingVaeDecoder`."""

    def decode(self, latents: Tensor) -> Tensor:
        """[B, F, C, h, w] -> uint8 [B, T, H, W, 3], on the CPU."""
        ...

    def state(self) -> DecoderState:
        """Everything the next chunk needs."""
        ...


@dataclass(kw_only=True)
class Decoded(Generic[Item]):
    """A chunk on its way, filled in from stage to stage.

    Attributes:
        item: What the caller put with the latents.
        frames: uint8 [B, T, H, W, 3], on the CPU; given up once written.
        num_frames: T.
        state: The decoder's after this chunk, copied to the CPU, where it was asked for; given up once written.
        decode_ms: The decoder's own time, from its latents being there to its pictures being on the CPU. Beside a
            transformer pass it shares the device with that, and takes longer than alone.
        write_ms: The writer's own time.
        decoded_at: When the pictures were there, as `time.perf_counter` counts.
        written_at: When they were written.
    """

    item: Item
    frames: Tensor | None = None
    num_frames: int = 0
    state: DecoderState | None = None
    decode_ms: float = 0.0
    write_ms: float = 0.0
    decoded_at: float = 0.0
    written_at: float = 0.0


@dataclass(frozen=True, kw_only=True)
class _Task:
    """What the decoder is given; it refers to the latents until they are read, so their memory is not given away."""

    result: Decoded[Any]
    latents: Tensor
    ready: "torch.cuda.Event | None"
    wants_state: bool


class ChunkOutput(Generic[Item]):
    """Decodes and writes chunks in their order; use it in a `with` block, whose end waits for all that was put.

    The first chunk is waited for until it is decoded: beside the diffusion of the second it would be seen later than
    without any overlap. From then on at most two chunks are on their way, so memory does not grow with the video.
    """

    def __init__(
        self,
        decoder: Decoder,
        write: Callable[[Decoded[Item]], None],
        *,
        device: torch.device,
        overlapped: bool,
    ) -> None:
        """Sets the output up; its threads, if any, start with the block.

        Args:
            decoder: Of this stream; used by this object alone until the block ends.
            write: Takes the frames of one chunk after the other; in a thread of its own where overlapped.
            device: Where the latents and the decoder are.
            overlapped: Whether `put` returns before the work is done.
        """
        self.waited_ms = 0.0
        """Time that the caller has spent here: all the work without overlap, what could not be hidden with it."""
        self._decoder = decoder
        self._write = write
        self._own_stream = _decode_stream(device) if overlapped and device.type == "cuda" else None
        self._has_begun = False
        self._delivered: deque[Decoded[Item]] = deque()
        self._line = StageLine((self._decode_stage, self._write_stage), threaded=overlapped)

    def put(self, latents: Tensor, item: Item, *, wants_state: bool = False) -> None:
        """Has a chunk decoded and written.

        Args:
            latents: [B, F, C, h, w], queued on the caller's CUDA stream if not there yet.
            item: Comes back with the result.
            wants_state: Whether the decoder's state after this chunk is wanted too.

        Raises:
            BaseException: That of the decoder or of the writer, for this chunk or one before it.
        """
        started = time.perf_counter()
        ready = None
        if self._own_stream is not None:
            ready = torch.cuda.Event(blocking=True)
            ready.record(torch.cuda.current_stream(latents.device))
        try:
            self._line.put(_Task(result=Decoded(item=item), latents=latents, ready=ready, wants_state=wants_state))
            if not self._has_begun:
                self._has_begun = True
                self._line.wait(1)
        finally:
            self.waited_ms += milliseconds_since(started)

    def wait(self) -> None:
        """Waits until everything is written.

        Raises:
            BaseException: As `put`.
        """
        started = time.perf_counter()
        try:
            self._line.wait()
        finally:
            self.waited_ms += milliseconds_since(started)

    def delivered(self) -> Iterator[Decoded[Item]]:
        """The chunks written since the last call, one by one, in order."""
        while self._delivered:
            yield self._delivered.popleft()

    def __enter__(self) -> Self:
        self._line.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        started = time.perf_counter()
        try:
            self._line.__exit__(kind, error, traceback)
        finally:
            self.waited_ms += milliseconds_since(started)

    def _decode_stage(self, task: _Task) -> Decoded[Item]:
        result = task.result
        # On the host, in this thread: the work is launched when it can run, and no other stream is held up.
        if task.ready is not None:
            task.ready.synchronize()
        started = time.perf_counter()
        with nullcontext() if self._own_stream is None else torch.cuda.stream(self._own_stream):
            result.frames = self._decoder.decode(task.latents)
            result.num_frames = result.frames.shape[1]
            result.decoded_at = time.perf_counter()
            result.decode_ms = 1e3 * (result.decoded_at - started)
            if task.wants_state:
                tensors, metadata = self._decoder.state()
                result.state = {name: tensor.to("cpu", copy=True) for name, tensor in tensors.items()}, metadata
        return result

    def _write_stage(self, result: Decoded[Item]) -> None:
        started = time.perf_counter()
        self._write(result)
        result.frames = result.state = None
        result.written_at = time.perf_counter()
        result.write_ms = 1e3 * (result.written_at - started)
        self._delivered.append(result)


@cache
def _decode_stream(device: torch.device) -> torch.cuda.Stream:
    """One for all decoders on a GPU: what torch's allocator keeps for a stream is of use to that stream alone."""
    return torch.cuda.Stream(device)
