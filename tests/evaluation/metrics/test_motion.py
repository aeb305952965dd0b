import numpy as np
import pytest

from comparisons import measured
from forcing_kv.evaluation.metrics import METRICS


def test_amplitude_is_the_mean_over_all_pairs():
    video = measured(num_chunks=2)
    video.series["flow"][:] = np.arange(20)
    assert METRICS["motion"].compute(video, video) == 9.5


def test_ratio_to_the_reference():
    ratio = METRICS["motion-ratio"].compute
    assert ratio(measured(flow=0.5), measured(flow=2.0)) == pytest.approx(0.25)
    assert ratio(measured(flow=0.0), measured(flow=2.0)) == 0
    assert ratio(measured(flow=0.5), measured(flow=0.0)) is None


def test_the_curve_has_a_value_per_chunk():
    video = measured(num_chunks=3)
    video.series["flow"][:] = [1] * 8 + [2] * 12 + [3] * 12  # a pair belongs to the chunk of its second frame
    assert METRICS["motion"].curve.of(video, video).tolist() == [1, 2, 3]
