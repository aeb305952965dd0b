import numpy as np
import pytest

from comparisons import measured
from forcing_kv.errors import ConfigurationError
from forcing_kv.evaluation.metrics import METRICS, Tools
from forcing_kv.evaluation.metrics.fidelity import (
    SIMILARITY,
    luminance,
    psnr,
    squared_errors,
    structural_similarities,
)


@pytest.fixture
def frames():
    return np.random.default_rng(0).integers(0, 246, (3, 21, 34, 3), dtype=np.uint8)


def test_identical_videos(frames):
    errors = squared_errors(frames, frames)
    assert errors.tolist() == [0, 0, 0]
    assert psnr(errors.mean()) == float("inf")
    assert structural_similarities(frames, frames) == pytest.approx([1, 1, 1], abs=1e-12)


def test_psnr_of_a_constant_offset(frames):
    errors = squared_errors(frames + 10, frames)
    assert errors.tolist() == [100, 100, 100]
    assert psnr(errors.mean()) == pytest.approx(20 * np.log10(25.5))
    assert (squared_errors(frames, frames + 10) == errors).all()  # no wrapping around at 0


def test_psnr_of_a_video_is_that_of_scikit_image_over_all_its_pixels(frames):
    from skimage.metrics import peak_signal_noise_ratio

    other = np.random.default_rng(1).integers(0, 256, frames.shape, dtype=np.uint8)
    expected = peak_signal_noise_ratio(frames, other, data_range=255)
    assert psnr(squared_errors(other, frames).mean()) == pytest.approx(expected)


def test_ssim_of_two_flat_pictures():
    """Without structure only the term of the means is left: (2 a b + c) / (a^2 + b^2 + c)."""
    first, second = (np.full((1, 16, 16, 3), level, dtype=np.uint8) for level in (100, 150))
    constant = (0.01 * 255) ** 2
    expected = (2 * 100 * 150 + constant) / (100**2 + 150**2 + constant)
    assert structural_similarities(first, second) == pytest.approx([expected])


def test_ssim_sees_structure_that_moved(frames):
    assert structural_similarities(np.roll(frames, 5, axis=2), frames).max() < 0.2


def test_luminance_is_that_of_bt601():
    colours = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [80, 80, 80]], dtype=np.uint8)
    assert luminance(colours) == pytest.approx([76.245, 149.685, 29.07, 80])


def test_the_psnr_of_a_video_is_of_its_mean_error_and_finite_for_identical_ones():
    reference = measured(is_reference=True)
    half = measured()
    half.series["squared-error"][:] = 0
    half.series["squared-error"][::2] = 20.0
    mean = half.series["squared-error"].mean()
    assert METRICS["psnr"].compute(half, reference) == pytest.approx(10 * np.log10(255**2 / mean))
    assert METRICS["psnr"].compute(measured(**{"squared-error": 0.0}), reference) == 100
    assert METRICS["ssim"].compute(measured(ssim=0.75), reference) == 0.75


def test_the_curve_of_psnr_has_gaps_where_videos_are_identical():
    curve = METRICS["psnr"].curve
    video = measured()
    video.series["squared-error"][: video.chunk_starts[1]] = 0
    drawn = curve.finish(curve.of(video, measured(is_reference=True)))
    assert np.isnan(drawn[0])
    assert drawn[1:] == pytest.approx([10 * np.log10(255**2 / 25)] * 3)


def test_a_missing_library_is_named_with_the_extra_that_brings_it(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "skimage.metrics", None)
    with pytest.raises(ConfigurationError, match=r"SSIM needs scikit-image.*pip install 'forcing-kv\[evaluation\]'"):
        SIMILARITY.open(Tools())
