import numpy as np
import pytest

from comparisons import measured
from forcing_kv.evaluation.metrics import METRICS
from forcing_kv.evaluation.metrics.boundaries import (
    boundary_jump,
    boundary_pairs,
    chunk_discontinuity,
    flow_by_place,
)
from forcing_kv.geometry import pixel_frames

STARTS = tuple(pixel_frames(3 * chunk) for chunk in range(5))  # 0, 9, 21, 33, 45
NUM_PAIRS = pixel_frames(15) - 1


def test_boundaries_are_where_chunks_begin():
    assert STARTS == (0, 9, 21, 33, 45)
    assert boundary_pairs(STARTS) == [8, 20, 32, 44]
    assert boundary_pairs(tuple(pixel_frames(chunk) for chunk in range(4))) == [0, 4, 8]  # a frame-wise model
    assert boundary_pairs((0,)) == []


def noisy(seed=0):
    return 1 + 0.1 * np.random.default_rng(seed).normal(size=NUM_PAIRS)


def test_a_jump_at_the_boundaries_raises_ours_and_elsewhere_it_does_not():
    boundaries = boundary_pairs(STARTS)
    plain = boundary_jump(noisy(), boundaries)
    assert 0.3 < plain < 2
    for jump in (0.8, -0.8):  # a start and a halt show alike
        there, elsewhere = noisy(), noisy()
        there[boundaries] += jump
        elsewhere[[4, 14, 26, 38]] += jump
        assert boundary_jump(there, boundaries) > 4 * plain
        assert boundary_jump(elsewhere, boundaries) < plain


def test_the_fields_metric_does_not_know_where():
    boundaries = boundary_pairs(STARTS)
    there, elsewhere = noisy(), noisy()
    there[boundaries], elsewhere[[4, 14, 26, 38]] = 2, 2
    assert chunk_discontinuity(there, 4) == pytest.approx(chunk_discontinuity(elsewhere, 4), rel=0.02)
    assert chunk_discontinuity(there, 4) > 1.5


def test_known_values():
    magnitudes = np.ones(NUM_PAIRS)
    assert chunk_discontinuity(magnitudes, 4) == 1
    assert boundary_jump(magnitudes, boundary_pairs(STARTS)) == 1
    magnitudes[boundary_pairs(STARTS)] = 3
    assert chunk_discontinuity(magnitudes, 4) == pytest.approx(3 / (1 + 2 * 4 / NUM_PAIRS))
    # Those beside a boundary jump by half as much, and are in neither mean: elsewhere nothing jumps at all.
    assert boundary_jump(magnitudes, boundary_pairs(STARTS)) == pytest.approx((2 + 1e-3) / 1e-3)


def test_an_even_speed_up_is_no_jump():
    assert boundary_jump(np.linspace(1, 5, NUM_PAIRS), boundary_pairs(STARTS)) == pytest.approx(1, abs=1e-9)


def test_where_nothing_is_defined():
    assert chunk_discontinuity(np.ones(8), 0) is None
    assert chunk_discontinuity(np.zeros(20), 1) is None
    assert boundary_jump(np.ones(8), []) is None
    assert boundary_jump(np.zeros(NUM_PAIRS), boundary_pairs(STARTS)) == 1
    assert boundary_jump(np.ones(4), [1, 3]) is None  # nothing else is left
    assert np.isnan(flow_by_place(measured(num_chunks=1))).all()
    assert np.isnan(flow_by_place(measured(flow=0.0))).all()


def test_flow_by_place_shows_the_boundary():
    by_place = flow_by_place(measured(num_chunks=4, flow=1.0, boundary_flow=4.0))
    assert len(by_place) == 12
    assert by_place == pytest.approx(np.array([4.0] + [1.0] * 11) / 1.25)


def test_metrics_of_a_video():
    video = measured(num_chunks=4, flow=1.0, boundary_flow=2.0)
    num_pairs = pixel_frames(12) - 1
    assert METRICS["discontinuity"].compute(video, video) == pytest.approx(2 / (1 + 3 / num_pairs))
    assert METRICS["boundary-jump"].compute(video, video) == pytest.approx(1001)
    assert METRICS["boundary-jump"].compute(measured(num_chunks=1), video) is None
