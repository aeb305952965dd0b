"""The causal Wan transformer, at any size, with the state-dict names of the released checkpoints."""

from forcing_kv.wan.config import WAN_1_3B, WAN_14B, TransformerConfig
from forcing_kv.wan.fp8 import PRECISIONS, check_precision, weights_bytes
from forcing_kv.wan.levels import Modulation, NoiseLevel
from forcing_kv.wan.pass_inputs import SelfAttentionMemory, TextMemory
from forcing_kv.wan.rope import RotaryTable, TemporalShift
from forcing_kv.wan.size import pass_bytes, text_memory_bytes
from forcing_kv.wan.transformer import CausalWanTransformer, Pieces, TokenPositions

__all__ = [
    "PRECISIONS",
    "WAN_1_3B",
    "WAN_14B",
    "CausalWanTransformer",
    "Modulation",
    "NoiseLevel",
    "Pieces",
    "RotaryTable",
    "SelfAttentionMemory",
    "TemporalShift",
    "TextMemory",
    "TokenPositions",
    "TransformerConfig",
    "check_precision",
    "pass_bytes",
    "text_memory_bytes",
    "weights_bytes",
]
