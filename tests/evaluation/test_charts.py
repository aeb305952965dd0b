import math
from xml.etree import ElementTree

import pytest

from forcing_kv.evaluation import Estimate
from forcing_kv.evaluation.charts import Line, Point, Row, interval_chart, line_chart, nice_ticks, size_chart


def parsed(svg):
    return ElementTree.fromstring(svg)


def estimate(mean, low=None, high=None):
    return Estimate(mean=mean, interval_95=None if low is None else (low, high), num_prompts=8)


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0, 1, [0, 0.25, 0.5, 0.75, 1]),
        (26.9, 32.1, [26, 28, 30, 32, 34]),
        (-3, 4, [-4, -2, 0, 2, 4]),
        (5, 5, [4.7, 4.8, 4.9, 5.0, 5.1, 5.2, 5.3]),
        (0, 0, [-1, -0.5, 0, 0.5, 1]),
    ],
)
def test_ticks_are_round_and_cover_the_range(low, high, ticks):
    found = nice_ticks(low, high)
    assert found[0] <= low <= high <= found[-1]
    if low != 5:
        assert found == pytest.approx(ticks)
    assert all(low <= tick <= high for tick in nice_ticks(0.3, 19.8, inside=True) for low, high in [(0.3, 19.8)])


def test_lines_have_a_gap_where_a_value_is_missing():
    values = [1.0, 2.0, math.nan, 3.0, 4.0, math.nan, 2.0]
    svg = parsed(line_chart([Line(number=2, policy="a<b", values=values)], range(7), x_title="s", about='"so"'))
    assert len(svg.findall("path")) == 2
    assert len(svg.findall(".//circle")) == 1  # a single value between gaps
    assert svg.find("path").get("class") == "policy p2 course"
    assert svg.find("path/title").text == "a<b"
    assert svg.get("aria-label") == '"so"'


def test_the_first_line_is_drawn_last_and_so_on_top():
    lines = [Line(number=number, policy=str(number), values=[0.0, number]) for number in range(3)]
    paths = parsed(line_chart(lines, [0, 1], x_title="s", about="")).findall("path")
    assert [path.get("class").split()[1] for path in paths] == ["p2", "p1", "p0"]
    assert line_chart([Line(number=0, policy="x", values=[math.nan])], [0], x_title="s", about="") == ""


@pytest.mark.parametrize("places", [[0.28], [0.28, 0.9], [0.28, 0.94, 1.7], [1, 2, 3, 4]])
def test_short_axes_have_ticks_too(places):
    svg = parsed(line_chart([Line(number=0, policy="x", values=places)], places, x_title="s", about=""))
    assert svg.find("path") is not None or svg.find(".//circle") is not None
    below = [text for text in svg.iter("text") if text.get("text-anchor") == "middle"]
    assert below or len(places) == 1
    assert all(float(text.text) <= places[-1] for text in below if len(places) > 1)


def test_intervals():
    rows = [
        Row(number=0, policy="full", estimate=estimate(2.0, 1.0, 3.0)),
        Row(number=1, policy="window:sink_frames=2", estimate=estimate(4.0)),
    ]
    svg = parsed(interval_chart(rows, digits=1, about="", reference=2.0, mark=100.0))
    texts = [text.text for text in svg.iter("text")]
    assert {"1 full", "2.0", "2 window", "sink_frames=2", "4.0"} <= set(texts)
    kinds = [line.get("class") for line in svg.iter("line")]
    assert kinds.count("interval") == 1  # one value has none
    assert kinds.count("reference") == 1
    assert kinds.count("mark") == 0  # it lies outside
    dots = {circle.get("cy"): float(circle.get("cx")) for circle in svg.iter("circle")}
    first, second = dots.values()
    assert first < second
    assert interval_chart([], digits=1, about="") == ""


def test_sizes_are_logarithmic_and_names_do_not_overlap():
    points = [
        Point(number=0, policy="full", size=16e6, estimate=estimate(2.0, 1.9, 2.1)),
        Point(number=1, policy="window", size=4e6, estimate=estimate(2.0)),
        Point(number=2, policy="forcing-kv", size=1e6, estimate=estimate(2.0)),
        Point(number=3, policy="other", size=1e6, estimate=estimate(2.0)),
    ]
    svg = parsed(size_chart(points, x_title="MB", about=""))
    places = [float(circle.get("cx")) for circle in svg.iter("circle")]
    assert places[0] - places[1] == pytest.approx(places[1] - places[2], abs=0.3)
    names = {text.text: float(text.get("y")) for text in svg.iter("text") if text.text in ("forcing-kv", "other")}
    assert abs(names["forcing-kv"] - names["other"]) >= 12


def test_where_names_repeat_numbers_stand_in_for_them():
    points = [
        Point(number=number, policy=f"window:sink_frames={number}", size=1e6 + number, estimate=estimate(number))
        for number in range(3)
    ]
    texts = [text.text for text in parsed(size_chart(points, x_title="MB", about="")).iter("text")]
    assert {"1", "2", "3"} <= set(texts)
    assert "window" not in texts
