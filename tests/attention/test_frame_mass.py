"""Attention mass by frame: against closed forms and the whole matrix, in bounded memory."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from forcing_kv.calibration import frame_mass


class LargestTensor(TorchDispatchMode):
    """Bytes of the largest storage that is made while it is on."""

    def __init__(self):
        super().__init__()
        self.num_bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        there = {x.untyped_storage()._cdata for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)}
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage()._cdata not in there:
                self.num_bytes = max(self.num_bytes, tensor.untyped_storage().nbytes())
        return result


def whole_matrix(q, k, frame_tokens):
    """The textbook: all weights at once, in float64."""
    scores = torch.einsum("bqhd,bkhd->bhqk", q.double(), k.double()) * q.shape[-1] ** -0.5
    weights = scores.softmax(dim=-1).permute(0, 2, 1, 3)
    return weights.unflatten(-1, (-1, frame_tokens)).sum(dim=-1).float()


def test_uniform_attention_gives_every_frame_its_share():
    k = torch.randn(1, 5 * 3, 2, 4)
    torch.testing.assert_close(frame_mass(torch.zeros(1, 7, 2, 4), k, frame_tokens=3), torch.full((1, 7, 2, 5), 0.2))


def test_masses_that_are_known():
    """Scores of 0 and log 3: one token of a frame weighs 3, all others 1."""
    k = torch.zeros(1, 3 * 2, 1, 4)
    k[0, 2, 0, 0] = 1  # the first token of frame 1
    q = torch.zeros(1, 1, 1, 4)
    q[..., 0] = 2 * torch.log(torch.tensor(3.0))  # 2 is the square root of the head size
    assert frame_mass(q, k, frame_tokens=2).flatten().tolist() == pytest.approx([2 / 8, 4 / 8, 2 / 8])


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_it_is_the_whole_matrix(data):
    batch_size, num_heads = data.draw(st.integers(1, 2)), data.draw(st.integers(1, 5))
    head_dim, frame_tokens = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 7))
    num_frames, num_queries = data.draw(st.integers(1, 15)), data.draw(st.integers(1, 30))  # more frames than values
    max_bytes = data.draw(st.integers(1, 20_000))  # heads at once that do not divide the number of heads
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**20)))
    q = 3 * torch.randn(batch_size, num_queries, num_heads + 1, head_dim, generator=generator)[:, :, 1:]  # a view
    k = 3 * torch.randn(batch_size, num_frames * frame_tokens, num_heads, head_dim, generator=generator)
    masses = frame_mass(q, k, frame_tokens=frame_tokens, max_bytes=max_bytes)
    assert masses.dtype == torch.float32
    torch.testing.assert_close(masses, whole_matrix(q, k, frame_tokens), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("max_bytes", [1, 10_000, 150_000, 10**9])
def test_no_temporary_is_larger_than_said(max_bytes):
    frame_tokens, num_frames, head_dim, num_heads = 30, 9, 8, 5
    q = torch.randn(1, 3 * frame_tokens, num_heads, head_dim)
    k = torch.randn(1, num_frames * frame_tokens, num_heads, head_dim)
    one_head = k[:, :, :1].nbytes
    with LargestTensor() as largest:
        masses = frame_mass(q, k, frame_tokens=frame_tokens, max_bytes=max_bytes)
    assert largest.num_bytes <= max(max_bytes, one_head, masses.nbytes)
    assert largest.num_bytes < q.shape[1] * k.shape[1] * q.element_size()  # one head's tokens x tokens


def test_the_rounding_of_bfloat16_is_as_said():
    generator = torch.Generator().manual_seed(0)
    q, k = (2 * torch.randn(1, num, 4, 32, generator=generator).bfloat16() for num in (3 * 50, 12 * 50))
    masses, exact = frame_mass(q, k, frame_tokens=50), whole_matrix(q, k, 50)
    assert ((masses - exact).abs() <= 2**-7 * exact).all()

    def scores(masses):
        return (masses[..., -4:].sum(-1) / masses[..., 3:].sum(-1)).mean(dim=(0, 1))

    assert (scores(masses) - scores(exact)).abs().max() < 1e-3


def test_what_is_not_there_is_nothing_and_not_nan():
    k = torch.zeros(1, 4, 1, 2)
    k[0, 0] = 1e4
    masses = frame_mass(torch.full((1, 2, 1, 2), 1e4), k, frame_tokens=1)
    assert masses[0, :, 0].tolist() == [[1, 0, 0, 0]] * 2
