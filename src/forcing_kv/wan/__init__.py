"""The causal Wan transformer, at any size, with the state-dict names of the released checkpoints."""

from forcing_kv.wan.config import WAN_1_3B, WAN_14B, TransformerConfig
from forcing_kv.wan.rope import RotaryTable, TemporalShift
from forcing_kv.wan.size import pass_bytes, text_memory_bytes
from forcing_kv.wan.transformer import (
    CausalWanTransformer,
    SelfAttentionMemory,
    TextMemory,
    TokenPositions,
    noise_levels,
)

__all__ = [
    "WAN_1_3B",
    "WAN_14B",
    "CausalWanTransformer",
    "RotaryTable",
    "SelfAttentionMemory",
    "TemporalShift",
    "TextMemory",
    "TokenPositions",
    "TransformerConfig",
    "noise_levels",
    "pass_bytes",
    "text_memory_bytes",
]
