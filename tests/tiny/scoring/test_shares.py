import math

import pytest

from forcing_kv.tiny.scoring.shares import chance_of_at_most, difference_of, differences_of, mcnemar, shares_of, wilson


def test_wilson_interval_of_known_cases():
    assert wilson(32, 32) == pytest.approx((0.8928, 1.0), abs=1e-3)
    assert wilson(0, 32) == pytest.approx((0.0, 0.1072), abs=1e-3)
    assert wilson(16, 32) == pytest.approx((0.3363, 0.6637), abs=1e-3)


def test_shares_are_over_the_videos_to_which_an_attribute_applies():
    shares = shares_of([{"colour": True, "camera": None}, {"colour": False, "camera": True}])
    assert shares["colour"]["share"] == 0.5
    assert shares["colour"]["num_videos"] == 2
    assert shares["camera"] == {"share": 1.0, "interval_95": [0.2065, 1.0], "num_videos": 1}


def test_attributes_that_apply_nowhere_are_left_out():
    assert list(shares_of([{"colour": True, "camera": None}])) == ["colour"]


def test_mcnemar_of_known_cases():
    assert mcnemar(0, 0) == 1
    assert mcnemar(3, 3) == 1
    assert mcnemar(10, 0) == pytest.approx(2 / 1024)
    assert mcnemar(1, 9) == pytest.approx(2 * 11 / 1024)


def test_difference_of_pairs():
    pairs = [(True, False)] * 40 + [(True, True)] * 40 + [(False, True)] * 10 + [(False, False)] * 10
    difference = difference_of(pairs)
    assert difference["difference"] == 0.3
    half = 1.96 * math.sqrt((0.5 - 0.3**2) / 100)
    assert difference["interval_95"] == pytest.approx([0.3 - half, 0.3 + half], abs=0.02)
    assert difference["p_value"] < 1e-4


def test_no_change_in_few_pairs_says_little():
    difference = difference_of([(True, True)] * 8)
    assert difference["difference"] == 0
    assert difference["interval_95"] == pytest.approx([-0.196, 0.196], abs=1e-3)


def test_differences_leave_out_what_does_not_apply():
    late = [{"colour": False, "camera": None}, {"colour": True, "camera": True}]
    early = [{"colour": True, "camera": None}, {"colour": True, "camera": True}]
    drops = differences_of(early, late)
    assert drops["colour"]["difference"] == 0.5
    assert drops["camera"]["num_videos"] == 1


def test_chance_of_at_most_is_binomial():
    assert chance_of_at_most(8, 8, 0.9) == pytest.approx(1)
    assert chance_of_at_most(0, 8, 0.5) == pytest.approx(1 / 256)
    assert chance_of_at_most(7, 8, 1.0) == 0
    assert chance_of_at_most(8, 8, 1.0) == 1
