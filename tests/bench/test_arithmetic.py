"""The arithmetic of a pass against numbers worked out by hand."""

import pytest
import torch

from forcing_kv import FrameGeometry, Full, StreamCache, Window
from forcing_kv.bench import cache_work, pass_work
from forcing_kv.bench.arithmetic import history_tokens
from forcing_kv.wan import WAN_1_3B, TransformerConfig

SMALL = TransformerConfig(dim=24, ffn_dim=32, num_layers=2, num_heads=2, text_dim=8, text_len=4, freq_dim=8)
GEOMETRY = FrameGeometry(num_layers=2, num_heads=2, head_dim=12, frame_rows=2, frame_cols=3, chunk_frames=3)


def test_the_published_shapes():
    """At 480p: 11.7 TFLOP of linear layers, 0.44 of cross-attention, 1.35 of self-attention per frame read."""
    geometry = FrameGeometry(num_layers=30, num_heads=12, head_dim=128, frame_rows=30, frame_cols=52)
    first = pass_work(WAN_1_3B, geometry, history_tokens=0, dtype=torch.bfloat16)
    assert first.flops / 1e12 == pytest.approx(11.7 + 0.44 + 3 * 1.35, rel=5e-3)
    full = pass_work(WAN_1_3B, geometry, history_tokens=30 * 12 * geometry.tokens(18), dtype=torch.bfloat16)
    assert full.flops / 1e12 == pytest.approx(11.7 + 0.44 + 21 * 1.35, rel=5e-3)
    assert (full.bytes - first.bytes) / 1e9 == pytest.approx(18 * 0.2875, rel=1e-3)  # a latent frame of KV
    weights = 30 * (6 * 1536**2 + 2 * 1536 * 8960) * 2
    residual = 2 * 30 * 4680 * 1536 * 2
    assert first.bytes == weights + 6 * geometry.kv_bytes(1, bytes_per_value=2) + residual + 2 * 30 * 512 * 1536 * 2


@pytest.mark.parametrize("batch_size", [1, 2])
def test_every_term_by_hand(batch_size):
    """Weights are read once, whatever the batch; everything else is there for every item."""
    work = pass_work(SMALL, GEOMETRY, history_tokens=100, dtype=torch.float32, batch_size=batch_size)
    weights = 2 * (6 * 24 * 24 + 2 * 24 * 32)
    read = 100 + 2 * 2 * 18  # of 4 heads, the chunk of 18 tokens included
    assert work.flops == batch_size * (2 * 18 * weights + 2 * 4 * 18 * 4 * 24 + 4 * 18 * 12 * read)
    prompt, kv_read, kv_written, residual = 2 * 2 * 4 * 24, 2 * read * 12, 2 * 2 * 18 * 24, 2 * 2 * 18 * 24
    assert work.bytes == 4 * (weights + batch_size * (prompt + kv_read + kv_written + residual))


@pytest.mark.parametrize("kv_dtype", ["int8", "fp8"])
def test_a_quantised_cache_is_read_as_it_is_stored(kv_dtype):
    """Key and value of a head's token: 12 numbers of one byte, and a scale of two."""
    plain, quantised = (
        pass_work(SMALL, GEOMETRY, history_tokens=100, dtype=torch.float32, kv_dtype=stored, batch_size=2)
        for stored in (None, kv_dtype)
    )
    stored_tokens = 2 * (100 + 2 * 2 * 18)  # history read, and the chunk written
    assert plain.bytes - quantised.bytes == stored_tokens * 2 * (12 * 4 - (12 + 2))
    assert quantised.flops == plain.flops


def test_of_a_cache_is_what_it_reads_now():
    cache = StreamCache(GEOMETRY, Window(window_frames=6, sink_frames=1), batch_size=2, dtype=torch.bfloat16)
    for num_frames in (0, 3, 3):  # one sink and two recent frames
        assert history_tokens(cache) == 4 * GEOMETRY.tokens(num_frames)
        expected = pass_work(
            SMALL, GEOMETRY, history_tokens=4 * GEOMETRY.tokens(num_frames), dtype=torch.bfloat16, batch_size=2
        )
        assert cache_work(SMALL, cache) == expected
        cache.commit()
    cache = StreamCache(GEOMETRY, Window(window_frames=6, sink_frames=1), kv_dtype="int8")
    assert cache_work(SMALL, cache) == pass_work(
        SMALL, GEOMETRY, history_tokens=0, dtype=torch.float32, kv_dtype="int8"
    )


def test_a_full_cache_reads_everything():
    cache = StreamCache(GEOMETRY, Full(), device="meta")
    for _ in range(5):
        cache.commit()
    assert history_tokens(cache) == 4 * GEOMETRY.tokens(15)
