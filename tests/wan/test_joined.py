"""Joined projections: one product, and weights that are what they were."""

import copy

import torch

from small_transformer import Dense, build, run


def noisy():
    return torch.randn(1, 2, 5, 4, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


LEVELS = torch.full((1, 2), 300.0)


def joined():
    model = build().requires_grad_(False)
    model.join_projections()
    return model


def test_the_result_and_the_names_are_the_same():
    plain, model = build(), joined()
    torch.testing.assert_close(run(model, noisy(), LEVELS), run(plain, noisy(), LEVELS))
    weights, before = model.state_dict(), plain.state_dict()
    assert list(weights) == list(before)
    assert all(torch.equal(weights[name], before[name]) for name in weights)
    attention = model.blocks[1].self_attn
    assert attention.q.weight.untyped_storage().data_ptr() == attention.v.weight.untyped_storage().data_ptr()


def test_what_is_written_into_a_weight_counts():
    model, plain = joined(), build().requires_grad_(False)
    for changed in (model, plain):
        changed.load_weight("blocks.0.self_attn.k.weight", torch.eye(36))
        changed.load_weight("blocks.1.self_attn.v.bias", torch.ones(36))
        changed.load_weight("head.modulation", torch.zeros(1, 2, 36))
    torch.testing.assert_close(run(model, noisy(), LEVELS), run(plain, noisy(), LEVELS))


def test_heads_may_still_be_moved():
    model = joined()
    before = run(model, noisy(), LEVELS)
    model.set_head_order([[2, 0, 1], [1, 2, 0]])
    torch.testing.assert_close(run(model, noisy(), LEVELS), before)


def test_a_model_that_is_moved_or_copied_stays_joined():
    model = joined()
    before = run(model, noisy(), LEVELS)
    moved, copied = copy.deepcopy(model).float().double(), copy.deepcopy(model)
    torch.testing.assert_close(run(moved, noisy(), LEVELS), before, rtol=1e-4, atol=1e-5)
    for other in (moved, copied):
        other.load_weight("blocks.0.self_attn.q.weight", torch.zeros(36, 36))
        other.load_weight("blocks.0.self_attn.q.bias", torch.zeros(36))
        attention = other.blocks[0].self_attn
        q, _, _ = attention._joined(torch.ones(1, 2, 36, dtype=torch.float64))
        assert not q.any()
    torch.testing.assert_close(run(model, noisy(), LEVELS), before)


def test_gradients_reach_joined_weights():
    model = joined().requires_grad_(True)
    arguments = {
        "text": model.encode_text(torch.ones(1, 6, 7, dtype=torch.float64)),
        "positions": model.token_positions(range(2), 2, 3),
        "memory": Dense(),
    }
    model(noisy(), LEVELS, **arguments).sum().backward()
    for linear in (model.blocks[0].self_attn.q, model.blocks[1].self_attn.v):
        assert linear.weight.grad.any()
