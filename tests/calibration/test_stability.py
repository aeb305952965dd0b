import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from calibrations import constant_scores, head_map, observations
from forcing_kv.calibration.stability import (
    Range,
    axis_stability,
    cohens_kappa,
    halves_agreement,
    measure_stability,
    widest_gap,
)
from forcing_kv.calibration.table import format_table
from forcing_kv.errors import HeadMapError
from forcing_kv.heads import HeadMap

SCORES = [[0.95, 0.2, 0.9], [0.3, 0.95, 0.1]]


def stability_of(scores, threshold=0.8):
    seen = observations(scores)
    return measure_stability(seen, head_map(seen, threshold=threshold))


def flipping(stability):
    """Heads that flip, as {axis: [(layer, head)]}."""
    return {axis.name: [tuple(place) for place in axis.flips.nonzero().tolist()] for axis in stability.axes}


def test_nothing_moves_where_nothing_was_planted():
    stability = stability_of(constant_scores(SCORES))
    assert flipping(stability) == {"prompts": [], "steps": [], "chunks": []}
    assert all(not axis.deviations.any() for axis in stability.axes)
    assert [axis.num_values for axis in stability.axes] == [4, 2, 3]
    assert stability.num_static == 3
    assert stability.halves.equal_share == stability.halves.kappa == Range(mean=1, lowest=1, highest=1)


@pytest.mark.parametrize(
    ("axis", "place"),
    [("prompts", (2,)), ("chunks", (slice(None), 1)), ("steps", (slice(None), slice(None), 1))],
)
def test_a_planted_flip_is_found_on_its_axis_and_nowhere_else(axis, place):
    scores = constant_scores(SCORES)
    scores[*place, ..., 1, 1] = 0.7  # of 0.95; the mean stays above 0.8 on the other axes
    scores[*place, ..., 0, 1] = 0.4  # of 0.2: moves, and flips nothing
    stability = stability_of(scores)
    assert flipping(stability) == {"prompts": [], "steps": [], "chunks": []} | {axis: [(1, 1)]}
    for found in stability.axes:
        moved = {tuple(head) for head in (found.deviations > 1e-7).nonzero().tolist()}
        assert moved == ({(0, 1), (1, 1)} if found.name == axis else set())
        assert found.num_flips == (1 if found.name == axis else 0)


def test_deviations_are_those_of_the_means_over_the_other_axes():
    scores = torch.rand(5, 4, 3, 2, 6, generator=torch.Generator().manual_seed(1))
    prompts, steps, chunks = stability_of(scores).axes
    for axis, others, values in ((prompts, (1, 2), 5), (steps, (0, 1), 3), (chunks, (0, 2), 4)):
        means = scores.double().mean(dim=others)
        expected = ((means - means.mean(dim=0)).square().sum(dim=0) / (values - 1)).sqrt()
        torch.testing.assert_close(axis.deviations, expected)


def test_a_head_at_the_threshold_is_static():
    means = torch.tensor([[[0.8, 0.8, 0.9]], [[0.8, 0.7, 0.8]]], dtype=torch.float64)
    axis = axis_stability("prompts", means, torch.tensor([[True, True, True]]), threshold=0.8)
    assert axis.flips.tolist() == [[False, True, False]]


def test_one_value_of_an_axis_says_nothing():
    stability = stability_of(constant_scores(SCORES, prompts=1, chunks=2, steps=1))
    assert [axis.has_one_value for axis in stability.axes] == [True, True, False]
    assert stability.halves is None
    document = stability.to_json()
    assert document["prompts"] == document["steps"] == {"num_values": 1}
    assert document["halves_of_prompts"] is None
    table = format_table(stability)
    assert table.count("one only: nothing to compare") == 2  # prompts and steps
    assert "halves of the prompts   one prompt only: nothing to compare" in table


def test_kappa_by_hand():
    first = torch.tensor([True] * 25 + [False] * 25)
    second = torch.tensor([True] * 20 + [False] * 5 + [True] * 10 + [False] * 15)
    assert cohens_kappa(first, second) == pytest.approx((0.7 - 0.5) / (1 - 0.5))
    assert cohens_kappa(first, first) == 1
    assert cohens_kappa(first, ~first) == pytest.approx(-1)
    assert cohens_kappa(first, torch.ones_like(first)) == pytest.approx(0)
    assert cohens_kappa(torch.ones_like(first), torch.ones_like(first)) is None


def test_two_prompts_have_one_split():
    means = torch.tensor([[[0.9, 0.9, 0.1, 0.1]], [[0.9, 0.1, 0.9, 0.1]]])
    halves = halves_agreement(means, threshold=0.8)
    assert (halves.num_splits, halves.num_undefined) == (1, 0)
    assert halves.equal_share.mean == 0.5
    assert halves.kappa.mean == pytest.approx(0)


def test_of_three_prompts_one_stays_out_at_a_time():
    means = torch.tensor([[[0.9, 0.1]], [[0.9, 0.1]], [[0.1, 0.1]]])  # pairs agree on 1, 0.5 and 0.5
    halves = halves_agreement(means, threshold=0.8)
    assert halves.num_splits == 3
    assert halves.equal_share == Range(mean=pytest.approx(2 / 3), lowest=0.5, highest=1)
    assert halves.kappa == Range(mean=pytest.approx(1 / 3), lowest=0, highest=1)


