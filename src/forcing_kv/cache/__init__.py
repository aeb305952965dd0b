"""The cache of one stream and the buffers it is made of."""

from forcing_kv.cache.size import cache_bytes, is_unbounded
from forcing_kv.cache.stream_cache import RecachePass, StreamCache

__all__ = ["RecachePass", "StreamCache", "cache_bytes", "is_unbounded"]
