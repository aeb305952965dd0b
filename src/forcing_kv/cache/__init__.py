"""The cache of one stream and the buffers it is made of."""

from forcing_kv.cache.stream_cache import RecachePass, StreamCache

__all__ = ["RecachePass", "StreamCache"]
