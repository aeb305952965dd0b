"""`StreamCache`: the keys and values of one stream, kept as a policy says.

A chunk is denoised in several passes. Each pass writes its keys and values over those of the pass before and reads them
together with the history; `commit` then makes the chunk history. All state is on this object, and the counters are
plain integers on the host, so nothing here waits for the device.

It works with any transformer: call `attend(layer, q, k, v)` in every layer in place of softmax attention, and
`commit()` after the pass on the clean chunk (`examples/own_model.py`).
"""

from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from forcing_kv.attention import AUTO, GroupKV, Placement, choose_backend, heads_at
from forcing_kv.cache.buffer import GroupBuffer
from forcing_kv.cache.looking import QuerySample
from forcing_kv.cache.observer import AttentionObserver, AttentionRead
from forcing_kv.cache.positions import TemporalRotation
from forcing_kv.cache.recache import RecachePass
from forcing_kv.cache.store import Storage, check_kv_dtype
from forcing_kv.errors import ConfigurationError, SnapshotError
from forcing_kv.geometry import FrameGeometry
from forcing_kv.policies import CachePlan, CachePolicy, HeadAttention, Selection


class StreamCache:
    """The compressed history of one stream, or of a batch of streams in step.

    Args:
        geometry: Shape of the model and of a frame.
        policy: What each head keeps.
        batch_size: Streams in step; each has its own selection.
        dtype: Of the model's keys and values.
        kv_dtype: How they are stored: `int8` or `fp8`, with one scale per token and head, or None for as they are.
        device: Where they are stored.
        head_order: The head that lies at each place of the model's q, k and v, per layer; None if they lie as numbered
            (`CausalWanTransformer.head_order`).
        rotation: Moves keys along the temporal axis; the cache then holds them at relative positions
            (`cache.positions`), and the model must encode each chunk at `first_position`. None leaves every frame at
            its absolute position.
        attention: Back end that computes it: a name of `forcing_kv.attention.BACKENDS`, or `auto` for the best that
            is known for the device.

    Raises:
        ConfigurationError: The policy cannot work at this geometry; a quantised cache with relative positions; an
            attention back end that cannot be had here.
        HeadMapError: The policy's head map does not fit.
        UnknownNameError: No such `kv_dtype` or attention back end.
    """

    def __init__(
        self,
        geometry: FrameGeometry,
        policy: CachePolicy,
        *,
        batch_size: int = 1,
        dtype: torch.dtype = torch.float32,
        kv_dtype: str | None = None,
        device: torch.device | str = "cpu",
        head_order: Sequence[Sequence[int]] | None = None,
        rotation: TemporalRotation | None = None,
        attention: str = AUTO,
    ) -> None:
        policy.check(geometry)
        check_kv_dtype(kv_dtype, positions="absolute" if rotation is None else "relative")
        self.geometry = geometry
        self.policy = policy
        self.batch_size = batch_size
        self.dtype = dtype
        self.kv_dtype = kv_dtype
        self.device = torch.device(device)
        placement = Placement(device=self.device, dtype=dtype, head_dim=geometry.head_dim)
        self.attention = choose_backend(attention, placement)
        """What computes attention."""
        self.num_frames = 0
        """Latent frames committed since the start of the stream."""
        self.num_chunks = 0
        """Chunks committed since the start of the stream."""
        self.first_position = 0
        """Temporal position of the current chunk's first frame."""
        self.grouped = False
        """Whether the heads are told apart now (after warm-up, or after a re-cache)."""
        self.last_selection: Selection | None = None
        """What the newest commit selected, if anything."""
        self.head_attention: HeadAttention | None = None
        """Where the heads looked when they were told apart, for a policy that tells them apart by it."""
        self._rotation = rotation
        self._observer: AttentionObserver | None = None
        self._sink_first_frame = 0
        natural = tuple(range(geometry.num_heads))
        self._head_order = (
            tuple(tuple(order) for order in head_order) if head_order else (natural,) * geometry.num_layers
        )
        self._storage = Storage(dtype=dtype, kv_dtype=kv_dtype, device=self.device)
        self._plan = policy.plan(geometry, grouped=False)
        self._layers = [self._allocate(self._plan, layer) for layer in range(geometry.num_layers)]
        self._looking_tokens = policy.looking_tokens(geometry)
        self._sample = self._sample_if_due()

    @property
    def positions(self) -> str:
        """How temporal positions are counted: `absolute` or `relative`."""
        return "absolute" if self._rotation is None else "relative"

    @property
    def nbytes(self) -> int:
        """Bytes really held by keys and values: the current chunk, unfilled parts and any workspace included."""
        return sum(buffer.nbytes for buffer in self._buffers) + self._storage.workspace_bytes

    @property
    def full_nbytes(self) -> int:
        """Bytes a cache of every frame committed so far would hold."""
        return self.geometry.kv_bytes(self.num_frames, bytes_per_value=self.dtype.itemsize, batch_size=self.batch_size)

    def history_tokens(self, layer: int) -> dict[int, int]:
        """Tokens of history that each head of `layer` reads, by head number."""
        return {head: buffer.history_tokens for buffer in self._layers[layer] for head in buffer.group.heads}

    def layout(self) -> Hashable | None:
        """Where the coming pass reads and writes: passes over equal layouts do the same work at the same addresses.

        None where a pass does more than that: its queries are looked at.
        """
        if self._sample is not None or self._observer is not None:
            return None
        return (self._storage.workspace_address, *(buffer.layout() for buffer in self._buffers))

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention of the current chunk to itself and to the history each head keeps.

        Args:
            layer: Which layer calls.
            q: [batch, chunk_tokens, heads, head_dim], position already encoded, as is `k`.
            k: Shaped as `q`; replaces the keys of the chunk's pass before.
            v: Shaped as `q`.

        Returns:
            [batch, chunk_tokens, heads, head_dim].
        """
        groups = (self._write_current(buffer, k, v) for buffer in self._layers[layer])
        out = self.attention.attend_groups(q, groups, one_by_one=self._storage.shares_room)
        if self._sample is not None:
            self._sample.take(layer, q)
        if self._observer is not None:
            self._show(self._observer, layer, q)
        return out

    @contextmanager
    def observed_by(self, observer: AttentionObserver) -> Iterator[None]:
        """Tells `observer` what every call of `attend` reads, for the length of a `with` block.

        The pass of a re-cache is not observed: it is no pass over a chunk.

        Raises:
            ConfigurationError: The policy keeps segments of frames; an observer is told of whole frames.
        """
        plan = self.policy.plan(self.geometry, grouped=True)
        if any(group.selected_segments for groups in plan.layers for group in groups):
            raise ConfigurationError(
                f"policy {self.policy.spec()!r} keeps segments of frames, and an observer is told of whole frames; "
                "observe the full cache (policy 'full') or one that selects nothing"
            )
        previous, self._observer = self._observer, observer
        try:
            yield
        finally:
            self._observer = previous

    def commit(self) -> None:
        """Makes the chunk of the last pass history: selects segments, then moves the recent frames on."""
        self.last_selection = self._select() if self.grouped else None
        if self._sample is not None:
            self.head_attention = self._sample.attention(
                self._layers,
                self._head_order,
                first_frame=self.num_frames,
                sink_first_frame=self._sink_first_frame,
            )
        for buffer in self._buffers:
            buffer.commit_current()
        self.num_frames += self.geometry.chunk_frames
        self.num_chunks += 1
        if not self.grouped and self.policy.is_grouped(self.num_chunks):
            self._start_grouping()
        self._sample = self._sample_if_due()
        self._go_on_from(self.first_position + self.geometry.chunk_frames)

    def recache(self, max_frames: int, *, keep_sink: bool = False) -> RecachePass:
        """Prepares a re-encoding of the newest frames under a new prompt.

        Run one pass over the clean latents of the frames that the returned object names, with that object as the
        memory. Afterwards the history holds those frames only (and the old sink, with `keep_sink`), and grouping is on.

        Args:
            max_frames: Newest frames to encode again, at most.
            keep_sink: Whether the sink stays and is read during the pass; the pass then begins after the sink.
        """
        if max_frames < 1:
            raise ConfigurationError(f"a re-cache of {max_frames} frames keeps nothing; use at least 1")
        first_frame = max(0, self.num_frames - max_frames)
        if not keep_sink:
            self._sink_first_frame = first_frame
        elif self._sink_frames:
            first_frame = max(first_frame, self._sink_first_frame + self._sink_frames)
        if not self.grouped and not self._looking_tokens:  # a policy that has to look first groups when it has
            self._start_grouping()
        self.last_selection = None
        for buffer in self._buffers:
            buffer.forget(keep_sink=keep_sink)
        frames = range(first_frame, self.num_frames)
        self._go_on_from(first_frame)
        return RecachePass(
            self._layers,
            frames,
            first_position=self.first_position,
            attention=self.attention,
            on_refilled=self._go_on_from,
        )

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """A copy of everything held: tensors by name, on the host, and counters that JSON can hold."""
        tensors: dict[str, Tensor] = {}
        counts: list[list[dict[str, int]]] = []
        for layer, buffers in enumerate(self._layers):
            counts.append([])
            for index, buffer in enumerate(buffers):
                for plane, history in enumerate(buffer.history()):
                    tensors[f"{layer}.{index}.{plane}"] = history.to("cpu", copy=True)
                counts[-1].append(buffer.counts())
        meta = {
            "num_frames": self.num_frames,
            "num_chunks": self.num_chunks,
            "grouped": self.grouped,
            "positions": self.positions,
            "kv_dtype": self.kv_dtype,
            "first_position": self.first_position,
            "sink_first_frame": self._sink_first_frame,
            "head_order": [list(order) for order in self._head_order],
            "counts": counts,
            "head_attention": None if self.head_attention is None else asdict(self.head_attention),
        }
        return tensors, meta

    def load_state(self, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
        """Puts back what `state` gave; the cache must have been made with the same arguments.

        Raises:
            SnapshotError: The state belongs to a cache of another shape; nothing has been changed then.
        """
        looked = meta["head_attention"]
        attention = None if looked is None else HeadAttention(**looked)
        plan = self._plan_of(grouped=meta["grouped"], attention=attention)
        layers = [self._allocate(plan, layer) for layer in range(self.geometry.num_layers)]
        try:
            if meta["head_order"] != [list(order) for order in self._head_order]:
                raise SnapshotError("the snapshot was taken with the heads of the model in another order")
            if meta["positions"] != self.positions:
                raise SnapshotError(f"the snapshot was taken with {meta['positions']} positions, not {self.positions}")
            if meta["kv_dtype"] != self.kv_dtype:
                raise SnapshotError(
                    f"the snapshot was taken with kv_dtype={meta['kv_dtype']!r}, this cache has {self.kv_dtype!r}"
                )
            for layer, (buffers, counts) in enumerate(zip(layers, meta["counts"], strict=True)):
                for index, (buffer, count) in enumerate(zip(buffers, counts, strict=True)):
                    planes = [tensors[f"{layer}.{index}.{plane}"] for plane in range(len(buffer.store.planes))]
                    buffer.load_history(planes, count)
        except (KeyError, RuntimeError, ValueError) as error:
            raise SnapshotError(f"the snapshot does not fit this cache ({self.policy.spec()}): {error}") from error
        self._plan, self._layers = plan, layers
        self._storage.give_back_room(buffer.store for buffer in self._buffers)
        self.num_frames, self.num_chunks, self.grouped = meta["num_frames"], meta["num_chunks"], meta["grouped"]
        self.first_position = meta["first_position"]
        self._sink_first_frame = meta["sink_first_frame"]
        self.head_attention = attention
        self._sample = self._sample_if_due()
        self.last_selection = None

    @property
    def _buffers(self) -> list[GroupBuffer]:
        return [buffer for buffers in self._layers for buffer in buffers]

    @property
    def _sink_frames(self) -> int:
        return max(buffer.sink_frames for buffer in self._buffers)

    @staticmethod
    def _write_current(buffer: GroupBuffer, k: Tensor, v: Tensor) -> GroupKV:
        keys, values = buffer.write_current(heads_at(k, buffer.places), heads_at(v, buffer.places))
        return GroupKV(places=buffer.places, keys=keys, values=values)

    def _show(self, observer: AttentionObserver, layer: int, q: Tensor) -> None:
        """Tells the observer what the layer has just read."""
        for buffer in self._layers[layer]:
            keys, _ = buffer.read()
            read = AttentionRead(
                layer=layer,
                heads=tuple(self._head_order[layer][place] for place in buffer.places),
                q=heads_at(q, buffer.places),
                k=keys,
                key_frames=buffer.key_frames(self.num_frames, sink_first_frame=self._sink_first_frame),
                first_frame=self.num_frames,
            )
            observer.observe(read)

    def _allocate(self, plan: CachePlan, layer: int) -> list[GroupBuffer]:
        place_of = {head: place for place, head in enumerate(self._head_order[layer])}
        return [
            GroupBuffer(
                group,
                sorted(place_of[head] for head in group.heads),
                self.geometry,
                segments_per_frame=plan.segments_per_frame,
                batch_size=self.batch_size,
                storage=self._storage,
            )
            for group in plan.layers[layer]
        ]

    def _plan_of(self, *, grouped: bool, attention: HeadAttention | None) -> CachePlan:
        if grouped and attention is not None:
            return self.policy.plan_from(self.geometry, attention)
        return self.policy.plan(self.geometry, grouped=grouped)

    def _sample_if_due(self) -> QuerySample | None:
        """For the coming chunk, where its commit tells the heads apart by where they look."""
        if self.grouped or not self._looking_tokens or not self.policy.is_grouped(self.num_chunks + 1):
            return None
        return QuerySample(self.geometry, self._looking_tokens, device=self.device)

    def _start_grouping(self) -> None:
        """Gives every group its final size. Groups whose size stays keep their memory."""
        plan = self._plan_of(grouped=True, attention=self.head_attention)
        for layer, buffers in enumerate(self._layers):
            if plan.layers[layer] == self._plan.layers[layer]:
                continue
            kept = {buffer.group: buffer for buffer in buffers}
            for index, new in enumerate(grouped := self._allocate(plan, layer)):
                if new.group in kept:
                    grouped[index] = kept[new.group]
                else:
                    new.take_history(next(old for old in buffers if set(new.places) <= set(old.places)))
            self._layers[layer] = grouped
        self._storage.give_back_room(buffer.store for buffer in self._buffers)
        self._plan = plan
        self.grouped = True

    def _select(self) -> Selection | None:
        leader = self._plan.leader_layer
        if leader is None:
            return None
        chooser = next(buffer for buffer in self._layers[leader] if buffer.group.selected_segments)
        selecting = [buffer for buffer in self._buffers if buffer.group.selected_segments]
        if not chooser.leaving_frames():
            for buffer in selecting:
                buffer.drop_segments()
            return None
        selection = self.policy.select(chooser.leaving_keys(), chooser.group.selected_segments, commit=self.num_chunks)
        for buffer in selecting:
            buffer.keep_segments(selection.segments, self._plan.segments_per_frame)
        return selection

    def _go_on_from(self, position: int) -> None:
        """Settles where the next frames stand.

        Args:
            position: Directly after the newest frame of the history. Relative positions move the history up, so that
                in the group that holds most it begins at 0; as long as nothing is dropped, that moves nothing.
        """
        self.first_position = position
        if self._rotation is not None:
            self.first_position = max(buffer.num_positions for buffer in self._buffers)
            for buffer in self._buffers:
                buffer.stand_before(
                    self.first_position, moved_frames=self.first_position - position, rotation=self._rotation
                )
