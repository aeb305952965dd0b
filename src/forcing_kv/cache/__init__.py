"""The cache of one stream and the buffers it is made of."""

from forcing_kv.cache.observer import AttentionObserver, AttentionRead
from forcing_kv.cache.positions import POSITIONS, TemporalRotation, check_relative_positions
from forcing_kv.cache.recache import RecachePass
from forcing_kv.cache.size import cache_bytes, is_unbounded
from forcing_kv.cache.store import KV_DTYPES, check_kv_dtype
from forcing_kv.cache.stream_cache import StreamCache

__all__ = [
    "KV_DTYPES",
    "POSITIONS",
    "AttentionObserver",
    "AttentionRead",
    "RecachePass",
    "StreamCache",
    "TemporalRotation",
    "cache_bytes",
    "check_kv_dtype",
    "check_relative_positions",
    "is_unbounded",
]
