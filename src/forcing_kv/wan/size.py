"""What passes of a causal Wan transformer take beside weights and cache, from its sizes alone.

The figures follow the code of `CausalWanTransformer`, tensor by tensor; a dry run on the meta device checks them in
the tests. They hold for an attention that never has the whole score matrix in memory, as torch's are on CPU and GPU.
"""

import torch

from forcing_kv.wan.config import TransformerConfig
from forcing_kv.wan.levels import level_bytes

_LATENT_COPIES = 8
"""Float32 copies of the latents in sampler and rollout: noise, states between steps, prediction, newest frames."""


def pass_bytes(
    config: TransformerConfig,
    *,
    num_frames: int,
    frame_tokens: int,
    dtype: torch.dtype,
    precision: str | None = None,
) -> int:
    """The most that is alive at once for one pass over `num_frames` latent frames, those of all batch items counted.

    Choosing segments at a commit takes less, and is over before the next pass begins.
    """
    size = dtype.itemsize
    # Alive throughout a block: the patches and the input of the block.
    # Norm and rotation of q or k, in place: they, the input of the projections, q, k and v, and one in float32.
    rotating = config.dim * (6 * size + 4)
    # q, k and v, what attention gives per head group, and the same joined or, in a re-cache, k and v behind the sink.
    attending = config.dim * 8 * size
    # What attention gave, the residual, the input or the output of the layers, the sum; and the hidden layer.
    feed_forward = config.dim * 6 * size + config.ffn_dim * size
    if precision is not None:  # the hidden layer over its scales in float32, and as it is multiplied
        feed_forward += config.ffn_dim * (4 + 1)
    rotary_table = 8 * config.head_dim  # cosines and sines, and both as complex numbers
    latents = 4 * _LATENT_COPIES * config.patch_values * config.in_dim
    coordinates = config.dim * size * config.coordinates  # their embedding, alive as long as the chunk is
    token = max(rotating, attending, feed_forward) + rotary_table + coordinates + latents
    modulation = level_bytes(config.num_layers, config.dim, dtype)
    return num_frames * (frame_tokens * token + modulation)


def text_memory_bytes(config: TransformerConfig, *, batch_size: int, dtype: torch.dtype) -> int:
    """Cross-attention keys and values of one prompt, and the text states they are made from."""
    values_per_position = 2 * config.num_layers * config.dim + config.text_dim
    return batch_size * config.text_len * values_per_position * dtype.itemsize
