"""What a transformer pass must compute and move, from its sizes alone: the least that any implementation can do."""

from dataclasses import dataclass

import torch

from forcing_kv.cache import StreamCache
from forcing_kv.cache.store import head_token_bytes
from forcing_kv.geometry import FrameGeometry
from forcing_kv.wan import TransformerConfig


@dataclass(frozen=True, kw_only=True)
class Work:
    """Arithmetic and traffic.

    Attributes:
        flops: Floating-point operations; a multiply-add counts 2.
        bytes: Read from and written to memory, together.
    """

    flops: float
    bytes: float


def pass_work(
    config: TransformerConfig,
    geometry: FrameGeometry,
    *,
    history_tokens: int,
    dtype: torch.dtype,
    kv_dtype: str | None = None,
    batch_size: int = 1,
) -> Work:
    """One pass of a chunk over a history.

    Operations are those of the linear layers of the blocks (six of dim x dim, as the prompt's keys and values are
    computed once per prompt, and two of the feed-forward network), of self-attention and of cross-attention; norms and
    modulation are left out. Bytes are what cannot be avoided: the weights of those layers, the prompt's keys and values
    and the residual stream once into each block and once out of it, the chunk's own keys and values written, and all
    keys and values that self-attention reads. Whatever lives between two layers is taken to stay on the chip.

    Of a quantised cache the history is read, and the chunk written, as it is stored, scales included, while attention
    reads the chunk itself as it is. Expanding the history costs no operations and no traffic here: it could be done on
    the chip, though our own goes through a workspace in memory.

    Args:
        config: Sizes of the transformer.
        geometry: Shape of a frame and a chunk.
        history_tokens: Tokens of history read, summed over all heads of all layers, of one batch item.
        dtype: Of weights, activations, keys and values.
        kv_dtype: How the cache stores keys and values; None for as they are.
        batch_size: Videos made together.
    """
    layers, dim = config.num_layers, config.dim
    queries = batch_size * geometry.chunk_tokens
    weights = layers * (6 * dim**2 + 2 * dim * config.ffn_dim)
    prompt_values = batch_size * layers * config.text_len * dim
    # Of single heads.
    stored_tokens = batch_size * history_tokens
    chunk_tokens = batch_size * layers * config.num_heads * geometry.chunk_tokens
    linear = 2 * queries * weights
    cross = 4 * layers * queries * config.text_len * dim
    self_attention = 4 * geometry.chunk_tokens * config.head_dim * (stored_tokens + chunk_tokens)
    moved_values = (
        weights
        + 2 * prompt_values  # keys and values
        + 2 * chunk_tokens * config.head_dim  # the chunk's keys and values, read
        + 2 * layers * queries * dim  # the residual stream
    )
    # History read, and the chunk written.
    moved_stored = (stored_tokens + chunk_tokens) * head_token_bytes(config.head_dim, dtype, kv_dtype)
    return Work(flops=float(linear + cross + self_attention), bytes=float(dtype.itemsize * moved_values + moved_stored))


def history_tokens(cache: StreamCache) -> int:
    """Tokens of history that a pass over `cache` reads now, summed over all heads of all layers."""
    return sum(sum(cache.history_tokens(layer).values()) for layer in range(cache.geometry.num_layers))


def cache_work(config: TransformerConfig, cache: StreamCache) -> Work:
    """One pass of the current chunk over what `cache` holds now."""
    return pass_work(
        config,
        cache.geometry,
        history_tokens=history_tokens(cache),
        dtype=cache.dtype,
        kv_dtype=cache.kv_dtype,
        batch_size=cache.batch_size,
    )
