"""Geometry of the report's plots in SVG units; the templates draw it. Pure functions.

No plotting library, so that the page's style sheet can colour the lines in light and dark mode.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Tick:
    """A position on an axis in SVG units, with its label."""

    at: float
    label: str


@dataclass(frozen=True, slots=True)
class Line:
    """One series as an SVG polyline."""

    label: str
    css: str
    points: str
    """The `points` attribute."""
    last: str
    """Last value, written out."""


@dataclass(frozen=True, slots=True)
class LineChart:
    """A small line chart; the plotting area is [left, right] x [top, bottom] in SVG units."""

    width: int
    height: int
    left: float
    right: float
    top: float
    bottom: float
    lines: tuple[Line, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    boundaries: tuple[Tick, ...]
    """Vertical lines: where a stage begins, with its name."""
    y_range: Point
    """Values at `bottom` and `top`."""
    x_label: str = "step"
    constant: bool = False
    """Whether no series changes, so that a sentence says as much as the picture."""

    def y_at(self, value: float) -> float:
        """A value's height in SVG units."""
        low, high = self.y_range
        return round(self.bottom - (self.bottom - self.top) * (value - low) / (high - low), 1)


def thin(points: Sequence[Point], most: int) -> tuple[list[Point], int]:
    """At most `most` points: means over buckets of k neighbours. Returns (points, k); k = 1 is unthinned."""
    k = max(1, math.ceil(len(points) / most))
    if k == 1:
        return list(points), 1
    buckets = [points[i : i + k] for i in range(0, len(points), k)]
    return [(sum(x for x, _ in b) / len(b), sum(y for _, y in b) / len(b)) for b in buckets], k


def _step(low: float, high: float, most: int) -> float:
    """The least round step (1, 2, 2.5 or 5 times a power of ten) that makes at most `most` intervals."""
    raw = (high - low) / most
    power = 10.0 ** math.floor(math.log10(raw))
    return next((m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * (1 - 1e-9)), 10 * power)


def nice_ticks(low: float, high: float, most: int = 4) -> list[float]:
    """Round values in [low, high], at most `most` + 1 of them; [low] when high is not above low."""
    if not high > low:
        return [low]
    step = _step(low, high, most)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def short(value: float) -> str:
    """A number in at most about six characters, for axis labels and cells."""
    if value == 0:
        return "0"
    if 10000 <= abs(value) < 1e9:
        return f"{value:,.0f}"
    if abs(value) >= 1e9 or abs(value) < 0.001:
        return f"{value:.1e}".replace("e-0", "e-").replace("e+0", "e")
    if abs(value) >= 100:
        return f"{value:.0f}"
    return f"{value:.3g}"


def line_chart(
    series: Sequence[tuple[str, str, Sequence[Point]]],
    *,
    width: int = 280,
    height: int = 144,
    x_range: Point | None = None,
    y_range: Point | None = None,
    boundaries: Sequence[tuple[float, str]] = (),
    x_label: str = "step",
) -> LineChart:
    """Lay out `series` of (label, css class, points). A given range fixes its axis; otherwise the axis fits the data.

    `boundaries` are (x, label) pairs: the first x of a stage after the first.
    """
    left, top, right, bottom = 40.0, 12.0, width - 8.0, height - 32.0
    xs = [x for _, _, points in series for x, _ in points]
    ys = [y for _, _, points in series for _, y in points]
    x_low, x_high = x_range if x_range else ((min(xs), max(xs)) if xs else (0.0, 1.0))
    y_low, y_high = y_range if y_range else ((min(ys), max(ys)) if ys else (0.0, 1.0))
    if y_low == y_high:
        pad = abs(y_low) * 0.1 or 0.5
        y_low, y_high = y_low - pad, y_high + pad
    if y_range is None:  # out to the next round values, so that the axis has labels at both ends
        step = _step(y_low, y_high, 3)
        y_low, y_high = math.floor(y_low / step + 1e-9) * step, math.ceil(y_high / step - 1e-9) * step

    def sx(x: float) -> float:
        return round(left + (right - left) * ((x - x_low) / (x_high - x_low) if x_high > x_low else 0.5), 1)

    constant = all(len({y for _, y in points}) < 2 for _, _, points in series)
    empty = LineChart(width, height, left, right, top, bottom, (), (), (), (), (y_low, y_high), x_label, constant)
    lines = tuple(
        Line(
            label,
            css,
            " ".join(f"{sx(x)},{empty.y_at(min(max(y, y_low), y_high))}" for x, y in points),
            short(points[-1][1]),
        )
        for label, css, points in series
        if points
    )
    return replace(
        empty,
        lines=lines,
        x_ticks=tuple(Tick(sx(x), short(x)) for x in nice_ticks(x_low, x_high)),
        y_ticks=tuple(Tick(empty.y_at(y), short(y)) for y in nice_ticks(y_low, y_high, 3)),
        boundaries=tuple(Tick(sx(x), label) for x, label in boundaries),
    )


