"""Attention: one function, `attend`, whatever computes it underneath."""

from forcing_kv.attention.dispatch import attend

__all__ = ["attend"]
