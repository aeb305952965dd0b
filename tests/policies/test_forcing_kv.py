"""The forcing-kv policy: its plan, its rule and what it refuses."""

import pytest
import torch

from forcing_kv import ConfigurationError, ForcingKV, FrameGeometry, HeadMap, HeadMapError, UnknownNameError
from forcing_kv.policies.segment_scores import segment_similarity

MAP = HeadMap(model="test", roles=("sd", "ss", "sd", "dd"))


def geometry(**changes):
    settings = {"num_layers": 4, "num_heads": 2, "head_dim": 8, "frame_rows": 4, "frame_cols": 6}
    return FrameGeometry(**(settings | changes))


def test_default_plan_is_the_published_one():
    plan = ForcingKV(head_map=MAP).plan(geometry(), grouped=True)
    sizes = [[(g.heads, g.sink_frames, g.recent_frames, g.selected_segments) for g in groups] for groups in plan.layers]
    assert sizes == [
        [((0, 1), 1, 1, 0)],
        [((0, 1), 1, 1, 0)],
        [((0,), 1, 1, 0), ((1,), 1, 1, 6)],
        [((0, 1), 1, 1, 6)],
    ]
    assert plan.leader_layer == 2  # layer 0 is dense, layer 1 has no dynamic head


def test_warmup_keeps_the_longer_recent_part_for_all():
    policy = ForcingKV(head_map=MAP, sink_frames=0, dynamic_recent_frames=3, similarity_pruning=False)
    recent = {g.recent_frames for groups in policy.plan(geometry(), grouped=False).layers for g in groups}
    assert recent == {3}
    assert [g.recent_frames for g in policy.plan(geometry(), grouped=True).layers[2]] == [1, 3]
    assert not policy.is_grouped(1)
    assert policy.is_grouped(2)


def test_no_dynamic_head_selects_nothing():
    static = HeadMap.uniform("s", num_layers=4, num_heads=2)
    assert ForcingKV(head_map=static).plan(geometry(), grouped=True).leader_layer is None


def test_default_budget_is_a_third_of_the_candidates():
    def budget(chunk_frames, segments):
        policy = ForcingKV(head_map=MAP, segments_per_frame=segments, warmup_chunks=4)
        plan = policy.plan(geometry(chunk_frames=chunk_frames), grouped=True)
        return plan.layers[3][0].selected_segments

    assert [budget(3, 6), budget(3, 4), budget(1, 6), budget(2, 8)] == [6, 4, 2, 5]


def test_similarity_of_known_vectors():
    keys = torch.zeros(1, 3, 4, 1, 2)
    keys[0, 0, :, 0] = torch.tensor([1.0, 0.0])
    keys[0, 1, :2, 0] = torch.tensor([2.0, 0.0])  # same direction: similarity 1
    keys[0, 1, 2:, 0] = torch.tensor([0.0, 3.0])  # orthogonal: 0
    keys[0, 2, :2, 0] = torch.tensor([-1.0, 0.0])  # opposite: -1
    keys[0, 2, 2, 0] = torch.tensor([0.0, 1.0])
    keys[0, 2, 3, 0] = torch.tensor([1.0, 0.0])  # one token stays, one turns: mean 0.5
    expected = torch.tensor([[[1.0, 0.0], [-1.0, 0.5]]])
    torch.testing.assert_close(segment_similarity(keys, 2), expected)


def test_selection_is_per_item_and_in_temporal_order():
    keys = torch.ones(2, 3, 6, 1, 2)
    keys[0, 1:, 4:, 0] = torch.tensor([1.0, -1.0])  # item 0: the last segment changes between frames 0 and 1
    keys[1, 2, :2, 0] = torch.tensor([1.0, -1.0])  # item 1: the first segment changes between frames 1 and 2
    selection = ForcingKV(head_map=MAP, segments_per_frame=3).select(keys, 1, commit=3)
    assert selection.segments.tolist() == [[2], [3]]
    both = ForcingKV(head_map=MAP, segments_per_frame=3).select(keys, 4, commit=3)
    assert both.segments.tolist() == [[0, 1, 2, 3], [0, 1, 2, 3]]  # ties by number, then sorted


