"""Plot geometry by hand: ticks, scaling, thinning."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tagpr_rl.report.charts.plots import forest_chart, line_chart, nice_ticks, short, thin


def test_ticks_are_round() -> None:
    assert nice_ticks(0, 1, 4) == [0, 0.25, 0.5, 0.75, 1.0]
    assert nice_ticks(0, 40, 4) == [0, 10, 20, 30, 40]
    assert nice_ticks(1, 20, 4) == [5, 10, 15, 20]
    assert nice_ticks(3, 3) == [3]


@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e6), st.integers(1, 8))
def test_ticks_stay_inside_and_are_few(low: float, width: float, most: int) -> None:
    ticks = nice_ticks(low, low + width, most)
    slack = 1e-6 * width
    assert len(ticks) <= most + 1
    assert all(low - slack <= t <= low + width + slack for t in ticks)
    assert ticks == sorted(set(ticks))


def test_thin_takes_means_of_neighbours() -> None:
    points = [(1.0, 2.0), (2.0, 4.0), (3.0, 6.0), (4.0, 8.0), (5.0, 1.0)]
    assert thin(points, 5) == (points, 1)
    assert thin(points, 3) == ([(1.5, 3.0), (3.5, 7.0), (5.0, 1.0)], 2)


def test_line_chart_maps_corners_to_corners() -> None:
    chart = line_chart([("a", "c0", [(1, 0.0), (3, 1.0)])], width=100, height=100, y_range=(0, 1))
    assert chart.lines[0].points == f"{chart.left},{chart.bottom} {chart.right},{chart.top}"
    assert chart.lines[0].last == "1"


def test_line_chart_clips_to_a_fixed_range_and_marks_boundaries() -> None:
    chart = line_chart([("a", "c0", [(0, 5.0), (10, 0.5)])], y_range=(0, 1), boundaries=[(5, "explore")])
    assert chart.lines[0].points.startswith(f"{chart.left},{chart.top} ")
    assert chart.boundaries[0].at == pytest.approx((chart.left + chart.right) / 2, abs=0.1)
    assert chart.boundaries[0].label == "explore"


def test_a_constant_series_has_an_axis() -> None:
    chart = line_chart([("a", "c0", [(1, 0.0), (2, 0.0)])])
    assert len(chart.y_ticks) >= 2


def test_forest_axis_is_zero_to_one_and_missing_is_said() -> None:
    chart = forest_chart("t", [("m", "model", 0.5, 0.4, 1.2), ("n", "model", None, None, None)], [("blind", 0.0)])
    middle = (chart.left + chart.right) / 2
    row, missing = chart.rows
    assert (row.x, row.high, row.value) == (pytest.approx(middle), pytest.approx(chart.right), "0.500")
    assert (missing.x, missing.value) == (None, "not run")
    assert chart.ceilings[0].at == chart.left


@pytest.mark.parametrize(
    "value, text",
    [
        (0, "0"),
        (0.25, "0.25"),
        (1280, "1280"),
        (176000, "176,000"),
        (0.00012, "1.2e-4"),
        (-0.5, "-0.5"),
        (2e12, "2.0e+12"),
    ],
)
def test_short(value: float, text: str) -> None:
    assert short(value) == text
