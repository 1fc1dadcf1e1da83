"""Alerts by hand: what fires, what does not, once until it clears, and not again after a restart."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tagpr_rl.backend.tracking.settings import TrackingSettings
from tagpr_rl.backend.tracking.tracker import StageTracker
from tagpr_rl.config.rules import AlertKind, AlertLimits
from tagpr_rl.monitor.alerts import ALERTS, RULES, Alert, AlertWatch, append_alert, firing, read_alerts
from tagpr_rl.types import TagprError

TWO = AlertLimits(window=2)


def kinds(rows: list[dict[str, Any]], limits: AlertLimits = TWO) -> list[str]:
    return [alert.kind for alert in firing(rows, limits, len(rows))]


def test_every_kind_of_the_recipe_has_a_rule() -> None:
    assert set(AlertKind.__args__) == set(RULES)


def test_prmu_rises_while_the_task_falls() -> None:
    def rows(prmu: list[float], task: list[float]) -> list[dict[str, Any]]:
        return [{"reward/prmu/mean": p, "reward/task/mean": t} for p, t in zip(prmu, task, strict=True)]

    hacked = rows([0.5, 0.5, 0.5, 0.6], [0.8, 0.8, 0.7, 0.7])  # PRMU .5 -> .55, task .8 -> .7
    (alert,) = firing(hacked, TWO, 9)
    assert (alert.step, alert.kind, alert.limit) == (9, "prmu_up_task_down", 0.05)
    assert alert.value == pytest.approx(0.1) and "rose by 0.050" in alert.text and "fell by 0.100" in alert.text
    assert kinds(rows([0.5, 0.5, 0.5, 0.6], [0.8, 0.8, 0.78, 0.74])) == []  # falls by .04 only
    assert kinds(rows([0.5, 0.5, 0.5, 0.53], [0.8, 0.8, 0.7, 0.7])) == []  # rises by .015 only
    assert kinds(rows([0.6, 0.5, 0.5, 0.5], [0.8, 0.8, 0.7, 0.7])) == []  # both fall
    assert kinds(hacked[1:]) == []  # not two windows yet
    assert kinds(rows([0.1, 0.9, *[0.5] * 2, 0.5, 0.6], [0.8] * 4 + [0.7] * 2)) == ["prmu_up_task_down"]
    assert kinds(hacked, AlertLimits(window=2, prmu_rise=None)) == []


def test_entropy_collapse_is_measured_against_the_first_window() -> None:
    def rows(*values: float) -> list[dict[str, Any]]:
        return [{"actor/entropy_loss": value} for value in values]

    assert kinds(rows(1.0, 0.6, 0.5, 0.2, 0.1)) == ["entropy_collapse"]  # .15 < .2 * .8
    assert kinds(rows(1.0, 0.6, 0.5, 0.2, 0.13)) == []  # .165
    assert kinds(rows(1.0, 0.6, 0.1)) == []  # too early
    both = [{"actor/entropy": 1.0, "actor/entropy_loss": 0.0}] * 4  # verl's own figure counts where there is one
    assert kinds(both) == []


def test_shares() -> None:
    assert kinds([{"parse/OK": 0.7}, {"parse/OK": 0.6}]) == ["malformed"]  # .35 > .3
    assert kinds([{"parse/OK": 0.7}, {"parse/OK": 0.7}]) == []
    assert kinds([{"parse/OK": 0.7}, {"parse/TRUNCATED": 1.0}]) == ["malformed"]  # none parses
    assert kinds([{}, {}]) == []
    assert kinds([{"prmu/masked_fraction": 0.03}]) == ["masked"]
    assert kinds([{"prmu/masked_fraction": 0.03}, {"prmu/masked_fraction": 0.02}]) == []
    assert kinds([{"training/rollout_probs_diff_max": 0.6}]) == ["probability_gap"]
    flat = [{"groups/zero_variance_fraction": 1.0}] * 2
    assert kinds(flat) == ["flat_groups"]
    assert kinds([{"groups/zero_variance_fraction": 0.96}, *flat[:1]]) == []


def test_limits_of_a_recipe_move_the_bounds() -> None:
    loose = AlertLimits(
        window=1, entropy_fraction=0.05, probability_gap=0.9, flat_groups=None, malformed=0.5, task_fall=0.2
    )
    row = {"actor/entropy": 0.1, "training/rollout_probs_diff_max": 0.6, "groups/zero_variance_fraction": 1.0}
    row |= {"parse/OK": 0.6, "reward/prmu/mean": 0.6, "reward/task/mean": 0.7}
    first = {"actor/entropy": 1.0, "parse/OK": 1.0, "reward/prmu/mean": 0.5, "reward/task/mean": 0.8}
    assert sorted(kinds([first, row], AlertLimits(window=1))) == sorted(
        ["prmu_up_task_down", "entropy_collapse", "malformed", "probability_gap", "flat_groups"]
    )
    assert kinds([first, row], loose) == []  # .1 is not below .05 * 1, .6 not above .9, .4 not above .5, a fall of .1


MASKED = {"prmu/masked_fraction": 0.5}


class TestWatch:
    def steps(self, watch: AlertWatch, values: list[bool], first: int = 1) -> list[int]:
        """Steps at which `masked` is raised."""
        actual = []
        for step, on in enumerate(values, first):
            actual += [alert.step for alert in watch.after(MASKED if on else {"prmu/masked_fraction": 0.0}, step)]
        return actual

    def test_once_until_it_clears(self) -> None:
        assert self.steps(AlertWatch(TWO), [False, True, True, False, True, True]) == [2, 5]

    def test_a_resumed_stage_does_not_repeat_its_alerts(self) -> None:
        raised = [Alert(4, "masked", 0.5, 0.02, "")]
        row = {"step": 2, "prmu/masked_fraction": 0.0}
        # resumed after step 2: steps 3 and 4 are made again; the alert comes earlier, later or at the same step
        assert self.steps(AlertWatch(TWO, [row], raised), [True, True, True], first=3) == []
        assert self.steps(AlertWatch(TWO, [row], raised), [False, True, True], first=3) == []
        assert self.steps(AlertWatch(TWO, [row], raised), [False, False, True], first=3) == []
        assert self.steps(AlertWatch(TWO, [row], raised), [True, True, False, True], first=3) == [6]
        # resumed after step 5, where it was still on, and where it had cleared
        on, off = {"step": 5, **MASKED}, {"step": 5, "prmu/masked_fraction": 0.0}
        assert self.steps(AlertWatch(TWO, [on], raised), [True, False, True], first=6) == [8]
        assert self.steps(AlertWatch(TWO, [off], raised), [True], first=6) == [6]

    @given(st.lists(st.booleans(), max_size=12), st.integers(0, 12), st.integers(0, 12))
    def test_killed_anywhere_and_resumed_from_anywhere_raises_each_alert_once(
        self, values: list[bool], killed: int, checkpoint: int
    ) -> None:
        """A repeat with the same figures: what both attempts raise is what one undisturbed attempt raises."""
        killed = min(killed, len(values))
        checkpoint = min(checkpoint, killed)
        whole = self.steps(AlertWatch(TWO), values)
        reported = self.steps(AlertWatch(TWO), values[:killed])
        rows = [
            {"step": step, "prmu/masked_fraction": 0.5 if on else 0.0} for step, on in enumerate(values[:checkpoint], 1)
        ]
        again = AlertWatch(TWO, rows, [Alert(step, "masked", 0.5, 0.02, "") for step in reported])
        assert reported + self.steps(again, values[checkpoint:], first=checkpoint + 1) == whole


def test_the_file_survives_a_killed_writer(tmp_path: Path) -> None:
    path = tmp_path / ALERTS
    assert read_alerts(path) == []
    first, second = Alert(1, "masked", 0.5, 0.02, "a"), Alert(2, "malformed", 0.5, 0.3, "b")
    append_alert(path, first)
    path.write_text(path.read_text() + '{"step": 2, "ki', encoding="utf-8")
    append_alert(path, second)
    assert read_alerts(path) == [first, second]
    assert set(json.loads(path.read_text().splitlines()[0])) == {"step", "kind", "value", "limit", "text"}


class Sink:
    """Takes what a tracker is given."""

    def __init__(self) -> None:
        self.alerts: list[tuple[str, str]] = []
        self.tables: list[str] = []

    def log(self, row: dict[str, float], step: int) -> None: ...

    def alert(self, title: str, text: str) -> None:
        self.alerts.append((title, text))

    def table(self, name: str, columns: list[str], rows: list[list[Any]]) -> None:
        self.tables.append(name)


def tracker(folder: Path, **limits: Any) -> tuple[StageTracker, Sink]:
    settings = TrackingSettings(
        str(folder / "metrics.jsonl"), "disabled", str(folder), "p", "g", "guided",
        alerts=AlertLimits(window=1, **limits).model_dump(),
    )  # fmt: skip
    made, sink = StageTracker(settings), Sink()
    made._sinks["W&B"] = sink
    return made, sink


def test_a_tracker_writes_sends_and_stops(tmp_path: Path) -> None:
    first, sink = tracker(tmp_path)
    for step in (1, 2):
        first.log(MASKED, step)
    first.table("samples", ["a"], [[1]])
    (alert,) = read_alerts(tmp_path / ALERTS)
    assert (alert.step, alert.kind, alert.value, alert.limit) == (1, "masked", 0.5, 0.02)
    assert sink.alerts == [("guided: masked", alert.text)] and sink.tables == ["samples"]
    first.finish()

    again, sink = tracker(tmp_path, abort_on=("flat_groups",))
    again.log(MASKED, 3)  # still on
    assert sink.alerts == []
    order: list[str] = []
    again.after_row(4, lambda: order.append("checkpoint published"))
    with pytest.raises(TagprError, match="'guided' was stopped at step 4 by the alert flat_groups"):
        again.log({"groups/zero_variance_fraction": 1.0}, 4)
    assert order == ["checkpoint published"]
    assert json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])["step"] == 4
