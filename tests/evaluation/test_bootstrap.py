import numpy as np
import pytest

from forcing_kv.errors import ConfigurationError
from forcing_kv.evaluation import Bootstrap


def test_a_constant_has_an_interval_of_itself():
    for value in (0.1, 1 / 3, 100.0):
        estimate = Bootstrap().estimate([value] * 7)
        assert estimate.mean == pytest.approx(value, rel=1e-15)
        assert estimate.interval_95 == (estimate.mean, estimate.mean)


def test_of_very_few_prompts():
    assert Bootstrap().estimate([]) is None
    assert Bootstrap().estimate([None, None]) is None
    one = Bootstrap().estimate([None, 3.0])
    assert (one.mean, one.interval_95, one.num_prompts) == (3.0, None, 1)
    assert not one.is_told_from_zero
    assert one.to_json() == {"mean": 3.0, "interval_95": None, "num_prompts": 1}
    assert Bootstrap().estimate([1.0, 2.0]).interval_95 == (1.0, 2.0)


def test_a_difference_of_few_prompts_is_not_told_from_none():
    assert not Bootstrap().estimate([1.0] * 5).is_told_from_zero
    assert Bootstrap().estimate([1.0] * 6).is_told_from_zero
    assert Bootstrap().estimate([-1.0] * 6).is_told_from_zero
    assert not Bootstrap().estimate([1.0, -1.0] * 6).is_told_from_zero


def test_a_seed_gives_the_same_interval_and_another_one_another():
    values = np.random.default_rng(0).normal(size=20).tolist()
    assert Bootstrap().estimate(values) == Bootstrap().estimate(values)
    assert Bootstrap().estimate(values) != Bootstrap(seed=1).estimate(values)


def test_the_interval_is_about_that_of_theory():
    values = np.random.default_rng(0).normal(size=400)
    low, high = Bootstrap().estimate(values.tolist()).interval_95
    half = 1.96 * values.std() / 20
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.15 * half)


@pytest.mark.parametrize("draw", ["normal", "exponential"])
def test_it_holds_the_true_mean_about_19_times_in_20(draw):
    generator = np.random.default_rng(0)
    bootstrap = Bootstrap(num_resamples=400)
    mean = {"normal": 0.0, "exponential": 1.0}[draw]
    hits = 0
    for _ in range(400):
        low, high = bootstrap.estimate(getattr(generator, draw)(size=48).tolist()).interval_95
        hits += low <= mean <= high
    assert 0.89 <= hits / 400 <= 0.975


def test_differences_are_paired():
    generator = np.random.default_rng(0)
    prompts = 10 * generator.normal(size=64)  # some prompts are much harder than others
    ours, theirs = prompts + 1 + 0.1 * generator.normal(size=64), prompts
    difference = Bootstrap().difference(ours.tolist(), theirs.tolist())
    assert difference.mean == pytest.approx(ours.mean() - theirs.mean())
    low, high = difference.interval_95
    assert 0.9 < low < high < 1.1
    assert difference.is_told_from_zero


def test_prompts_without_a_value_on_either_side_do_not_count():
    difference = Bootstrap().difference([1.0, None, 3.0, 5.0], [0.0, 7.0, None, 2.0])
    assert (difference.mean, difference.num_prompts) == (2.0, 2)
    assert Bootstrap().difference([None], [1.0]) is None


def test_too_few_resamples_are_refused():
    with pytest.raises(ConfigurationError, match="num_resamples=99 is too few"):
        Bootstrap(num_resamples=99)
