"""Geometry of a stacked area chart: parts of a sum over steps, positive ones up and negative ones down from 0."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from tagpr_rl.report.charts.plots import LineChart, Point, line_chart, short

HATCHES = ("solid", "diagonal", "dots", "horizontal", "cross", "vertical")
"""Fill patterns in the order of the layers, so that layers differ without colour (templates/hatches.svg.j2)."""

NEGLIGIBLE = 0.02
"""Depth below 0 against the height above it."""


@dataclass(frozen=True, slots=True)
class Layer:
    """One part of the sum as an SVG polygon."""

    label: str
    css: str
    hatch: str
    points: str
    mean: str
    """Mean over the positions, written out."""


@dataclass(frozen=True, slots=True)
class StackChart:
    """Layers in front of a frame whose one line is their sum."""

    frame: LineChart
    layers: tuple[Layer, ...]
    mean: str
    """Mean of the sum over the positions, written out."""


def stacked(series: Sequence[tuple[str, Sequence[float]]]) -> list[tuple[list[float], list[float]]]:
    """(low, high) edges of each of `series` over common positions; values above 0 stack up, below 0 down."""
    count = len(series[0][1]) if series else 0
    up, down = [0.0] * count, [0.0] * count
    edges = []
    for _, values in series:
        low, high = [], []
        for i, value in enumerate(values):
            if value >= 0:
                low.append(up[i])
                up[i] += value
                high.append(up[i])
            else:
                high.append(down[i])
                down[i] += value
                low.append(down[i])
        edges.append((low, high))
    return edges


def stack_chart(
    xs: Sequence[float],
    series: Sequence[tuple[str, Sequence[float]]],
    *,
    width: int = 330,
    height: int = 202,
    x_range: Point | None = None,
    boundaries: Sequence[tuple[float, str]] = (),
) -> StackChart:
    """Lay out `series` of (label, values at `xs`). A series that is 0 everywhere is left out of the picture."""
    # A layer keeps its colour whichever others are there.
    places = [place for place, (_, values) in enumerate(series) if any(values)]
    kept = [series[place] for place in places]
    edges = stacked(kept)
    lows = [min((low[i] for low, _ in edges), default=0.0) for i in range(len(xs))]
    highs = [max((high[i] for _, high in edges), default=0.0) for i in range(len(xs))]
    if -min(lows) < NEGLIGIBLE * max(highs):  # no room below 0 for a layer thinner than its line
        lows = [0.0] * len(xs)
    total = [sum(values[i] for _, values in kept) for i in range(len(xs))]
    frame = line_chart(
        [
            ("total", "total", list(zip(xs, total, strict=True))),
            # Not drawn: they make the frame as wide as the layers.
            ("", "frame", list(zip(xs, lows, strict=True))),
            ("", "frame", list(zip(xs, highs, strict=True))),
            ("", "frame", [(x, 0.0) for x in xs]),
        ],
        width=width,
        height=height,
        x_range=x_range,
        boundaries=boundaries,
    )
    sx = [pair.split(",")[0] for pair in frame.lines[3].points.split()]
    layers = []
    for place, (label, values), (low, high) in zip(places, kept, edges, strict=True):
        top = [f"{x},{min(frame.y_at(y), frame.bottom)}" for x, y in zip(sx, high, strict=True)]
        back = [f"{x},{min(frame.y_at(y), frame.bottom)}" for x, y in zip(sx, low, strict=True)][::-1]
        hatch = HATCHES[place % len(HATCHES)]
        layers.append(Layer(label, f"c{place % 8}", hatch, " ".join([*top, *back]), short(statistics.fmean(values))))
    return StackChart(frame, tuple(layers), short(statistics.fmean(total)))
