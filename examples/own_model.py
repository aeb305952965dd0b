"""Put the Forcing-KV cache into a model of your own.

`OwnModel` knows nothing of this package. Twenty lines give its attention a compressed memory: a `FrameGeometry` says
what its tokens are, a `HeadMap` which heads are static, and `StreamCache.attend` takes the place of softmax attention.

    python examples/own_model.py
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from forcing_kv import ForcingKV, FrameGeometry, HeadMap, StreamCache

DIM, NUM_HEADS, NUM_LAYERS, ROWS, COLS = 32, 4, 3, 4, 6


class OwnAttention(nn.Module):
    """Multi-head attention as anybody writes it; `remember(q, k, v)` computes the softmax part."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(DIM, 3 * DIM), nn.Linear(DIM, DIM)

    def forward(self, x: Tensor, remember: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Tensor:
        """x [batch, tokens, dim]."""
        q, k, v = self.qkv(x).view(*x.shape[:2], 3, NUM_HEADS, -1).unbind(2)
        out: Tensor = self.out(remember(q, k, v).flatten(2))
        return out


class OwnModel(nn.Module):
    """A toy denoiser: one chunk of frames at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(OwnAttention() for _ in range(NUM_LAYERS))

    def forward(self, x: Tensor, memory: StreamCache) -> Tensor:
        """x [batch, tokens, dim] -> the same."""
        for number, layer in enumerate(self.layers):
            x = x + layer(nn.functional.layer_norm(x, (DIM,)), lambda q, k, v, n=number: memory.attend(n, q, k, v))
        return x


def main() -> None:
    """Streams forty chunks and prints what the cache holds."""
    torch.manual_seed(0)
    model = OwnModel().eval()
    geometry = FrameGeometry(
        num_layers=NUM_LAYERS,
        num_heads=NUM_HEADS,
        head_dim=DIM // NUM_HEADS,
        frame_rows=ROWS,
        frame_cols=COLS,
        chunk_frames=3,
    )
    policy = ForcingKV(head_map=HeadMap(model="own", roles=("sdds", "ssdd", "ddds")))
    cache = StreamCache(geometry, policy)

    with torch.no_grad():
        for _ in range(40):
            chunk = torch.randn(1, geometry.chunk_tokens, DIM)
            for _ in range(4):  # denoising passes: each overwrites the keys and values of the one before
                chunk = model(chunk, cache)
            model(chunk, cache)  # the pass on the clean chunk
            cache.commit()  # makes it history

    held, full = cache.nbytes, cache.full_nbytes
    print(f"{cache.num_frames} frames: {held:,} bytes held, {full:,} in a full cache ({1 - held / full:.0%} saved)")


if __name__ == "__main__":
    main()