@pytest.mark.parametrize(
    ("settings", "changes", "message"),
    [
        ({"dynamic_recent_frames": 4}, {}, r"1 to 3 \(the chunk\), not 4"),
        ({"dynamic_recent_frames": 0}, {}, r"must be 1 to 3"),
        ({"selected_segments": 19}, {}, r"selected_segments=19 exceeds the 18 candidates"),
        (
            {"segments_per_frame": 5},
            {},
            r"does not divide the 24 tokens of a frame \(4 x 6\); use one of \[1, 2, 3, 4, 6",
        ),
        ({"sink_frames": 6}, {}, r"warmup_chunks=2 gives 6 frames.*use at least 3"),
    ],
)
def test_what_cannot_work_is_refused(settings, changes, message):
    policy = ForcingKV(head_map=MAP, **settings)
    with pytest.raises(ConfigurationError, match=message):
        policy.check(geometry(**changes))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sink_frames": -1}, "sink_frames=-1 must be at least 0"),
        ({"segments_per_frame": 0}, "segments_per_frame=0 must be at least 1"),
        ({"warmup_chunks": 0}, "warmup_chunks=0 must be at least 1"),
        ({"dense_layers": frozenset({4})}, "dense layer 4 does not exist"),
    ],
)
def test_bad_settings_are_refused_at_once(settings, message):
    with pytest.raises(ConfigurationError, match=message):
        ForcingKV(head_map=MAP, **settings)


def test_a_map_of_another_model_is_refused_with_both_shapes():
    with pytest.raises(HeadMapError, match="4 layers x 2 heads, the model has 4 x 3"):
        ForcingKV(head_map=MAP).check(geometry(num_heads=3))


def candidates(num_frames=3, frame_tokens=6, batch_size=2):
    return torch.randn(batch_size, num_frames + 1, frame_tokens, 2, 4, generator=torch.Generator().manual_seed(0))


def test_unchanged_segments_are_those_the_method_would_keep_last():
    keys = candidates()
    kept = {
        name: ForcingKV(head_map=MAP, segments_per_frame=3, segments=name).select(keys, 4, commit=2).segments
        for name in ("changed", "unchanged")
    }
    similarity = segment_similarity(keys, 3).flatten(1)
    for item in range(2):
        rising = similarity[item].argsort().tolist()
        assert kept["changed"][item].tolist() == sorted(rising[:4])
        assert kept["unchanged"][item].tolist() == sorted(rising[-4:])


def test_random_segments_differ_from_commit_to_commit_and_not_from_item_to_item():
    policy = ForcingKV(head_map=MAP, segments_per_frame=3, segments="random", seed=5)
    draws = [policy.select(candidates(), 4, commit=commit).segments for commit in range(200)]
    assert all(torch.equal(draw[0], draw[1]) for draw in draws)
    assert torch.equal(draws[7], policy.select(candidates(), 4, commit=7).segments)
    counts = torch.stack(draws)[:, 0].flatten().bincount(minlength=9)
    assert counts.sum() == 800
    assert counts.min() > 50  # 89 expected of each of nine
    other = ForcingKV(head_map=MAP, segments_per_frame=3, segments="random", seed=6)
    assert any(
        not torch.equal(draw, other.select(candidates(), 4, commit=at).segments) for at, draw in enumerate(draws)
    )


@pytest.mark.parametrize(
    ("num_segments", "expected"), [(3, [2, 5, 8]), (4, [2, 4, 6, 8]), (9, list(range(9))), (0, [])]
)
def test_uniform_segments_are_evenly_spaced(num_segments, expected):
    policy = ForcingKV(head_map=MAP, segments_per_frame=3, segments="uniform")
    assert policy.select(candidates(), num_segments, commit=3).segments.tolist() == [expected] * 2


def test_roles_that_are_not_the_maps():
    def static_heads(roles, **settings):
        head_map = ForcingKV(head_map=BIG, roles=roles, **settings).roles_in_force
        return [list(head_map.heads(layer, "s")) for layer in range(3)]

    assert static_heads("measured") == [[0], [0, 1], [3]]
    assert static_heads("static") == [[0, 1, 2, 3]] * 3
    assert static_heads("dynamic") == [[]] * 3
    shuffled = [static_heads("shuffled", seed=seed) for seed in range(20)]
    assert all(heads[0] == [0] for heads in shuffled)  # a dense layer takes no part
    assert all(len(heads[1]) + len(heads[2]) == 3 for heads in shuffled)  # as many as before, so as many bytes
    assert len({str(heads) for heads in shuffled}) > 5
    assert shuffled[3] == static_heads("shuffled", seed=3)


def test_unknown_choices_list_what_there_is():
    with pytest.raises(UnknownNameError, match="changed, unchanged, random, uniform"):
        ForcingKV(head_map=MAP, segments="largest")
    with pytest.raises(UnknownNameError, match="measured, static, dynamic, shuffled"):
        ForcingKV(head_map=MAP, roles="none")


BIG = HeadMap(model="test", roles=("sddd", "ssdd", "ddds"))
