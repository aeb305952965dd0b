"""Where heads look: the attention of a few queries of one chunk, for policies that tell heads apart by it.

The queries of every pass are taken as it goes by, so that those of the commit pass are there when it is committed;
their attention is computed once, at that commit.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from forcing_kv.attention import heads_at
from forcing_kv.attention.frame_mass import frame_mass
from forcing_kv.cache.buffer import GroupBuffer
from forcing_kv.geometry import FrameGeometry
from forcing_kv.policies import HeadAttention


class QuerySample:
    """Some queries of the newest pass over a chunk, in every layer.

    Args:
        geometry: Of the stream.
        tokens: Which of the chunk's tokens are looked at.
        device: Of the queries.
    """

    def __init__(self, geometry: FrameGeometry, tokens: Sequence[int], *, device: torch.device) -> None:
        self._geometry = geometry
        self._tokens = torch.tensor(tokens, device=device)
        self._queries: dict[int, Tensor] = {}

    def take(self, layer: int, q: Tensor) -> None:
        """Keeps a sample of the queries [batch, chunk_tokens, heads, head_dim], in place of the pass before's."""
        self._queries[layer] = q.index_select(1, self._tokens)

    def attention(
        self,
        layers: Sequence[Sequence[GroupBuffer]],
        head_order: Sequence[Sequence[int]],
        *,
        first_frame: int,
        sink_first_frame: int,
    ) -> HeadAttention:
        """What the sampled queries look at in what the buffers hold; waits for the device.

        Args:
            layers: The buffers of each layer, which hold whole frames; the current chunk is not yet committed.
            head_order: The head that lies at each place, per layer.
            first_frame: Of the current chunk.
            sink_first_frame: Of the sink.
        """
        num_heads = self._geometry.num_heads
        masses = [[(0.0, 0.0, 0.0)] * num_heads for _ in layers]
        for layer, buffers in enumerate(layers):
            for buffer in buffers:
                queries, (keys, _) = heads_at(self._queries[layer], buffer.places), buffer.read()
                by_frame = frame_mass(queries, keys, frame_tokens=self._geometry.frame_tokens).mean(dim=(0, 1)).double()
                frames = buffer.key_frames(first_frame, sink_first_frame=sink_first_frame)
                is_first = [float(frame == sink_first_frame) for frame in frames]
                is_last = [float(frame >= first_frame) for frame in frames]
                is_middle = [1 - first - last for first, last in zip(is_first, is_last, strict=True)]
                parts = torch.tensor([is_first, is_middle, is_last], dtype=torch.float64, device=by_frame.device)
                for place, (first, middle, last) in zip(buffer.places, (by_frame @ parts.T).tolist(), strict=True):
                    masses[layer][head_order[layer][place]] = (first, middle, last)
        first, middle, last = (tuple(tuple(mass[part] for mass in layer) for layer in masses) for part in range(3))
        return HeadAttention(first=first, middle=middle, last=last)
