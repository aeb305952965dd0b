"""Dummy Forcing: which head becomes what, from where it looks. What the cache then keeps is tested with the cache."""

import pytest

from forcing_kv import ConfigurationError, DummyForcing, FrameGeometry
from forcing_kv.policies import HeadAttention, HeadGroup

GEOMETRY = FrameGeometry(num_layers=2, num_heads=3, head_dim=4, frame_rows=2, frame_cols=6, chunk_frames=3)

FIRST = {"sink_frames": 1, "recent_frames": 0}
MIDDLE = {"sink_frames": 0, "recent_frames": 3}
DUMMY = {"sink_frames": 0, "recent_frames": 1}


def attention(first, middle):
    last = tuple(
        tuple(1 - a - b for a, b in zip(row, other, strict=True)) for row, other in zip(first, middle, strict=True)
    )
    return HeadAttention(first=first, middle=middle, last=last)


def test_heads_become_what_they_look_at():
    looked = attention(
        first=((0.6, 0.1, 0.0), (0.2, 0.1, 0.0)),  # they add up to 1, so these are shares already
        middle=((0.1, 0.3, 0.02), (0.3, 0.08, 0.2)),
    )
    # costs: 0.6, 0.3, 0.02 / 0.3, 0.1, 0.2: the three lowest are dummies
    plan = DummyForcing().plan_from(GEOMETRY, looked)
    assert plan.layers == (
        (HeadGroup(heads=(0,), **FIRST), HeadGroup(heads=(1,), **MIDDLE), HeadGroup(heads=(2,), **DUMMY)),
        (HeadGroup(heads=(0,), **MIDDLE), HeadGroup(heads=(1, 2), **DUMMY)),
    )


def test_masses_count_as_shares_of_all_heads():
    # Ten times the mass on the first frame in every head changes nothing: each part is made to add up to 1.
    first, middle = ((0.06, 0.01, 0.0), (0.02, 0.01, 0.0)), ((0.1, 0.3, 0.02), (0.3, 0.08, 0.2))
    large = tuple(tuple(10 * mass for mass in row) for row in first)
    policy = DummyForcing(num_dummy=2)
    assert policy.plan_from(GEOMETRY, attention(first, middle)) == policy.plan_from(GEOMETRY, attention(large, middle))


def test_ties_go_by_number_and_equal_shares_to_the_first_frame():
    equal = ((0.1, 0.1, 0.1), (0.1, 0.1, 0.1))
    plan = DummyForcing(num_dummy=4).plan_from(GEOMETRY, attention(equal, equal))
    assert plan.layers == (
        (HeadGroup(heads=(0, 1, 2), **DUMMY),),
        (HeadGroup(heads=(1, 2), **FIRST), HeadGroup(heads=(0,), **DUMMY)),
    )


def test_no_history_at_all_is_no_error():
    zero = ((0.0, 0.0, 0.0), (0.0, 0.0, 0.0))
    plan = DummyForcing().plan_from(GEOMETRY, attention(zero, zero))
    assert [len(group.heads) for groups in plan.layers for group in groups] == [3, 3]


def test_until_then_and_at_most():
    policy = DummyForcing(local_context=2)
    (layer, _) = policy.plan(GEOMETRY, grouped=False).layers
    assert layer == (HeadGroup(heads=(0, 1, 2), sink_frames=1, recent_frames=3),)
    most = policy.plan(GEOMETRY, grouped=True).layers
    assert most[0] == (HeadGroup(heads=(0, 1, 2), **DUMMY),)
    assert most[1] == (HeadGroup(heads=(0, 1, 2), sink_frames=0, recent_frames=6),)


def test_a_third_of_a_frame_is_looked_at():
    tokens = DummyForcing(seed=1).looking_tokens(GEOMETRY)
    assert len(tokens) == len(set(tokens)) == 4
    assert list(tokens) == sorted(tokens)
    assert set(tokens) <= set(range(36))
    assert tokens == DummyForcing(seed=1).looking_tokens(GEOMETRY) != DummyForcing(seed=2).looking_tokens(GEOMETRY)


@pytest.mark.parametrize("chunk", [1, 2])
def test_when(chunk):
    policy = DummyForcing(ar_start=chunk)
    assert not policy.is_grouped(chunk)
    assert policy.is_grouped(chunk + 1)


def test_bad_settings():
    with pytest.raises(ConfigurationError, match="num_dummy=7 exceeds the 6 heads"):
        DummyForcing(num_dummy=7).check(GEOMETRY)
    with pytest.raises(ConfigurationError, match="ar_start=0 must be at least 1"):
        DummyForcing(ar_start=0)
    with pytest.raises(ConfigurationError, match="local_context=0"):
        DummyForcing(local_context=0)