@dataclass(frozen=True, slots=True)
class ForestRow:
    """One score with its interval; positions in SVG units, None for a missing number."""

    label: str
    css: str
    y: float
    x: float | None
    low: float | None
    high: float | None
    value: str


@dataclass(frozen=True, slots=True)
class ForestChart:
    """Scores of one task as dots with intervals, ceilings as vertical lines."""

    title: str
    width: int
    height: int
    left: float
    right: float
    rows: tuple[ForestRow, ...]
    x_ticks: tuple[Tick, ...]
    ceilings: tuple[Tick, ...]


def forest_chart(
    title: str,
    rows: Sequence[tuple[str, str, float | None, float | None, float | None]],
    ceilings: Sequence[tuple[str, float]],
    *,
    width: int = 330,
    row_height: int = 20,
    label_width: float = 84.0,
    axis: tuple[float, float] = (0.0, 1.0),
    sign: bool = False,
) -> ForestChart:
    """Lay out `rows` of (label, css class, value, low, high) on the fixed `axis`; a value outside is drawn at its end.

    `sign`: values are differences, written with their sign.
    """
    left, right, top = label_width, width - 46.0, 24.0
    start, end = axis

    def at(value: float) -> float:
        return left + (right - left) * (min(max(value, start), end) - start) / (end - start)

    def sx(value: float | None) -> float | None:
        return None if value is None else round(at(value), 1)

    placed = tuple(
        ForestRow(
            label,
            css,
            top + row_height * (i + 0.5),
            sx(value),
            sx(low),
            sx(high),
            "not run" if value is None else f"{value:+.3f}" if sign else f"{value:.3f}",
        )
        for i, (label, css, value, low, high) in enumerate(rows)
    )
    shown = (0.0, 0.25, 0.5, 0.75, 1.0) if axis == (0.0, 1.0) else nice_ticks(start, end)
    ticks = tuple(Tick(at(v), f"{v:g}") for v in shown)
    marks = sorted((at(v), name) for name, v in ceilings)
    return ForestChart(
        title, width, int(top + row_height * len(rows) + 22), left, right, placed, ticks,
        tuple(Tick(x, name) for x, name in marks),
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar from the chart's `left`; positions in SVG units."""

    label: str
    y: float
    """Upper edge."""
    width: float
    value: str


@dataclass(frozen=True, slots=True)
class BarChart:
    """Counts as horizontal bars on a common axis from 0."""

    title: str
    width: int
    height: int
    left: float
    bar_height: float
    rows: tuple[Bar, ...]


def bar_chart(title: str, counts: Sequence[tuple[str, float]], *, width: int = 330, row_height: int = 18) -> BarChart:
    """Lay out (label, count >= 0) rows; the largest fills the width that labels and its number leave."""
    shown = [label if len(label) <= 30 else f"{label[:29]}…" for label, _ in counts]
    left = 12.0 + 5.5 * max(map(len, shown), default=0)  # a character at font size 10
    most = max((value for _, value in counts), default=0)
    room = width - left - 52.0
    rows = tuple(
        Bar(label, 4.0 + row_height * i, round(room * value / most, 1) if most else 0.0, short(value))
        for i, (label, (_, value)) in enumerate(zip(shown, counts, strict=True))
    )
    return BarChart(title, width, 8 + row_height * len(counts), left, row_height - 5.0, rows)


def histogram(values: Sequence[int], most: int = 10) -> list[tuple[str, int]]:
    """Whole numbers in at most `most` equal ranges of whole width, as (`low-high`, count), empty ones included."""
    if not values:
        return []
    low, high = min(values), max(values)
    width = -(-(high - low + 1) // most)
    ranges = [(start, min(start + width - 1, high)) for start in range(low, high + 1, width)]
    return [(str(a) if a == b else f"{a}-{b}", sum(a <= value <= b for value in values)) for a, b in ranges]
