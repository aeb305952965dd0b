"""Floating-point operations of a transformer pass, from its sizes alone."""

from forcing_kv.cache import StreamCache
from forcing_kv.wan import TransformerConfig


def pass_flops(config: TransformerConfig, cache: StreamCache) -> float:
    """Operations of one pass of the current chunk over what `cache` holds now; a multiply-add counts 2.

    Counted are the linear layers of the blocks (six of dim x dim, as the prompt's keys and values are computed once per
    prompt, and two of the feed-forward network), self-attention and cross-attention; norms and modulation are left out.
    """
    queries = cache.batch_size * cache.geometry.chunk_tokens
    linear = config.num_layers * 2 * queries * (6 * config.dim**2 + 2 * config.dim * config.ffn_dim)
    cross = config.num_layers * 4 * queries * config.text_len * config.dim
    self_attention = sum(
        4 * queries * (history_tokens + cache.geometry.chunk_tokens) * config.head_dim
        for layer in range(config.num_layers)
        for history_tokens in cache.history_tokens(layer).values()
    )
    return float(linear + cross + self_attention)
