"""One transformer pass in the steady state, at the true shapes of Wan 1.3B, that can be run in every way."""

from typing import Any

import torch
from torch import Tensor

from forcing_kv.bench.steady_state import SteadyState
from forcing_kv.cache import StreamCache
from forcing_kv.execution import pass_runner
from forcing_kv.models import ModelPreset, published_head_map
from forcing_kv.policies import parse_policy
from forcing_kv.resolution import parse_resolution
from forcing_kv.wan import CausalWanTransformer

TIMESTEP = 750.0
HEAD_MAP = "self-forcing-1.3b"
DRY_LAYERS, DRY_RESOLUTION = 3, "96x64"
"""Of a dry run; fp8 leaves the first and the last block as they are, so it needs three."""


class SteadyPass:
    """A cache in its steady state and a pass over the chunk that comes next.

    Args:
        transformer: Of Wan 1.3B's sizes, or the first layers of it; its heads are put in the order of the head map.
        policy: What the cache keeps, in its spelling.
        resolution: Of the video.
        attention: Back end.
        execution: How the pass is run.
        filled: A pass whose history is taken over; None fills the cache with passes over noise.
    """

    _latents: Tensor
    _memory: dict[str, Any]

    @torch.no_grad()
    def __init__(
        self,
        transformer: CausalWanTransformer,
        policy: str,
        *,
        resolution: str,
        attention: str,
        execution: str,
        filled: "SteadyPass | None" = None,
    ) -> None:
        config, device = transformer.config, transformer.device
        head_map = published_head_map(HEAD_MAP).first_layers(config.num_layers)
        if transformer.head_order != head_map.side_by_side():
            transformer.set_head_order(head_map.side_by_side())
        self.geometry = geometry = ModelPreset(name="random").geometry(config, parse_resolution(resolution))
        self.cache = StreamCache(
            geometry,
            parse_policy(policy, head_map=head_map),
            dtype=transformer.dtype,
            device=device,
            head_order=transformer.head_order,
            attention=attention,
        )
        self._transformer = transformer
        self._run = pass_runner(execution, transformer)
        self._level = transformer.noise_level(TIMESTEP)
        self._generator = torch.Generator(device).manual_seed(0)
        self._text = transformer.encode_text(self._noise(1, config.text_len, config.text_dim))
        if filled is not None:
            tensors, meta = filled.cache.state()
            self.cache.load_state(tensors, meta)
            self._latents, self._memory = filled._latents, {**filled._memory, "text": self._text, "memory": self.cache}
            return
        for _ in range(SteadyState.of(self.cache.policy, geometry).first_chunk):
            self._begin_chunk()
            transformer.at_level(self._latents, self._level, **self._memory)
            self.cache.commit()
        self._begin_chunk()

    @torch.no_grad()
    def __call__(self) -> Tensor:
        """The velocity; valid until the next call."""
        return self._run(self._latents, self._level, **self._memory)

    def _begin_chunk(self) -> None:
        geometry, start = self.geometry, self.cache.first_position
        rows, cols = geometry.frame_rows, geometry.frame_cols
        positions = self._transformer.token_positions(range(start, start + geometry.chunk_frames), rows, cols)
        channels = self._transformer.config.in_dim
        self._latents = self._noise(1, geometry.chunk_frames, channels, 2 * rows, 2 * cols)
        self._memory = {"text": self._text, "positions": positions, "memory": self.cache}

    def _noise(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self._generator, device=self._transformer.device)


@torch.no_grad()
def sharpen(transformer: CausalWanTransformer) -> None:
    """Lets random weights look somewhere: as they are drawn, they look everywhere alike and hardly heed what they see.

    A pass through them would be nearly the same whatever attention did. Queries are made longer, so that few keys
    count, and what self-attention gives is added whole.
    """
    for block in transformer.blocks:
        block.get_parameter("self_attn.norm_q.weight").mul_(3)
        block.get_parameter("modulation")[:, 2].fill_(1)
