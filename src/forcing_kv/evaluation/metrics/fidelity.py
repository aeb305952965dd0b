"""How near a video is to the reference's, pixel by pixel: PSNR and SSIM.

Both ask whether the *same* video came out. A stream that drifts to another one, as good as the first, loses both; so
they say how much a policy changes, and only a judge of the content says whether that is for the worse.
"""

import numpy as np

from forcing_kv.evaluation.libraries import library
from forcing_kv.evaluation.metrics.base import (
    Better,
    ChunkPair,
    Curve,
    Floats,
    Measured,
    Meter,
    Metric,
    Pixels,
    Series,
    Tools,
    chunk_means,
)

IDENTICAL_DB = 100.0
"""What a video counts in means of PSNR that equals the reference's, for which the ratio is infinite."""

_PEAK = 255.0
_LUMA = np.array([0.299, 0.587, 0.114])


def squared_errors(frames: Pixels, reference: Pixels) -> Floats:
    """Mean squared error of each frame, over pixels and channels: two of uint8 [frames, H, W, 3] -> [frames]."""
    difference = frames.astype(np.float64) - reference
    return np.asarray(np.square(difference).mean(axis=(1, 2, 3)))


def psnr(mean_squared_error: float) -> float:
    """Peak signal-to-noise ratio of 8-bit pictures, in dB; infinite for no error."""
    return 10 * float(np.log10(_PEAK**2 / mean_squared_error)) if mean_squared_error else float("inf")


def structural_similarities(frames: Pixels, reference: Pixels) -> Floats:
    """SSIM of each frame's luminance, as Wang et al. define it (2004, Gaussian window of deviation 1.5).

    Args:
        frames: uint8 [frames, H, W, 3], at least 11 pixels each way.
        reference: The same.

    Raises:
        ConfigurationError: scikit-image is missing.
    """
    similarity = library("skimage.metrics", what="SSIM").structural_similarity
    settings = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": _PEAK}
    pairs = zip(luminance(frames), luminance(reference), strict=True)
    return np.array([similarity(ours, theirs, **settings) for ours, theirs in pairs], dtype=np.float64)


def luminance(frames: Pixels) -> Floats:
    """uint8 RGB [..., 3] -> grey levels [...], 0 to 255, by ITU-R BT.601."""
    return np.asarray(frames @ _LUMA)


def _open_squared_errors(tools: Tools) -> Meter:
    return lambda pair: squared_errors(pair.frames, _reference(pair))


def _open_similarities(tools: Tools) -> Meter:
    library("skimage.metrics", what="SSIM")
    return lambda pair: structural_similarities(pair.frames, _reference(pair))


def _reference(pair: ChunkPair) -> Pixels:
    assert pair.reference_frames is not None
    return pair.reference_frames


def _psnr(video: Measured, reference: Measured) -> float:
    return min(IDENTICAL_DB, psnr(float(video.series[SQUARED_ERROR.name].mean())))


def _psnr_drawn(errors: Floats) -> Floats:
    """Decibels of mean errors; nothing where all videos are still identical."""
    return np.array([psnr(error) if error else np.nan for error in errors], dtype=np.float64)


SQUARED_ERROR = Series(name="squared-error", per="frame", open=_open_squared_errors, against_reference=True)
SIMILARITY = Series(name="ssim", per="frame", open=_open_similarities, against_reference=True)

PSNR = Metric(
    name="psnr",
    title="PSNR",
    group="Same video as the reference?",
    unit="dB",
    better=Better.HIGHER,
    about="Peak signal-to-noise ratio to the reference's frames, from the mean squared error of the whole video "
    f"(identical videos count {IDENTICAL_DB:g}). How nearly the same video came out, pixel by pixel; another one that "
    "is as good scores low.",
    series=(SQUARED_ERROR,),
    against_reference=True,
    compute=_psnr,
    curve=Curve(
        title="PSNR of the chunk, dB",
        of=lambda video, reference: chunk_means(video, SQUARED_ERROR.name, "frame"),
        finish=_psnr_drawn,
    ),
)

SSIM = Metric(
    name="ssim",
    title="SSIM",
    group="Same video as the reference?",
    better=Better.HIGHER,
    about="Structural similarity to the reference's frames (luminance, Gaussian window), mean over frames; 1 for "
    "identical videos. Like PSNR it asks for the same video, but for its structure more than for its levels.",
    series=(SIMILARITY,),
    against_reference=True,
    compute=lambda video, reference: float(video.series[SIMILARITY.name].mean()),
    curve=Curve(title="SSIM of the chunk", of=lambda video, reference: chunk_means(video, SIMILARITY.name, "frame")),
    digits=3,
)
