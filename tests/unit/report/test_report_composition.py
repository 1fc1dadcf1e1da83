"""Reward composition, time by phase and tags over time: numbers by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
from made_report import GOOD, jsonl, make_recipe, make_run

from tagpr_rl.report.charts.curves import chains_of, composition, curve_groups, phases
from tagpr_rl.report.charts.stacked import stack_chart, stacked
from tagpr_rl.report.charts.tag_curves import counted, tag_curves
from tagpr_rl.report.page.traces import viewer_data
from tagpr_rl.tags.schema import default_schema


def test_parts_stack_up_from_zero_and_down_from_zero() -> None:
    edges = stacked([("a", [1.0, 2.0]), ("b", [0.5, 0.0]), ("c", [-0.25, -0.5])])
    assert edges == [([0.0, 0.0], [1.0, 2.0]), ([1.0, 2.0], [1.5, 2.0]), ([-0.25, -0.5], [0.0, 0.0])]


def test_a_stack_is_drawn_to_scale() -> None:
    chart = stack_chart([1.0, 2.0], [("a", [1.0, 1.0]), ("none", [0.0, 0.0]), ("b", [1.0, 3.0])], height=164)
    frame = chart.frame  # plotting area from 12 to 132: 120 units for 0 to 4
    assert frame.y_range == (0.0, 4.0) and frame.y_at(1.0) == 102.0
    assert [layer.label for layer in chart.layers] == ["a", "b"]  # what is 0 everywhere is left out
    assert [layer.hatch for layer in chart.layers] == ["solid", "dots"]  # each in its own place
    ys = [float(pair.split(",")[1]) for pair in chart.layers[1].points.split()]
    assert ys == [72.0, 12.0, 102.0, 102.0]  # upper edge 2 and 4, then back along the lower one
    assert [float(p.split(",")[1]) for p in frame.lines[0].points.split()] == [72.0, 12.0]  # their sum


def test_a_layer_too_thin_to_see_makes_no_room_below_zero() -> None:
    thin = stack_chart([1.0], [("a", [1.0]), ("b", [-0.001])])
    assert thin.frame.y_range[0] == 0.0
    assert stack_chart([1.0], [("a", [1.0]), ("b", [-0.5])]).frame.y_range[0] == -0.5


def test_the_total_is_taken_apart_by_the_stages_weights(tmp_path: Path) -> None:
    run = make_run(tmp_path, evaluated=False)
    # guided: alpha .2, beta .2, gamma .1. explore: gamma .1 alone.
    row = {"reward/tag/mean": 0.5, "reward/prmu/mean": 0.25, "reward/repetition/mean": -0.5}
    jsonl(run.stage(7, "guided").metrics, [{"step": 1, "reward/total/mean": 1.0, **row}])
    jsonl(run.stage(8, "explore").metrics, [{"step": 1, "reward/total/mean": 0.75, **row}])
    (chain,) = chains_of(run, make_recipe())
    figure = composition(chain)
    assert figure is not None
    # guided: 1 = .9 + .1 + .05 - .05; explore: .75 = .8 - .05
    mean = {layer.label: float(layer.mean) for layer in figure.chart.layers}
    assert mean == {"task × format": 0.85, "tag": 0.05, "prmu": 0.025, "repetition": -0.05}
    low, high = (figure.chart.frame.y_at(y) for y in (0.0, 0.9))
    points = [float(p.split(",")[1]) for p in figure.chart.layers[0].points.split()]
    assert points[0] == high and points[-1] == low
    assert [tick.label for tick in figure.chart.frame.boundaries] == ["guided", "explore"]


def test_phases_are_shares_of_a_step(tmp_path: Path) -> None:
    run = make_run(tmp_path, evaluated=False)
    rows = [{"step": s, "phase/generation_share": 0.8 - s / 5, "phase/update_actor_share": 0.3} for s in (1, 2)]
    jsonl(run.stage(7, "guided").metrics, rows)
    (chain,) = chains_of(run, make_recipe())
    figure = phases(chain)
    assert figure is not None
    assert [(layer.label, layer.mean) for layer in figure.chart.layers] == [
        ("generation", "0.5"),  # the mean of .6 and .4, not the last step's
        ("update actor", "0.3"),
    ]
    assert figure.chart.mean == "0.8"


def test_logged_tag_figures_go_before_counted_ones(tmp_path: Path) -> None:
    run, recipe = make_run(tmp_path, evaluated=False), make_recipe()
    data = viewer_data(run, recipe, default_schema())
    counts = tag_curves(chains_of(run, recipe), data)
    assert "counted in the 6 rollouts below" in counts.note
    assert counts.figures == ()  # every step is alike: one of two responses parses
    assert {"examine_examples: use 0.5", "conclude: use 0"} < set(counts.constant)
    rows = [
        {"step": step, "tag/conclude/use": step / 8, "tag/conclude/valid": 0.5, "tag/conclude/words": 12}
        for step in (1, 2)
    ]
    jsonl(run.stage(7, "guided").metrics, rows)
    logged = tag_curves(chains_of(run, recipe), data)
    assert [figure.name.label for figure in logged.figures] == ["conclude"]
    assert logged.constant == ("words per step: conclude 12",)
    assert [(line.label, line.last) for line in logged.figures[0].chart.lines] == [("use", "0.25"), ("valid", "0.5")]
    assert "As logged while training" in logged.note


def test_use_is_counted_step_by_step(tmp_path: Path) -> None:
    run, recipe = make_run(tmp_path, evaluated=False), make_recipe()
    path = run.stage(7, "guided").rollouts / "step_0002.jsonl"
    base = {"task": "LaMP_3", "record_id": "7", "prompt": "p", "gold": "4", "step": 2, "reward_total": 1.0}
    jsonl(path, [{**base, "sample": i, "response": GOOD} for i in range(4)])
    figures = counted(chains_of(run, recipe)[0], viewer_data(run, recipe, default_schema()))
    used = next(f for f in figures if f.name.label == "infer_preference").chart
    assert [float(p.split(",")[1]) for p in used.lines[0].points.split()] == pytest.approx(
        [used.y_at(0.5), used.y_at(1.0), used.y_at(0.5)]
    )


def test_components_have_a_chart_of_groups_without_a_difference(tmp_path: Path) -> None:
    run = make_run(tmp_path, evaluated=False)
    rows = [
        {"step": s, "reward/total/zero_variance": 0.25, "reward/task/zero_variance": s / 4, "actor/ppo_kl": 0.0}
        for s in (1, 2)
    ]
    jsonl(run.stage(7, "guided").metrics, rows)
    jsonl(run.stage(8, "explore").metrics, [])
    (group,) = curve_groups(run, make_recipe())[1:]
    figures = {f.name.label: f for panel in group.panels for f in panel.figures}
    lines = figures["groups without a difference"].chart.lines
    assert [(line.label, line.last) for line in lines] == [("task", "0.5")]  # the total is `silent groups`
    assert group.constant == ("KL to the sampler 0",) and len(figures) == 1
