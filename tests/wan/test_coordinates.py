"""Absolute coordinates of tokens: their values, and what a model can do with them."""

import math
from dataclasses import replace

import pytest
import torch

import small_transformer
from forcing_kv.wan.coordinates import NUM_COORDINATES, coordinates
from small_transformer import Dense, build

PLAIN = small_transformer.CONFIG
TOLD = replace(PLAIN, coordinates=True)


def run(model, latents, frames):
    timesteps = torch.full(latents.shape[:2], 500.0)
    return small_transformer.run(model, latents, timesteps, frames)


def grid(frames, rows, cols):
    """[frames, rows, cols, coordinates]."""
    values = coordinates(frames, rows=rows, cols=cols)
    assert values.shape == (1, len(frames) * rows * cols, NUM_COORDINATES)
    assert values.dtype == torch.float32
    return values.view(len(frames), rows, cols, -1)


def axis(along):
    waves = [wave(math.pi * harmonic * along) for harmonic in (1, 2) for wave in (math.sin, math.cos)]
    return [along, *waves]


@pytest.mark.parametrize(
    ("size", "place", "height", "width"),
    [((4, 5), (0, 0), -0.75, -0.8), ((4, 5), (3, 2), 0.75, 0), ((1, 1), (0, 0), 0, 0), ((3, 2), (1, 1), 0, 0.5)],
)
def test_values_of_a_known_token(size, place, height, width):
    token = grid([0, 16], *size)[1, *place]
    expected = [math.exp(-8), math.exp(-2), *axis(height), *axis(width)]
    torch.testing.assert_close(token, torch.tensor(expected), atol=1e-6, rtol=1e-5)
    assert len(expected) == NUM_COORDINATES == 12


@pytest.mark.parametrize(("rows", "cols"), [(6, 10), (3, 5), (1, 7)])
def test_both_axes_are_symmetric_about_the_middle(rows, cols):
    places = grid([3], rows, cols)[0, :, :, 2:]
    odd = torch.tensor([-1.0, -1, 1, -1, 1])  # the distance and its sines change sign, the cosines do not
    height, width = places[..., :5], places[..., 5:]
    torch.testing.assert_close(height.flip(0), height * odd, atol=1e-6, rtol=0)
    torch.testing.assert_close(width.flip(1), width * odd, atol=1e-6, rtol=0)
    assert (height == height[:, :1]).all()
    assert (width == width[:1]).all()
    assert places.abs().max() <= 1


def test_they_mean_the_same_share_of_the_picture_on_any_grid():
    coarse, fine = grid([0], 2, 3)[0], grid([0], 6, 9)[0]
    torch.testing.assert_close(coarse, fine[1::3, 1::3])  # the middle of each coarse token


def test_tokens_are_told_apart_and_none_is_far_from_its_neighbours():
    tokens = grid(range(3), 6, 10).flatten(0, 2)
    assert torch.cdist(tokens, tokens).fill_diagonal_(9).min() > 0.05
    alone = grid([200], 6, 10).flatten(0, 2)  # late in a stream too
    assert torch.cdist(alone, alone).fill_diagonal_(9).min() > 0.05


def test_the_start_of_the_stream_fades():
    start = grid(range(0, 300), 1, 2)[:, 0, 0, :2]
    assert start[0].tolist() == [1, 1]
    assert (start[:20].diff(dim=0) < 0).all()
    torch.testing.assert_close(start[16], torch.tensor([math.exp(-8), math.exp(-2)]))
    assert start[-1].max() < 1e-15


# In the transformer


def test_only_a_model_with_coordinates_tells_left_from_right_and_top_from_bottom():
    latents = torch.ones(1, 2, 5, 4, 6, dtype=torch.float64)
    frames = [0, 1]
    without = run(build(PLAIN), latents, frames).view(1, 2, 4, 2, 2, 3, 2)
    # Keys and values are alike up to rotation, which attention over equal values does not see.
    torch.testing.assert_close(without, without[:, :, :, :1, :, :1].expand_as(without), atol=1e-9, rtol=1e-9)
    out = run(build(TOLD), latents, frames).view(1, 2, 4, 2, 2, 3, 2)
    assert (out[..., 0, :] - out[..., 2, :]).abs().max() > 1e-3
    assert (out[:, :, :, 0] - out[:, :, :, 1]).abs().max() > 1e-3


def test_a_model_with_coordinates_knows_the_start_of_the_stream_and_forgets_it():
    latents = torch.randn(1, 2, 5, 4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    model = build(TOLD)
    start, late, later = (run(model, latents, [frame, frame + 1]) for frame in (0, 300, 5000))
    assert (start - late).abs().max() > 1e-3
    torch.testing.assert_close(late, later, rtol=1e-4, atol=1e-5)


def test_it_is_the_model_without_them_where_their_weights_are_zero():
    model, plain = build(TOLD), build(PLAIN)
    weights = model.state_dict()
    added = {name: weights.pop(name) for name in list(weights) if name.startswith("coordinate_embedding")}
    assert {name: list(value.shape) for name, value in added.items()} == {
        "coordinate_embedding.weight": [36, NUM_COORDINATES],
        "coordinate_embedding.bias": [36],
    }
    plain.load_state_dict(weights)
    latents = torch.randn(2, 2, 5, 6, 4, dtype=torch.float64)
    assert not torch.allclose(run(model, latents, [0, 1]), run(plain, latents, [0, 1]))
    torch.nn.init.zeros_(model.coordinate_embedding.weight)
    torch.nn.init.zeros_(model.coordinate_embedding.bias)
    assert torch.equal(run(model, latents, [0, 1]), run(plain, latents, [0, 1]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_embedding_is_made_once_per_chunk_in_the_dtype_of_the_weights(dtype):
    model = build(TOLD).to(dtype)
    positions = model.token_positions(range(6, 9), 2, 3)
    assert positions.embedding.shape == (1, 3 * 6, 36)
    assert positions.embedding.dtype == dtype
    assert build(PLAIN).token_positions(range(3), 2, 3).embedding is None


def test_gradients_reach_the_coordinates():
    model = build(TOLD)
    positions = model.token_positions([0], 2, 3)
    text = model.encode_text(torch.ones(1, 6, 7, dtype=torch.float64))
    latents = torch.randn(1, 1, 5, 4, 6, dtype=torch.float64)
    model(latents, torch.full((1, 1), 500.0), text=text, positions=positions, memory=Dense()).square().sum().backward()
    assert model.coordinate_embedding.weight.grad.abs().max() > 0
