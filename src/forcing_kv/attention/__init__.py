"""Attention: one function, `attend`, and the back ends that a `StreamCache` can compute it with."""

from forcing_kv.attention.backend import AttentionBackend, GroupKV, Placement
from forcing_kv.attention.dispatch import attend
from forcing_kv.attention.orders import ORDERS, order_for
from forcing_kv.attention.places import heads_at, join_heads
from forcing_kv.attention.registry import AUTO, BACKENDS, choose_backend

__all__ = [
    "AUTO",
    "BACKENDS",
    "ORDERS",
    "AttentionBackend",
    "GroupKV",
    "Placement",
    "attend",
    "choose_backend",
    "heads_at",
    "join_heads",
    "order_for",
]
