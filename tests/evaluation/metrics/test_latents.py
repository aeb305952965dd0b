import numpy as np
import pytest

from forcing_kv.evaluation.metrics import METRICS, ChunkPair, Tools
from forcing_kv.evaluation.metrics.latents import COSINES, cosine


def test_cosines_of_known_vectors():
    values = np.random.default_rng(0).normal(size=(3, 4, 5, 7)).astype(np.float32)
    assert cosine(values, values) == pytest.approx(1)
    assert cosine(3 * values, values) == pytest.approx(1)
    assert cosine(-values, values) == pytest.approx(-1)
    assert cosine(np.float32([1, 0]), np.float32([0, 2])) == 0
    assert cosine(np.float32([1, 1]), np.float32([1, 0])) == pytest.approx(0.5**0.5)


def test_of_nothing():
    zero, one = np.zeros(3, dtype=np.float32), np.ones(3, dtype=np.float32)
    assert (cosine(zero, zero), cosine(zero, one), cosine(one, zero)) == (1, 0, 0)


def test_a_value_per_chunk():
    latents = np.random.default_rng(0).normal(size=(3, 2, 4, 4)).astype(np.float32)
    frames = np.zeros((9, 8, 8, 3), dtype=np.uint8)
    pair = ChunkPair(frames=frames, previous=None, latents=latents, reference_latents=-latents)
    assert COSINES.open(Tools())(pair) == pytest.approx([-1])
    assert METRICS["cosine"].against_reference
