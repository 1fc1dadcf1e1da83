"""Stop rules: plateau and budgets by hand, and that they never depend on what comes after."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tagpr_rl.config.rules import PlateauBlock, StopBlock
from tagpr_rl.monitor.stop import SECONDS, TOKENS, Stop, plateau, stop_after
from tagpr_rl.types import TagprError


def rows(values: list[float], **fixed: float) -> list[dict[str, Any]]:
    return [{"step": i, "reward/task/mean": value, **fixed} for i, value in enumerate(values, start=1)]


def first_stop(found: list[dict[str, Any]], rule: StopBlock, steps: int = 100) -> Stop | None:
    """As a trainer asks: after every step, until it says stop."""
    for end in range(1, len(found) + 1):
        if (stop := stop_after(found[:end], rule, steps)) is not None:
            return stop
    return None


def test_a_plateau_by_hand() -> None:
    # Means of 2: .15 .25 .35 .35 .30 .25; the best (.35) comes at step 4, and steps 5, 6 and 7 do not beat it.
    values = [0.1, 0.2, 0.3, 0.4, 0.3, 0.3, 0.2]
    rule = StopBlock(plateau=PlateauBlock(window=2, patience=3))
    assert first_stop(rows(values[:6]), rule) is None
    stop = first_stop(rows(values), rule)
    assert stop is not None and (stop.step, stop.rule) == (7, "plateau")
    assert stop.note(26) == (
        "stopped at step 7 of 26: plateau: the 2-step mean of reward/task/mean has not got better by more than 0 "
        "for 3 steps; the best was 0.3500"
    )


def test_gains_that_are_too_small_do_not_count_but_add_up() -> None:
    # Against the best so far (.10): .13 is not more than .05 above it, .16 is.
    rule = PlateauBlock(window=1, patience=2, min_gain=0.05)
    assert plateau([0.10, 0.13, 0.16, 0.16], rule) == ""
    assert plateau([0.10, 0.13, 0.14], rule).endswith("for 2 steps; the best was 0.1000")


def test_lower_may_be_better() -> None:
    rule = PlateauBlock(metric="actor/entropy", window=1, patience=1, better="lower")
    assert plateau([2.0, 1.0, 0.5], rule) == ""
    assert plateau([2.0, 1.0, 1.5], rule).endswith("the best was 1.0000")


@pytest.mark.parametrize(
    "rule, step, reason",
    [
        (StopBlock(max_seconds=25), 3, "max_seconds: 30 s of training steps, the budget is 25"),
        (StopBlock(max_seconds=20), 2, "max_seconds: 20 s of training steps, the budget is 20"),
        (StopBlock(max_tokens=3_500), 4, "max_tokens: 4,000 tokens, the budget is 3,500"),
    ],
)
def test_budgets_by_hand(rule: StopBlock, step: int, reason: str) -> None:
    stop = first_stop(rows([0.0] * 6, **{SECONDS: 10.0, TOKENS: 1000.0}), rule)
    assert stop is not None and (stop.step, stop.reason) == (step, reason)


def test_the_last_step_of_all_is_no_early_end() -> None:
    rule = StopBlock(max_tokens=1)
    actual = rows([0.0] * 3, **{TOKENS: 5.0})
    assert stop_after(actual, rule, 3) is None
    assert stop_after(actual, rule, 4) is not None
    assert stop_after([], rule, 4) is None and stop_after(actual, None, 4) is None


def test_a_metric_that_is_not_there_is_an_error_with_those_that_are() -> None:
    rule = StopBlock(plateau=PlateauBlock(metric="reward/taks/mean"))
    with pytest.raises(
        TagprError, match=r"stop\.plateau\.metric: step 1 has no metric 'reward/taks/mean'.*reward/task"
    ):
        stop_after(rows([0.5]), rule, 10)


@given(st.integers(1, 6), st.integers(1, 6), st.floats(-5, 5))
def test_a_constant_metric_stops_after_window_and_patience(window: int, patience: int, value: float) -> None:
    # The first window is the best one; `patience` more steps do not beat it.
    rule = StopBlock(plateau=PlateauBlock(window=window, patience=patience, min_gain=1e-6))
    stop = first_stop(rows([value] * 20), rule)
    assert stop is not None and stop.step == window + patience


@given(st.lists(st.floats(0.001, 1), min_size=1, max_size=30), st.integers(1, 4), st.integers(1, 4))
def test_a_metric_that_rises_at_every_step_never_stops(gains: list[float], window: int, patience: int) -> None:
    values = [sum(gains[: i + 1]) for i in range(len(gains))]
    assert first_stop(rows(values), StopBlock(plateau=PlateauBlock(window=window, patience=patience))) is None
