"""The transformer: names, invariances, and that heads may lie in any order."""

import pytest
import torch

from forcing_kv import ConfigurationError
from forcing_kv.wan import WAN_1_3B, WAN_14B, CausalWanTransformer, RotaryTable, TransformerConfig
from small_transformer import Dense, build, run


def test_state_dict_has_the_released_names():
    names = set(build().state_dict())
    block = {name.removeprefix("blocks.1.") for name in names if name.startswith("blocks.1.")}
    linear = {f"{part}.{w}" for part in ("q", "k", "v", "o") for w in ("weight", "bias")}
    attention = linear | {"norm_q.weight", "norm_k.weight"}
    assert block == (
        {"modulation", "norm3.weight", "norm3.bias", "ffn.0.weight", "ffn.0.bias", "ffn.2.weight", "ffn.2.bias"}
        | {f"self_attn.{name}" for name in attention}
        | {f"cross_attn.{name}" for name in attention}
    )
    linear_layers = {
        "patch_embedding",
        "text_embedding.0",
        "text_embedding.2",
        "time_embedding.0",
        "time_embedding.2",
        "time_projection.1",
        "head.head",
    }
    others = {name for name in names if not name.startswith("blocks.")}
    assert others == {f"{layer}.{w}" for layer in linear_layers for w in ("weight", "bias")} | {"head.modulation"}


@pytest.mark.parametrize(("config", "billions"), [(WAN_1_3B, 1.419), (WAN_14B, 14.288)])
def test_released_sizes(config, billions):
    with torch.device("meta"):
        model = CausalWanTransformer(config)
    assert sum(p.numel() for p in model.parameters()) / 1e9 == pytest.approx(billions, abs=1e-3)
    assert model.state_dict()["blocks.0.modulation"].shape == (1, 6, config.dim)


@pytest.mark.parametrize(("rows", "cols"), [(2, 2), (3, 5), (1, 7)])
def test_output_has_the_shape_of_the_latents(rows, cols):
    latents = torch.randn(2, 2, 5, 2 * rows, 2 * cols, dtype=torch.float64)
    assert run(build(), latents, torch.full((2, 2), 500.0)).shape == (2, 2, 4, 2 * rows, 2 * cols)


def test_each_frame_has_its_own_noise_level():
    model = build()
    latents = torch.randn(1, 2, 5, 4, 6, dtype=torch.float64)
    both = run(model, latents, torch.tensor([[100.0, 900.0]]))
    swapped = run(model, latents.flip(1), torch.tensor([[900.0, 100.0]]), frames=[5, 4])
    torch.testing.assert_close(both, swapped.flip(1))
    assert not torch.allclose(both, run(model, latents, torch.tensor([[900.0, 100.0]])))


def test_only_relative_positions_matter():
    model = build()
    latents = torch.randn(1, 2, 5, 4, 6, dtype=torch.float64)
    timesteps = torch.full((1, 2), 300.0)
    near = run(model, latents, timesteps, frames=[0, 1])
    far = run(model, latents, timesteps, frames=[5000, 5001])  # past any table of 1,024 frames
    torch.testing.assert_close(near, far, rtol=1e-4, atol=1e-5)  # angles are applied in float32
    assert not torch.allclose(near, run(model, latents, timesteps, frames=[0, 9]), rtol=1e-3)


def test_padding_of_the_prompt_is_read():
    model = build()
    latents = torch.randn(1, 2, 5, 4, 6, dtype=torch.float64)
    states = torch.zeros(1, 6, 7, dtype=torch.float64)
    states[:, :2] = 1
    timesteps = torch.full((1, 2), 300.0)
    padded = run(model, latents, timesteps, text_states=states)
    cut = model.encode_text(states[:, :2])
    positions = model.token_positions(range(4, 6), 2, 3)
    with torch.no_grad():
        without = model(latents, timesteps, text=cut, positions=positions, memory=Dense())
    assert not torch.allclose(padded, without)


def test_heads_may_lie_in_any_order():
    model = build()
    latents = torch.randn(1, 2, 5, 4, 6, dtype=torch.float64)
    timesteps = torch.full((1, 2), 300.0)
    before = run(model, latents, timesteps)
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.set_head_order([[2, 0, 1], [1, 2, 0]])
    assert not torch.equal(model.state_dict()["blocks.0.self_attn.q.weight"], weights["blocks.0.self_attn.q.weight"])
    torch.testing.assert_close(run(model, latents, timesteps), before)
    model.set_head_order([[1, 0, 2], [1, 2, 0]])
    torch.testing.assert_close(run(model, latents, timesteps), before)
    model.set_head_order([[0, 1, 2], [0, 1, 2]])
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
    with pytest.raises(ValueError, match="each of 3 heads once"):
        model.set_head_order([[0, 0, 1], [0, 1, 2]])


def test_rotary_angles_of_a_known_token():
    table = RotaryTable.build([7], rows=2, cols=3, head_dim=16)
    token = 1 * 3 + 2  # row 1, column 2
    expected = [7, 7 / 10, 7 / 100, 7 / 1000, 1, 1 / 100, 2, 2 / 100]  # pairs: 4 of time, 2 of rows, 2 of columns
    torch.testing.assert_close(table.cos[0, token, 0], torch.tensor(expected).cos())
    torch.testing.assert_close(table.sin[0, token, 0], torch.tensor(expected).sin())


def test_rotation_turns_interleaved_pairs():
    table = RotaryTable(cos=torch.tensor(0.0).expand(1, 1, 1, 2), sin=torch.tensor(1.0).expand(1, 1, 1, 2))
    x = torch.tensor([1.0, 2.0, 3.0, 4.0]).view(1, 1, 1, 4)
    assert table.rotate(x).flatten().tolist() == [-2.0, 1.0, -4.0, 3.0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_heads": 5}, "does not give an even head size"),
        ({"patch_size": (2, 2, 2)}, "spans one latent frame"),
        ({"freq_dim": 9}, "must be even"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(changes, message):
    settings = {"dim": 36, "ffn_dim": 40, "num_layers": 2, "num_heads": 3}
    with pytest.raises(ConfigurationError, match=message):
        TransformerConfig(**(settings | changes))
