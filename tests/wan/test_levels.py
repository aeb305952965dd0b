"""Noise levels worked out once, against those of every frame."""

import pytest
import torch

from forcing_kv.wan.levels import level_bytes
from small_transformer import CONFIG, Dense, build


@torch.no_grad()
@pytest.mark.parametrize("timestep", [0.0, 437.5, 1000.0])
def test_a_pass_at_a_level_is_one_whose_frames_all_have_it(timestep):
    model = build()
    latents = torch.randn(2, 3, 5, 4, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    arguments = {
        "text": model.encode_text(torch.ones(2, 6, 7, dtype=torch.float64)),
        "positions": model.token_positions(range(3), 2, 3),
        "memory": Dense(),
    }
    each = model(latents, torch.full((2, 3), timestep), **arguments)
    level = model.noise_level(timestep)
    torch.testing.assert_close(model.at_level(latents, level, **arguments), each)
    torch.testing.assert_close(model.at_level(latents, timestep, **arguments), each)
    assert level.timesteps.tolist() == [[timestep]]


@torch.no_grad()
def test_vectors_are_those_of_the_blocks_and_the_head():
    model = build()
    time, by_block = model.embed_time(torch.tensor([[300.0, 600.0]]))
    vectors = model.modulation(torch.tensor([[300.0, 600.0]]))
    plus = torch.tensor([0, 1, 0, 0, 1, 0], dtype=torch.float64)[:, None]
    for layer, block in enumerate(model.blocks):
        for frame in range(2):
            expected = block.modulation[0] + by_block[0, frame] + plus
            torch.testing.assert_close(vectors.of_block(layer)[:, 0, frame, 0], expected)
    torch.testing.assert_close(vectors.of_head()[:, 0, 1, 0], model.head.modulation[0] + time[0, 1] + plus[:2])


def test_bytes():
    level = build().float().noise_level(5.0)
    assert level.modulation.vectors.nbytes == level_bytes(CONFIG.num_layers, CONFIG.dim, torch.float32)
