"""The pictures of a report, as SVG that takes its colours from the page: lines over time, and means with intervals.

Everything of policy number i, from 0, carries the class `p<i>`, whose colour the page sets for light and dark; for
readers it is number i + 1, which stands beside its name, so that nothing rests on colour alone.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

from forcing_kv.evaluation.bootstrap import Estimate

WIDTH = 460
_LINES_HEIGHT = 210
_LEFT, _RIGHT, _TOP, _BOTTOM = 50, 14, 12, 34
_ROW_HEIGHT = 22
_SECOND_LINE = 12  # more for a row whose policy has settings
_LABEL_WIDTH = 196
_MAX_NAME, _MAX_SETTINGS = 25, 32
_LINE_HEIGHT = 13
_CHARACTER_WIDTH = 6.2  # of the page's 12 px sans serif, on average


@dataclass(frozen=True, kw_only=True)
class Line:
    """A line of a chart.

    Attributes:
        number: Of the policy.
        policy: Its spelling.
        values: One per place on the axis; NaN leaves a gap.
    """

    number: int
    policy: str
    values: Sequence[float]


@dataclass(frozen=True, kw_only=True)
class Row:
    """A mean with its interval.

    Attributes:
        number: Of the policy.
        policy: Its spelling.
        estimate: The mean.
    """

    number: int
    policy: str
    estimate: Estimate


@dataclass(frozen=True, kw_only=True)
class Point:
    """A mean with its interval over a size.

    Attributes:
        number: Of the policy.
        policy: Its spelling.
        size: On the horizontal axis, which is logarithmic.
        estimate: The mean.
    """

    number: int
    policy: str
    size: float
    estimate: Estimate


def line_chart(lines: Sequence[Line], places: Sequence[float], *, x_title: str, about: str) -> str:
    """Lines over a common axis.

    Args:
        lines: The first is drawn on top, as the one that others are compared with.
        places: Where their values stand on the horizontal axis, rising.
        x_title: What that axis shows.
        about: What the chart shows, for those who cannot see it.
    """
    known = [value for line in lines for value in line.values if math.isfinite(value)]
    if not known:
        return ""
    ticks = nice_ticks(min(known), max(known))
    x_ticks = nice_ticks(places[0], places[-1], count=6, inside=True)
    x_ticks = [tick for tick in x_ticks if tick == round(tick)] or x_ticks
    low, high = ticks[0], ticks[-1]
    span = places[-1] - places[0] or 1.0

    def x(place: float) -> float:
        return _LEFT + (WIDTH - _LEFT - _RIGHT) * (place - places[0]) / span

    def y(value: float) -> float:
        return _TOP + (_LINES_HEIGHT - _TOP - _BOTTOM) * (high - value) / (high - low)

    bottom = _LINES_HEIGHT - _BOTTOM
    parts = [_grid_line(_LEFT, y(tick), WIDTH - _RIGHT, y(tick)) for tick in ticks]
    parts += [_text(_LEFT - 8, y(tick) + 4, label, anchor="end") for tick, label in _labelled(ticks)]
    parts += [_text(x(tick), bottom + 16, label, anchor="middle") for tick, label in _labelled(x_ticks)]
    parts.append(_text(WIDTH - _RIGHT, _LINES_HEIGHT - 3, x_title, anchor="end"))
    for line in reversed(lines):
        for run in _runs(line.values):
            points = [(x(places[index]), y(line.values[index])) for index in run]
            parts.append(_path(points, line))
    return _svg(WIDTH, _LINES_HEIGHT, parts, about)


def interval_chart(
    rows: Sequence[Row], *, digits: int, about: str, reference: float | None = None, mark: float | None = None
) -> str:
    """Means with intervals, one below the other, each with its figure.

    Args:
        rows: From top to bottom.
        digits: Behind the point of the figures.
        about: What the chart shows, for those who cannot see it.
        reference: Where a broken line goes across all of them: the mean that they are compared with.
        mark: Where a full line goes across, for instance where a ratio is 1.
    """
    if not rows:
        return ""
    bounds = [bound for row in rows for bound in (row.estimate.mean, *(row.estimate.interval_95 or ()))]
    ticks = nice_ticks(min(bounds), max(bounds), count=4)
    low, high = ticks[0], ticks[-1]
    figure_width = 64
    right = WIDTH - figure_width - 12
    heights = [_ROW_HEIGHT + (_SECOND_LINE if ":" in row.policy else 0) for row in rows]
    bottom = 8 + sum(heights)

    def x(value: float) -> float:
        return _LABEL_WIDTH + (right - _LABEL_WIDTH) * (value - low) / (high - low)

    parts = [_grid_line(x(tick), 4, x(tick), bottom) for tick in ticks]
    parts += [_text(x(tick), bottom + 16, label, anchor="middle") for tick, label in _labelled(ticks)]
    for value, kind in ((reference, "reference"), (mark, "mark")):
        if value is not None and low <= value <= high:
            parts.append(_line(x(value), 4, x(value), bottom, kind))
    middle = 8 - heights[0] / 2
    for before, height, row in zip([heights[0], *heights], heights, rows, strict=False):
        middle += (before + height) / 2
        parts.append(f'<g class="policy p{row.number}"><title>{escape(row.policy)}</title>')
        parts += _label(row, middle)
        if row.estimate.interval_95 is not None:
            start, stop = (x(bound) for bound in row.estimate.interval_95)
            parts.append(_line(start, middle, stop, middle, "interval"))
        parts.append(_dot(x(row.estimate.mean), middle))
        parts.append(_text(WIDTH - 4, middle + 4, f"{row.estimate.mean:.{digits}f}", anchor="end"))
        parts.append("</g>")
    return _svg(WIDTH, bottom + 22, parts, about)


def size_chart(points: Sequence[Point], *, x_title: str, about: str) -> str:
    """Means with intervals over a size, which is drawn on a logarithmic axis in megabytes.

    Args:
        points: One per policy; sizes are in bytes.
        x_title: What the horizontal axis shows.
        about: What the chart shows, for those who cannot see it.
    """
    if not points:
        return ""
    height = 250
    bounds = [bound for point in points for bound in (point.estimate.mean, *(point.estimate.interval_95 or ()))]
    ticks = nice_ticks(min(bounds), max(bounds))
    low, high = ticks[0], ticks[-1]
    sizes = [math.log10(point.size / 1e6) for point in points]
    left_size, right_size = min(sizes) - 0.12, max(sizes) + 0.12
    bottom = height - _BOTTOM

    def x(size: float) -> float:
        return _LEFT + (WIDTH - _LEFT - _RIGHT) * (size - left_size) / (right_size - left_size)

    def y(value: float) -> float:
        return _TOP + (bottom - _TOP) * (high - value) / (high - low)

    parts = [_grid_line(_LEFT, y(tick), WIDTH - _RIGHT, y(tick)) for tick in ticks]
    parts += [_text(_LEFT - 8, y(tick) + 4, label, anchor="end") for tick, label in _labelled(ticks)]
    for megabytes in _size_ticks(left_size, right_size):
        place = x(math.log10(megabytes))
        parts.append(_grid_line(place, _TOP, place, bottom))
        parts.append(_text(place, bottom + 16, f"{megabytes:g}", anchor="middle"))
    parts.append(_text(WIDTH - _RIGHT, height - 3, x_title, anchor="end"))
    for point, size in zip(points, sizes, strict=True):
        parts.append(f'<g class="policy p{point.number}"><title>{escape(point.policy)}</title>')
        if point.estimate.interval_95 is not None:
            start, stop = (y(bound) for bound in point.estimate.interval_95)
            parts.append(_line(x(size), start, x(size), stop, "interval"))
        parts.append(_dot(x(size), y(point.estimate.mean)))
        parts.append("</g>")
    anchors = [(x(size), y(point.estimate.mean)) for point, size in zip(points, sizes, strict=True)]
    parts += _names(points, anchors, bottom)
    return _svg(WIDTH, height, parts, about)


def nice_ticks(low: float, high: float, *, count: int = 5, inside: bool = False) -> list[float]:
    """Round numbers that cover a range, or lie within it, about `count` of them."""
    if high - low < 1e-9 * max(1.0, abs(high)):
        pad = 0.05 * abs(high) or 1.0
        low, high = low - pad, high + pad
    rough = (high - low) / max(1, count - 1)
    magnitude = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * magnitude for factor in (1, 2, 2.5, 5, 10) if factor * magnitude >= rough * 0.999)
    first, last = low / step, high / step
    start, stop = (math.ceil(first), math.floor(last)) if inside else (math.floor(first), math.ceil(last))
    return [index * step for index in range(start, stop + 1)]


def name_of(policy: str) -> str:
    """The name in a spelling, without settings."""
    return policy.partition(":")[0]


def _label(row: Row, middle: float) -> list[str]:
    """Number and name of a policy and, in small under them, its settings."""
    settings = row.policy.partition(":")[2]
    name = _cut(f"{row.number + 1} {name_of(row.policy)}", _MAX_NAME)
    place = _LABEL_WIDTH - 14
    if not settings:
        return [_text(place, middle + 4, name, anchor="end")]
    small = _text(place, middle + 10, _cut(settings, _MAX_SETTINGS), anchor="end", kind="small")
    return [_text(place, middle - 2, name, anchor="end"), small]


def _size_ticks(low: float, high: float) -> list[float]:
    """Megabytes between two powers of ten: 1, 2, 5, 10 and so on, fewer where there are many."""
    factors = (1, 2, 5) if high - low < 2 else (1,)
    decades = range(math.floor(low), math.ceil(high) + 1)
    return [
        factor * 10.0**decade for decade in decades for factor in factors if low <= math.log10(factor) + decade <= high
    ]


def _names(points: Sequence[Point], anchors: Sequence[tuple[float, float]], bottom: float) -> list[str]:
    """The name of each point beside it, or its number where names repeat, moved down until no two overlap."""
    names = [name_of(point.policy) for point in points]
    if len(set(names)) < len(names):
        names = [str(point.number + 1) for point in points]
    parts = []
    taken: list[tuple[float, float, float]] = []  # left, right, base line
    for point, name, (x, y) in sorted(zip(points, names, anchors, strict=True), key=lambda item: item[2][1]):
        width = _CHARACTER_WIDTH * len(name)
        is_left = x + 9 + width > WIDTH - 4
        left = x - 9 - width if is_left else x + 9
        base = y + 4
        while base < bottom - 2 and any(
            left < other_right and other_left < left + width and abs(base - other) < _LINE_HEIGHT
            for other_left, other_right, other in taken
        ):
            base += 3
        taken.append((left, left + width, base))
        place, anchor = (x - 9, "end") if is_left else (x + 9, "start")
        parts.append(f'<g class="policy p{point.number}">{_text(place, base, name, anchor=anchor)}</g>')
    return parts


def _runs(values: Sequence[float]) -> Iterable[list[int]]:
    """Indices of values that are known, in stretches without a gap."""
    run: list[int] = []
    for index, value in enumerate(values):
        if math.isfinite(value):
            run.append(index)
        elif run:
            yield run
            run = []
    if run:
        yield run


def _labelled(ticks: Sequence[float]) -> list[tuple[float, str]]:
    """Ticks with as many digits as tell them apart, the same for all."""
    step = abs(ticks[1] - ticks[0]) if len(ticks) > 1 else 1.0
    digits = 0
    while digits < 6 and abs(step * 10**digits - round(step * 10**digits)) > 1e-6 * step * 10**digits:
        digits += 1
    return [(tick, f"{tick + 0.0:,.{digits}f}".replace("-0.0", "0.0") if tick else "0") for tick in ticks]


def _path(points: Sequence[tuple[float, float]], line: Line) -> str:
    title = f"<title>{escape(line.policy)}</title>"
    if len(points) == 1:
        ((x, y),) = points
        return f'<g class="policy p{line.number}">{title}{_dot(x, y)}</g>'
    path = " ".join(f"{'L' if index else 'M'}{x:.1f} {y:.1f}" for index, (x, y) in enumerate(points))
    return f'<path class="policy p{line.number} course" d="{path}">{title}</path>'


def _dot(x: float, y: float) -> str:
    return f'<circle class="dot" cx="{x:.1f}" cy="{y:.1f}" r="4"/>'


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _grid_line(x1: float, y1: float, x2: float, y2: float) -> str:
    return _line(x1, y1, x2, y2, "grid")


def _text(x: float, y: float, text: str, *, anchor: str, kind: str = "") -> str:
    style = f' class="{kind}"' if kind else ""
    return f'<text{style} x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[: length - 1]}…"


def _svg(width: float, height: float, parts: Sequence[str], about: str) -> str:
    start = f'<svg viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{escape(about)}">'
    return "\n".join([start, *parts, "</svg>"])
