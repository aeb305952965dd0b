import numpy as np
import pytest

from comparisons import measured
from forcing_kv.evaluation.metrics import METRICS, ChunkPair, Tools, series_of
from forcing_kv.evaluation.metrics.drift import channel_levels, contrasts, sharpnesses


def grey(levels, num_frames=2):
    return np.broadcast_to(np.asarray(levels, dtype=np.uint8)[None, ..., None], (num_frames, *np.shape(levels), 3))


def test_statistics_of_known_pictures():
    halves = np.repeat([[0, 255]], 6, axis=0).repeat(5, axis=1)
    assert contrasts(grey(halves)) == pytest.approx([127.5, 127.5])
    ramp = np.broadcast_to(3 * np.arange(11), (7, 11))
    assert sharpnesses(grey(ramp)) == pytest.approx([3, 3])
    assert sharpnesses(grey(ramp.T)) == pytest.approx([3, 3])
    assert sharpnesses(grey(ramp[:, :7] + ramp[:, :7].T)) == pytest.approx([18**0.5] * 2)
    assert contrasts(grey(np.full((4, 4), 9))) == pytest.approx([0, 0], abs=1e-9)
    colour = np.full((1, 4, 6, 3), (10, 20, 30), dtype=np.uint8)
    assert [channel_levels(colour, channel).tolist() for channel in range(3)] == [[10], [20], [30]]


def test_a_video_that_stays_as_it_is_has_no_drift():
    for name in ("drift-colour", "drift-contrast", "drift-sharpness"):
        assert METRICS[name].compute(measured(), measured()) == 0


def test_drift_is_of_the_last_quarter_from_the_first():
    video = measured(num_chunks=4)  # 45 frames: quarters of 11
    video.series["red"][-11:] += 3
    video.series["blue"][-11:] -= 4
    assert METRICS["drift-colour"].compute(video, video) == pytest.approx(5)
    video.series["contrast"][:11], video.series["contrast"][-11:] = 30, 50
    assert METRICS["drift-contrast"].compute(video, video) == pytest.approx(50)
    video.series["contrast"][11:-11] = 500  # what is in between does not matter
    video.series["contrast"][:11], video.series["contrast"][-11:] = 50, 30
    assert METRICS["drift-contrast"].compute(video, video) == pytest.approx(50)
    assert METRICS["drift-sharpness"].compute(measured(sharpness=0.0), video) is None


def test_very_short_videos_have_quarters_of_a_frame():
    video = measured(num_chunks=1)
    video.series["red"][:2], video.series["red"][-2:] = 10, 20
    assert METRICS["drift-colour"].compute(video, video) == pytest.approx(10)


def test_curves_begin_where_the_first_quarter_is():
    video = measured(num_chunks=4)
    video.series["green"][21:] += 7
    assert METRICS["drift-colour"].curve.of(video, video) == pytest.approx([0, 0, 7, 7])
    video.series["sharpness"][33:] *= 1.5
    assert METRICS["drift-sharpness"].curve.of(video, video) == pytest.approx([0, 0, 0, 50])
    assert np.isnan(METRICS["drift-contrast"].curve.of(measured(contrast=0.0), video)).all()


def test_all_of_it_is_measured_of_frames():
    frames = np.random.default_rng(0).integers(0, 256, (5, 8, 10, 3), dtype=np.uint8)
    pair = ChunkPair(frames=frames, previous=None, latents=np.zeros((1, 1, 1, 1), dtype=np.float32))
    series = series_of([METRICS["drift-colour"], METRICS["drift-contrast"]])
    assert [each.name for each in series] == ["red", "green", "blue", "contrast"]
    values = [each.open(Tools())(pair) for each in series]
    assert values[1] == pytest.approx(frames[..., 1].mean(axis=(1, 2)))
    assert all(each.shape == (5,) for each in values)
