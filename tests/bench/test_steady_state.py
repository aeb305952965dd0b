"""The benchmark's arithmetic against numbers worked out by hand, and that it times the states it says."""

import pytest
import torch

from forcing_kv import ForcingKV, FrameGeometry, Full, HeadMap, StreamCache, Window
from forcing_kv.bench import measure_steady_state, pass_flops
from forcing_kv.wan import WAN_1_3B, CausalWanTransformer, TransformerConfig


def test_arithmetic_of_the_published_shapes():
    """GPU.md of the design: 11.7 TFLOP linear, 0.44 cross, 1.35 self-attention per frame read, at 480p."""
    geometry = FrameGeometry(num_layers=30, num_heads=12, head_dim=128, frame_rows=30, frame_cols=52)
    with torch.device("meta"):
        cache = StreamCache(geometry, Full(), device="meta")
    assert pass_flops(WAN_1_3B, cache) / 1e12 == pytest.approx(11.7 + 0.44 + 3 * 1.35, rel=5e-3)


def test_each_policy_is_timed_in_its_own_state():
    config = TransformerConfig(dim=24, ffn_dim=32, num_layers=2, num_heads=2, text_dim=8, text_len=4, freq_dim=8)
    torch.manual_seed(0)
    transformer = CausalWanTransformer(config).eval()
    geometry = FrameGeometry(num_layers=2, num_heads=2, head_dim=12, frame_rows=2, frame_cols=3)
    policies = {
        "full": Full(),
        "window": Window(),
        "forcing-kv": ForcingKV(head_map=HeadMap(model="test", roles=("sd", "sd"))),
    }
    rows = measure_steady_state(transformer, geometry, policies, repeats=3)
    assert [row.policy for row in rows] == ["full", "window", "forcing-kv"]
    assert [row.frames_read for row in rows] == [21, 12, (5 + 5 + 5 + 6) / 4]
    frame_bytes = geometry.kv_bytes(1, bytes_per_value=4)
    assert [row.cache_bytes / frame_bytes for row in rows] == [24 + 3, 12, (5 + 5 + 5 + 6) / 4]
    for row in rows:
        assert len(row.chunk_ms) == 3
        assert min(row.chunk_ms) <= row.steady_chunk_ms <= max(row.chunk_ms)
        linear_and_cross = 2 * 2 * 18 * (6 * 24**2 + 2 * 24 * 32) + 2 * 4 * 18 * 4 * 24
        assert row.pass_tflop * 1e12 == pytest.approx(linear_and_cross + 2 * 4 * 18 * row.frames_read * 6 * 24)
