"""Cosine of a video's latents with the reference's, chunk by chunk: where the two part, before any decoder."""

import numpy as np
import numpy.typing as npt

from forcing_kv.evaluation.metrics.base import Better, ChunkPair, Curve, Floats, Meter, Metric, Series, Tools


def cosine(latents: npt.NDArray[np.float32], reference: npt.NDArray[np.float32]) -> float:
    """Cosine of two arrays of one shape, each taken as one vector; 1 where both are zero, 0 where one is."""
    ours, theirs = (values.astype(np.float64).ravel() for values in (latents, reference))
    norms = float(np.linalg.norm(ours) * np.linalg.norm(theirs))
    if not norms:
        return float(ours.any() == theirs.any())
    return float(ours @ theirs) / norms


def _open(tools: Tools) -> Meter:
    def measure(pair: ChunkPair) -> Floats:
        assert pair.reference_latents is not None
        return np.array([cosine(pair.latents, pair.reference_latents)])

    return measure


COSINES = Series(name="cosine", per="chunk", open=_open, against_reference=True)

COSINE = Metric(
    name="cosine",
    title="Latent cosine",
    group="Same video as the reference?",
    better=Better.HIGHER,
    about="Cosine between the latents of a chunk and those of the reference's, mean over chunks; 1 for identical "
    "videos. The curve shows when the two part, without the decoder in between.",
    series=(COSINES,),
    against_reference=True,
    compute=lambda video, reference: float(video.series[COSINES.name].mean()),
    curve=Curve(title="cosine of the chunk", of=lambda video, reference: video.series[COSINES.name]),
    digits=3,
)
