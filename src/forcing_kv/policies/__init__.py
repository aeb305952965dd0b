"""Cache policies: which frames, or parts of frames, each attention head keeps.

One policy per file; `registry` knows them by name. A policy is settings and rules only, no tensors: `forcing_kv.cache`
does the moving.
"""

from forcing_kv.policies.base import CachePlan, CachePolicy, HeadAttention, HeadGroup, Selection
from forcing_kv.policies.dummy_forcing import DummyForcing
from forcing_kv.policies.forcing_kv import ForcingKV
from forcing_kv.policies.full import Full
from forcing_kv.policies.registry import POLICIES, describe_settings, parse_policy, split_policies
from forcing_kv.policies.window import Window

__all__ = [
    "POLICIES",
    "CachePlan",
    "CachePolicy",
    "DummyForcing",
    "ForcingKV",
    "Full",
    "HeadAttention",
    "HeadGroup",
    "Selection",
    "Window",
    "describe_settings",
    "parse_policy",
    "split_policies",
]
