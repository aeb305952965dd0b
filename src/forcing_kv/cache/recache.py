"""The memory of a re-cache: the newest frames encoded again under a new prompt, in one pass."""

from collections.abc import Callable

import torch
from torch import Tensor

from forcing_kv.attention import AttentionBackend, heads_at, join_heads
from forcing_kv.cache.buffer import GroupBuffer


class RecachePass:
    """The memory of a re-encoding pass: full attention among its frames, whose keys and values then fill the cache.

    Attributes:
        frames: Absolute indices of the latent frames to encode; with a kept sink there may be none, and no pass is due.
        positions: Temporal position of each.
    """

    def __init__(
        self,
        layers: list[list[GroupBuffer]],
        frames: range,
        *,
        first_position: int,
        attention: AttentionBackend,
        on_refilled: Callable[[int], None],
    ) -> None:
        self.frames = frames
        self.positions = range(first_position, first_position + len(frames))
        self._layers = layers
        self._attention = attention
        self._unfilled = set(range(len(layers)))  # the last of them settles where the history stands
        self._on_refilled = on_refilled

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """As `StreamCache.attend`, over the frames of the pass and the kept sink."""
        assert layer in self._unfilled, "a re-cache is one pass"
        outputs = []
        for buffer in self._layers[layer]:
            keys, values = heads_at(k, buffer.places), heads_at(v, buffer.places)
            sink_keys, sink_values = buffer.read_sink()  # empty unless it was kept
            outputs.append(
                self._attention.attend(
                    heads_at(q, buffer.places),
                    torch.cat((sink_keys, keys), dim=1),
                    torch.cat((sink_values, values), dim=1),
                )
            )
            buffer.refill(keys, values)
        self._unfilled.remove(layer)
        if not self._unfilled:
            self._on_refilled(self.positions.stop)
        return join_heads(outputs, [buffer.places for buffer in self._layers[layer]])
