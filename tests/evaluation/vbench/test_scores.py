"""VBench's totals: against hand-made figures, and against those that were published."""

import pytest

from forcing_kv.errors import UnknownNameError
from forcing_kv.evaluation.vbench.scores import DIMENSIONS, Totals, parse_dimensions, totals

# Table 1 of T2V-Turbo (arXiv 2405.18750), which quotes VBench's leaderboard: per cent, dimension by dimension.
# fmt: off
PUBLISHED = {
    "ModelScopeT2V": (
        [89.87, 95.29, 98.28, 95.79, 66.39, 52.06, 58.57,
         82.25, 38.98, 92.40, 81.72, 33.68, 39.26, 23.39, 25.37, 25.67],
        (78.05, 66.54, 75.75),
    ),
    "VideoCrafter2": (
        [96.85, 98.22, 98.41, 97.73, 42.50, 63.13, 67.22,
         92.55, 40.66, 95.00, 92.92, 35.86, 55.29, 25.13, 25.84, 28.23],
        (82.20, 73.42, 80.44),
    ),
}
# fmt: on


@pytest.mark.parametrize("model", PUBLISHED)
def test_published_totals(model):
    percent, expected = PUBLISHED[model]
    scores = totals({name: value / 100 for name, value in zip(DIMENSIONS, percent, strict=True)})
    for value, published in zip((scores.quality, scores.semantic, scores.total), expected, strict=True):
        assert 100 * value == pytest.approx(published, abs=0.006)  # both are rounded


def test_by_hand():
    ends = totals({name: dimension.highest for name, dimension in DIMENSIONS.items()})
    assert (ends.quality, ends.semantic, ends.total) == pytest.approx((1, 1, 1))
    lowest = {name: dimension.lowest for name, dimension in DIMENSIONS.items()}
    ends = totals(lowest)
    assert (ends.quality, ends.semantic, ends.total) == pytest.approx((0, 0, 0))
    # dynamic degree counts half of the others: 0.5 of 6.5; the total counts quality 4 times
    moving = totals({**lowest, "dynamic_degree": 1.0})
    assert (moving.quality, moving.semantic, moving.total) == pytest.approx((1 / 13, 0, 4 / 65))
    assert DIMENSIONS["motion_smoothness"].normalised(0.85175) == pytest.approx(0.5)
    assert DIMENSIONS["scene"].normalised(0.4111) == pytest.approx(0.5)
    seen = totals({**lowest, "scene": 0.4111})
    assert (seen.quality, seen.semantic, seen.total) == pytest.approx((0, 1 / 18, 1 / 90))


def test_a_total_is_left_out_where_a_dimension_is_missing():
    scores = dict.fromkeys(DIMENSIONS, 0.5)
    del scores["color"]
    assert totals(scores).semantic is totals(scores).total is None
    assert totals(scores).quality == pytest.approx(totals({**scores, "color": 0.1}).quality)
    assert totals({}) == Totals(quality=None, semantic=None, total=None)


def test_names_of_dimensions():
    assert len(DIMENSIONS) == 16
    assert parse_dimensions("scene, color") == ("color", "scene")  # VBench's order
    with pytest.raises(UnknownNameError, match="unknown dimension of VBench 'colour'; choose one of: subject_consist"):
        parse_dimensions("colour")
    with pytest.raises(UnknownNameError, match="'sharpness'"):
        totals({"sharpness": 1.0})