@pytest.mark.parametrize("score", [0.9, 0.1])
def test_kappa_of_heads_that_are_all_alike_is_undefined_and_said_to_be(score):
    stability = stability_of(constant_scores([[score] * 4]))
    assert stability.halves.kappa is None
    assert stability.halves.num_undefined == stability.halves.num_splits
    assert stability.halves.equal_share.mean == 1
    assert stability.gap is None
    assert stability.to_json()["halves_of_prompts"]["kappa"] is None
    table = format_table(stability)
    assert "kappa is undefined: both maps give all heads the same role" in table
    assert "none: all scores are equal" in table
    assert "nan" not in table.lower()


def test_kappa_undefined_in_some_splits_only():
    means = torch.tensor([[[0.9, 0.9]], [[0.9, 0.9]], [[0.9, 0.1]]])
    halves = halves_agreement(means, threshold=0.8)
    assert (halves.num_splits, halves.num_undefined) == (3, 1)
    assert halves.kappa == Range(mean=0, lowest=0, highest=0)


def test_heads_near_the_threshold():
    stability = stability_of(constant_scores([[0.76, 0.84, 0.72, 0.6, 0.95]]))
    assert stability.num_within(0.05) == 2
    assert stability.num_within(0.1) == 3
    assert stability.to_json()["middle_band"]["share"] == 0.6


def test_the_widest_gap_leaves_heads_on_either_side():
    gap = widest_gap([0.9, 0.3, 0.8, 0.2])
    assert (gap.low, gap.high, gap.num_below, gap.num_above) == (0.3, 0.8, 2, 2)
    assert gap.middle == pytest.approx(0.55)
    outlier = widest_gap([0.0] + [0.5 + number / 1000 for number in range(20)] + [0.6 + n / 1000 for n in range(20)])
    assert (outlier.num_below, outlier.num_above) == (21, 20)
    assert widest_gap([0.5]) is None
    assert widest_gap([0.5, 0.5]) is None


def test_sampling_errors_of_a_mean_add_up_in_squares():
    scores = constant_scores(SCORES)
    seen = observations(scores, standard_errors=torch.full_like(scores, 0.12))
    stability = measure_stability(seen, head_map(seen))
    torch.testing.assert_close(stability.sampling_errors, torch.full((2, 3), 0.12 / 24**0.5, dtype=torch.float64))
    assert "standard error from them is at most 0.0245" in format_table(stability)


def test_a_map_of_another_shape_is_refused():
    with pytest.raises(HeadMapError, match=r"1 layers x 2 heads, the model has 2 x 3"):
        measure_stability(observations(constant_scores(SCORES)), HeadMap(model="other", roles=("sd",)))


def test_the_table():
    scores = constant_scores(SCORES)
    scores[0, ..., 1, 1] = 0.7
    assert format_table(stability_of(scores)).splitlines() == [
        "3 of 6 (50.0 %) heads are static: score (attention on the newest frames) 0.80 or more.",
        "",
        "                              standard deviation of score   heads whose role",
        "compared over      how many             mean      largest   ever changes",
        "prompts                   4            0.021        0.125   1 of 6 (16.7 %)",
        "denoising steps           2            0.000        0.000   0 of 6 (0.0 %)",
        "chunk positions           3            0.000        0.000   0 of 6 (0.0 %)",
        "",
        "halves of the prompts   their maps agree on 100.0 % of heads (100.0 % to 100.0 %; 3 random splits)",
        "                        Cohen's kappa 1.00 (1.00 to 1.00); 1 = equal maps, 0 = chance",
        "near the threshold      0 of 6 (0.0 %) heads within 0.05 of it, 2 of 6 (33.3 %) within 0.10",
        "widest gap in scores    from 0.30 to 0.89, with 3 heads below and 3 above; the threshold lies in it",
    ]


score = st.integers(0, 64).map(lambda number: number / 64)  # sums of these are exact, in any order


@st.composite
def any_scores(draw):
    shape = [draw(st.integers(1, limit)) for limit in (5, 3, 3, 2, 4)]
    count = torch.Size(shape).numel()
    return torch.tensor(draw(st.lists(score, min_size=count, max_size=count))).reshape(shape)


def numbers(value):
    if isinstance(value, dict):
        for item in value.values():
            yield from numbers(item)
    elif value is not None:
        yield value


@given(any_scores(), score, st.randoms(use_true_random=False))
@settings(max_examples=60, deadline=None)
def test_shares_are_shares_and_the_order_of_prompts_means_nothing(scores, threshold, random):
    seen = observations(scores)
    roles = head_map(seen, threshold=threshold)
    stability = measure_stability(seen, roles)
    document = stability.to_json()
    assert not any(math.isnan(value) for value in numbers(document))
    shares = [document["static_share"], document["near_threshold"]["share"], document["middle_band"]["share"]]
    shares += [axis.to_json().get("flip_share", 0) for axis in stability.axes]
    if stability.halves:
        equal = stability.halves.equal_share
        shares += [equal.lowest, equal.highest]
        assert equal.lowest <= equal.mean + 1e-12
        assert equal.mean <= equal.highest + 1e-12
    assert all(0 <= share <= 1 for share in shares)
    assert all(len(line) < 100 for line in format_table(stability).splitlines())

    order = list(range(len(seen.prompts)))
    random.shuffle(order)
    shuffled = replace(
        seen,
        scores=scores[order],
        prompts=tuple(seen.prompts[number] for number in order),
        seeds=tuple(seen.seeds[number] for number in order),
    )
    assert list(numbers(measure_stability(shuffled, roles).to_json())) == pytest.approx(list(numbers(document)))
