"""What passes of a causal Wan transformer take beside weights and cache, from its sizes alone.

The figures follow the code of `CausalWanTransformer`, tensor by tensor; a dry run on the meta device checks them in
the tests. They hold for an attention that never has the whole score matrix in memory, as torch's are on CPU and GPU.
"""

import torch

from forcing_kv.wan.config import TransformerConfig

_LATENT_COPIES = 8
"""Float32 copies of the latents in sampler and rollout: noise, states between steps, prediction, newest frames."""


def pass_bytes(config: TransformerConfig, *, num_frames: int, frame_tokens: int, dtype: torch.dtype) -> int:
    """The most that is alive at once for one pass over `num_frames` latent frames, those of all batch items counted.

    Choosing segments at a commit takes less, and is over before the next pass begins.
    """
    size = dtype.itemsize
    # Alive throughout a block: the patches, the input of the block, its residual so far, the input of the layer.
    # RMSNorm and rotary embedding of k, with q done: four of them and q or k besides; three tensors widened to float32,
    # or two where the values are float32 already.
    rotating = config.dim * (5 * size + (12 if size < 4 else 8))
    # q, k and v, what attention gives per head group, the same joined, and in a re-cache k and v behind the sink.
    attending = config.dim * 9 * size
    # The hidden layer before and after GELU.
    feed_forward = config.dim * 4 * size + config.ffn_dim * 2 * size
    rotary_table = 4 * config.head_dim
    latents = 4 * _LATENT_COPIES * config.patch_values * config.in_dim
    coordinates = config.dim * size * config.coordinates  # their embedding, alive as long as the chunk is
    token = max(rotating, attending, feed_forward) + rotary_table + coordinates + latents
    modulation = 16 * config.dim * size  # six of the pass and six of the block, and what they are made from
    return num_frames * (frame_tokens * token + modulation)


def text_memory_bytes(config: TransformerConfig, *, batch_size: int, dtype: torch.dtype) -> int:
    """Cross-attention keys and values of one prompt, and the text states they are made from."""
    values_per_position = 2 * config.num_layers * config.dim + config.text_dim
    return batch_size * config.text_len * values_per_position * dtype.itemsize
