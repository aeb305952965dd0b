"""Moving rotated keys along the temporal axis, against rotating them from scratch."""

import pytest
import torch

from forcing_kv.wan import CausalWanTransformer, RotaryTable, TemporalShift, TransformerConfig

ROWS, COLS = 2, 3


def rotate(x, positions, theta=10000.0):
    return RotaryTable.build(positions, rows=ROWS, cols=COLS, head_dim=x.shape[-1], theta=theta).rotate(x)


def random_keys(num_frames, head_dim, dtype=torch.float32):
    shape = (2, num_frames * ROWS * COLS, 3, head_dim)
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=dtype)


@pytest.mark.parametrize("head_dim", [2, 4, 10, 16, 128])
@pytest.mark.parametrize("num_frames", [1, -3, 18, -5000])
@pytest.mark.parametrize("theta", [50.0, 10000.0])
def test_a_shift_is_the_rotation_from_scratch(head_dim, num_frames, theta):
    raw = random_keys(4, head_dim)
    keys = rotate(raw, range(7, 11), theta)
    TemporalShift(head_dim, theta=theta).shift(keys, num_frames)
    torch.testing.assert_close(keys, rotate(raw, range(7 + num_frames, 11 + num_frames), theta), rtol=0, atol=2e-6)


def test_there_and_back_again():
    keys = rotate(random_keys(3, 16), range(3))
    shift, before = TemporalShift(16), keys.clone()
    for _ in range(2):  # tables are kept; the second time must not differ
        shift.shift(keys, 6)
        assert not torch.allclose(keys, before, atol=0.1)
        shift.shift(keys, -6)
        torch.testing.assert_close(keys, before)


def test_only_the_view_and_only_the_temporal_axis_turn():
    keys = random_keys(4, 16, torch.bfloat16)
    before = keys.clone()
    frame = ROWS * COLS
    TemporalShift(16).shift(keys[:, frame : 3 * frame, 1:], 2)
    changed = keys != before
    assert changed[:, frame : 3 * frame, 1:, :2].any()
    changed[:, frame : 3 * frame, 1:, :8] = False  # of 16 values the temporal axis has 8
    assert not changed.any()
    assert keys.dtype == torch.bfloat16


def test_the_transformer_gives_the_shift_of_its_own_keys():
    config = TransformerConfig(dim=32, ffn_dim=8, num_layers=1, num_heads=2, text_dim=4, freq_dim=8, rope_theta=50.0)
    transformer = CausalWanTransformer(config)
    raw = random_keys(2, config.head_dim)
    keys = transformer.token_positions([0, 1], ROWS, COLS).rope.rotate(raw)
    transformer.temporal_shift().shift(keys, 5)
    torch.testing.assert_close(keys, transformer.token_positions([5, 6], ROWS, COLS).rope.rotate(raw))
