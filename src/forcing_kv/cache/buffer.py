"""The keys and values of one head group of one layer, in one store.

Along the token axis it is laid out `[selected | recent | sink | current]`, each part filled from the right. So whatever
is held, from the first chunk to the steady state, is one contiguous suffix that attention reads as it lies: nothing is
concatenated, no ring turns. Keys carry their position, so their order in memory is free; the recent part holds its
newest frame first.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from forcing_kv.cache.positions import TemporalRotation
from forcing_kv.cache.size import history_capacity, recent_capacity, selected_capacity
from forcing_kv.cache.store import Storage, gather, move, take
from forcing_kv.geometry import FrameGeometry
from forcing_kv.policies import HeadGroup

COUNTS = ("sink_frames", "recent_frames", "selected_tokens", "candidate_frames", "sink_position")
"""The integers of a buffer that change as the stream goes on."""


class GroupBuffer:
    """In-place storage for one head group.

    Attributes:
        group: What the group keeps.
        places: Where its heads lie in the model's q, k and v, rising.
        store: Keys and values.
        sink_frames: Frames the sink part holds now; likewise `recent_frames`.
        selected_tokens: Tokens the selected part holds now.
        candidate_frames: Frames that the selected segments were chosen from.
        sink_position: Temporal position of the first sink frame, where positions are relative.
    """

    def __init__(
        self,
        group: HeadGroup,
        places: Sequence[int],
        geometry: FrameGeometry,
        *,
        segments_per_frame: int,
        batch_size: int,
        storage: Storage,
    ) -> None:
        self.group = group
        self.places = tuple(places)
        self.geometry = geometry
        self.sink_frames = 0
        self.recent_frames = 0
        self.selected_tokens = 0
        self.candidate_frames = 0
        self.sink_position = 0
        self.recent_capacity = recent_capacity(group, geometry, 0)
        self.segments_per_frame = segments_per_frame
        self.segment_tokens = geometry.segment_tokens(segments_per_frame) if group.selected_segments else 0
        self.store = storage.store((2, batch_size, self._num_tokens, len(self.places), geometry.head_dim))

    @property
    def selected_capacity(self) -> int:
        """Tokens the selected part has room for."""
        return selected_capacity(self.group, self.geometry, self.segments_per_frame)

    @property
    def history_tokens(self) -> int:
        """Tokens held, the current chunk not counted."""
        return self.selected_tokens + self.geometry.tokens(self.recent_frames + self.sink_frames)

    @property
    def num_positions(self) -> int:
        """Temporal positions the history takes when its frames stand consecutively."""
        return self.sink_frames + self.candidate_frames + self.recent_frames

    @property
    def nbytes(self) -> int:
        """Bytes allocated."""
        return self.store.nbytes

    def layout(self) -> tuple[int, ...]:
        """Tokens held, room, and addresses: all that decides where a pass reads and writes."""
        return (self.history_tokens, self._num_tokens, *(plane.data_ptr() for plane in self.store.planes))

    def write_current(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Puts the chunk of this pass, [batch, chunk_tokens, heads, head_dim] each, in its place.

        Returns:
            All keys and values held, that chunk included; valid until another buffer is read.
        """
        self.store.write(self._current_start, k, v)
        return self.store.read_with_current(self._current_start - self.history_tokens, k, v)

    def read(self) -> tuple[Tensor, Tensor]:
        """All keys and values held, the current chunk included; valid until another buffer is read."""
        return self.store.read(self._current_start - self.history_tokens, self._num_tokens)

    def key_frames(self, first_frame: int, *, sink_first_frame: int) -> tuple[int, ...]:
        """Absolute index of every whole frame that `read` gives, in the order in which they lie.

        Args:
            first_frame: Of the current chunk.
            sink_first_frame: Of the sink.
        """
        recent = range(first_frame - 1, first_frame - 1 - self.recent_frames, -1)
        sink = range(sink_first_frame + self.sink_frames - 1, sink_first_frame - 1, -1)
        return (*recent, *sink, *range(first_frame, first_frame + self.geometry.chunk_frames))

    def read_sink(self) -> tuple[Tensor, Tensor]:
        """Keys and values of the sink alone; valid until another buffer is read."""
        return self.store.read(self._current_start - self.geometry.tokens(self.sink_frames), self._current_start)

    def leaving_frames(self) -> int:
        """Frames that the next commit pushes out of the recent part: the candidates of a selection."""
        return max(0, self.recent_frames + self.geometry.chunk_frames - self._absorbed - self.recent_capacity)

    def leaving_keys(self) -> Tensor:
        """Keys of the leaving frames and of the frame after them, in temporal order.

        Returns:
            [batch, leaving_frames + 1, frame_tokens, heads, head_dim].
        """
        starts = self._future_starts()[: self.leaving_frames() + 1]
        return torch.stack([self.store.keys(start, start + self.geometry.frame_tokens) for start in starts], dim=1)

    def keep_segments(self, segments: Tensor, segments_per_frame: int) -> None:
        """Overwrites the selected part with segments of the leaving frames.

        Args:
            segments: [batch, kept], int64: leaving frame x segments_per_frame + segment.
            segments_per_frame: Runs a frame is cut into.
        """
        frame, segment = segments // segments_per_frame, segments % segments_per_frame
        frame_tokens = self.geometry.frame_tokens
        # Where a frame lies is arithmetic on its number: recent frames run leftwards from the sink, newest first, the
        # current chunk runs rightwards. No table has to be sent to the device.
        in_recent = self._sink_start - (frame + 1) * frame_tokens
        in_current = self._current_start + (frame - self.recent_frames + self._absorbed) * frame_tokens
        first = torch.where(frame < self.recent_frames, in_recent, in_current) + segment * self.segment_tokens
        tokens = (first[..., None] + torch.arange(self.segment_tokens, device=first.device)).flatten(1)

        self.candidate_frames = self.leaving_frames()
        self.selected_tokens = tokens.shape[1]
        gather(self.store, self.selected_capacity - self.selected_tokens, tokens)

    def drop_segments(self) -> None:
        """Empties the selected part."""
        self.selected_tokens = self.candidate_frames = 0

    def commit_current(self) -> None:
        """Makes the current chunk history: it fills the sink first, then the recent part, pushing out the oldest."""
        if self.group.recent_frames is None:
            self._reserve(self.recent_frames + self.geometry.chunk_frames)
        frame_tokens = self.geometry.frame_tokens
        absorbed = self._absorbed
        self._push(
            [self._current_start + index * frame_tokens for index in range(absorbed, self.geometry.chunk_frames)]
        )
        for index in range(absorbed):
            self._fill_sink(self._current_start + index * frame_tokens)

    def stand_before(self, position: int, *, moved_frames: int, rotation: TemporalRotation) -> None:
        """Lets the history stand consecutively, its newest frame directly before `position`.

        Args:
            position: Where the current chunk will stand.
            moved_frames: How much later that is than the position the newest frame is followed by now.
            rotation: Turns the keys, in place: only as they are can they be turned.
        """
        sink_position = position - self.num_positions
        newer = self.store.keys(self._current_start - self.history_tokens, self._sink_start)  # selected and recent
        sink, _ = self.read_sink()
        for keys, num_frames in ((newer, moved_frames), (sink, sink_position - self.sink_position)):
            if num_frames and keys.shape[1]:
                rotation.shift(keys, num_frames)
        self.sink_position = sink_position

    def forget(self, *, keep_sink: bool) -> None:
        """Empties the history, but for a sink that is kept."""
        self.drop_segments()
        self.recent_frames = 0
        if not keep_sink:
            self.sink_frames = 0

    def refill(self, k: Tensor, v: Tensor) -> None:
        """Takes a span of frames after `forget`: the first fill what is free of the sink, the last are recent.

        Args:
            k: Keys of the span, [batch, frames * frame_tokens, heads, head_dim], in temporal order.
            v: Values of the span.
        """
        frame_tokens = self.geometry.frame_tokens
        num_frames = k.shape[1] // frame_tokens
        to_sink = min(self.group.sink_frames - self.sink_frames, num_frames)
        if self.group.recent_frames is None:
            self._reserve(num_frames)
        to_recent = min(self.recent_capacity, num_frames - to_sink)

        def put(frame: int, start: int) -> None:
            tokens = slice(frame * frame_tokens, (frame + 1) * frame_tokens)
            self.store.write(start, k[:, tokens], v[:, tokens])

        for frame in range(to_sink):
            self.sink_frames += 1
            put(frame, self._current_start - self.sink_frames * frame_tokens)
        for frame in range(num_frames - to_recent, num_frames):
            self.recent_frames += 1
            put(frame, self._sink_start - self.recent_frames * frame_tokens)

    def take_history(self, source: "GroupBuffer") -> None:
        """Copies sink and newest frames of a buffer that has these heads, for a change of sizes or of groups."""
        frame_tokens = self.geometry.frame_tokens
        heads = [source.places.index(place) for place in self.places]
        self.sink_position = source.sink_position
        self.sink_frames = min(source.sink_frames, self.group.sink_frames)
        if self.group.recent_frames is None:
            self._reserve(source.recent_frames)
        self.recent_frames = min(source.recent_frames, self.recent_capacity)
        sink_tokens, recent_tokens = self.sink_frames * frame_tokens, self.recent_frames * frame_tokens
        sink_starts = self._current_start - sink_tokens, source._current_start - sink_tokens
        recent_starts = (
            self._sink_start - recent_tokens,
            source._sink_start - source.recent_frames * frame_tokens,  # newest first
        )
        for (own, theirs), num_tokens in ((sink_starts, sink_tokens), (recent_starts, recent_tokens)):
            take(self.store, own, source.store, theirs, num_tokens, heads=heads)

    def history(self) -> tuple[Tensor, ...]:
        """Views of the planes of the history held, [2, batch, history_tokens, heads, ...] each."""
        start = self._current_start - self.history_tokens
        return tuple(plane[:, :, start : self._current_start] for plane in self.store.planes)

    def counts(self) -> dict[str, int]:
        """Everything but the tensor that says what is held."""
        return {name: getattr(self, name) for name in COUNTS}

    def load_history(self, history: Sequence[Tensor], counts: Mapping[str, int]) -> None:
        """Puts back what `history` and `counts` gave."""
        if self.group.recent_frames is None:
            self.recent_frames = 0
            self._reserve(counts["recent_frames"])
        for name in COUNTS:
            setattr(self, name, counts[name])
        for plane, saved in zip(self.history(), history, strict=True):
            plane.copy_(saved)

    @property
    def _sink_start(self) -> int:
        return self.selected_capacity + self.geometry.tokens(self.recent_capacity)

    @property
    def _current_start(self) -> int:
        return history_capacity(self.group, self.geometry, self.segments_per_frame, self.recent_capacity)

    @property
    def _num_tokens(self) -> int:
        return self._current_start + self.geometry.chunk_tokens

    @property
    def _absorbed(self) -> int:
        """Frames of the current chunk that the sink takes at the next commit."""
        return min(self.group.sink_frames - self.sink_frames, self.geometry.chunk_frames)

    def _future_starts(self) -> list[int]:
        """First tokens of the recent frames and of the current frames after them, in temporal order."""
        frame_tokens = self.geometry.frame_tokens
        recent = [self._sink_start - (index + 1) * frame_tokens for index in range(self.recent_frames)]
        current = [
            self._current_start + index * frame_tokens for index in range(self._absorbed, self.geometry.chunk_frames)
        ]
        return recent + current

    def _push(self, starts: Sequence[int]) -> None:
        """Adds the frames at `starts`, in temporal order, to the recent part; the oldest fall out at its right end."""
        starts = starts[max(0, len(starts) - self.recent_capacity) :]
        dropped = max(0, self.recent_frames + len(starts) - self.recent_capacity)
        frame_tokens = self.geometry.frame_tokens
        for index in range(dropped, self.recent_frames):  # oldest first: none is overwritten before it has moved
            start = self._sink_start - (index + 1) * frame_tokens
            self._copy_frame(start, start + dropped * frame_tokens)
        self.recent_frames -= dropped
        for start in starts:
            self.recent_frames += 1
            self._copy_frame(start, self._sink_start - self.recent_frames * frame_tokens)

    def _fill_sink(self, start: int) -> None:
        self.sink_frames += 1
        self._copy_frame(start, self._current_start - self.geometry.tokens(self.sink_frames))

    def _copy_frame(self, source: int, target: int) -> None:
        move(self.store, source, target, self.geometry.frame_tokens)

    def _reserve(self, num_frames: int) -> None:
        """Grows an unbounded recent part, in blocks, so that it holds `num_frames`."""
        if num_frames <= self.recent_capacity:
            return
        held_tokens, num_tokens = self.history_tokens + self.geometry.chunk_tokens, self._num_tokens
        self.recent_capacity = recent_capacity(self.group, self.geometry, num_frames)
        store = self.store.resized(self._num_tokens)
        take(
            store,
            self._num_tokens - held_tokens,
            self.store,
            num_tokens - held_tokens,
            held_tokens,
            heads=slice(None),
        )
        self.store = store
