"""A sweep's page: means by hand, which numbers make a sensitivity plot, and where a run's report finds it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from made_report import EVIL, make_recipe, make_run

from tagpr_rl.files import write_json
from tagpr_rl.report import build_report
from tagpr_rl.report.cards.sweep_page import sweep_page, sweep_view
from tagpr_rl.types import TagprError


def arm(one: float, two: float, **overrides: Any) -> dict[str, Any]:
    seeds = {str(seed): {"score": s, "by_task": {"LaMP_2": s, "LaMP_3": 0.5}} for seed, s in ((1, one), (2, two))}
    mean = (one + two) / 2
    return {
        "overrides": {key.replace("__", "."): value for key, value in overrides.items()}, "per_seed": seeds,
        "score": [mean, mean - 0.1, mean + 0.1], "against_first": [mean - 0.5, -0.25, 0.125], "seed_sd": 0.0625,
    }  # fmt: skip


def sweep(folder: Path, **arms: Any) -> Path:
    content = {
        "format": 1, "name": "weights", "seeds": [1, 2], "questions": 40, "bounds": {"oracle": 0.9},
        "also": {"sft": arm(0.25, 0.25)},
        "arms": {"full": arm(0.5, 0.5), **arms},
    }  # fmt: skip
    write_json(folder / "sweep.json", content)
    return folder / "sweep.json"


def test_arms_have_means_differences_and_seeds(tmp_path: Path) -> None:
    view = sweep_view(sweep(tmp_path, no_prmu=arm(0.25, 0.5, stages__guided__prmu=None)))
    assert view is not None
    full, no_prmu, sft = view.arms
    assert full.difference == (None, None, None) and full.seed_sd is None  # against itself
    assert no_prmu.difference == (-0.125, -0.25, 0.125) and no_prmu.seed_sd == 0.0625
    assert no_prmu.seeds == (0.25, 0.5) and no_prmu.by_task == (0.375, 0.5)  # LaMP_2: mean of the seeds
    assert no_prmu.overrides == (("stages.guided.prmu", "null"),)
    assert sft.name == "sft (a stage of the first arm)"
    assert [row.value for row in view.forest.rows] == ["0.500", "0.375", "0.250"]
    gaps = view.differences
    assert gaps is not None and [row.value for row in gaps.rows] == ["-0.125", "-0.250"]  # no_prmu, sft
    row, centre, half = gaps.rows[0], (gaps.left + gaps.right) / 2, (gaps.right - gaps.left) / 2
    # The widest number is 0.25, so the axis reaches 0.275 to both sides of 0.
    assert (row.x, row.low, row.high) == tuple(round(centre + half * v / 0.275, 1) for v in (-0.125, -0.25, 0.125))
    assert [(mark.label, mark.at) for mark in gaps.ceilings] == [("no difference", pytest.approx(centre))]
    assert view.sensitivity == ()  # nothing varies over three numbers


def test_three_values_of_a_number_make_a_plot(tmp_path: Path) -> None:
    arms = {
        f"a{a}b{b}": arm(a + b / 10, a + b / 10, alpha=a, beta=b, name="x") for a in (0.0, 0.25, 0.5) for b in (0, 1)
    }
    view = sweep_view(sweep(tmp_path, **arms))
    assert view is not None
    assert [plot.key for plot in view.sensitivity] == ["alpha"]  # beta takes two values, name is no number
    mean, dots = view.sensitivity[0].chart.lines
    assert len(dots.points.split()) == 6 and len(mean.points.split()) == 3
    assert mean.last == "0.55"  # alpha 0.5: (0.5 + 0.6) / 2


def test_a_page_of_its_own_and_a_section_in_the_runs_report(tmp_path: Path) -> None:
    run = make_run(tmp_path / "weights")
    assert 'id="ablations"' not in build_report(run, make_recipe()).read_text()
    sweep(tmp_path / "weights", **{EVIL: arm(0.4, 0.4)})
    assert 'href="../sweep.html"' not in build_report(run, make_recipe()).read_text()  # there is no such page yet
    page = sweep_page(tmp_path / "weights")
    assert "0.375" not in page.read_text() and "0.400" in page.read_text() and EVIL not in page.read_text()
    text = build_report(run, make_recipe()).read_text()
    assert 'id="ablations"' in text and 'href="../sweep.html"' in text and EVIL not in text


def test_sweeps_beside_a_run_are_found_and_a_broken_one_stops_nothing(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    sweep(tmp_path / "sweeps" / "b")
    sweep_page(tmp_path / "sweeps" / "b")
    (tmp_path / "sweeps" / "a").mkdir()
    (tmp_path / "sweeps" / "a" / "sweep.json").write_text('{"format": 1')
    text = build_report(run, make_recipe()).read_text()
    assert 'href="../sweeps/b/sweep.html"' in text and "a/sweep.json is not valid JSON" in text


def test_broken_or_missing_sweeps_are_errors(tmp_path: Path) -> None:
    with pytest.raises(TagprError, match=r"has no sweep\.json"):
        sweep_page(tmp_path)
    write_json(tmp_path / "sweep.json", {"format": 2, "arms": {}})
    with pytest.raises(TagprError, match="found format 2"):
        sweep_page(tmp_path)
