"""Rubric: the weighted sum by hand, every key for every response, and the caller's mistakes."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tagpr_rl.reward.components import short_form
from tagpr_rl.reward.rubric import Rubric
from tagpr_rl.reward.task import TASK_NAMES
from tagpr_rl.tags.schema import default_schema
from tagpr_rl.types import ParseStatus, TagprError

RUBRIC = Rubric(default_schema(), short_form(alpha=0.5, beta=0.25, gamma=0.125))
THOUGHT = (
    "<think><examine_examples>one two three four</examine_examples>"
    "<infer_preference>likes five</infer_preference></think>"
)


def test_total_by_hand() -> None:
    """task 2/3 (LaMP_3, 5 for 4), tag 2/3 (one of three required tags missing), no 4-gram twice."""
    got = RUBRIC.score(THOUGHT + "5", task="LaMP_3", gold="4", prmu=0.5, prmu_status="scored")
    parts = (
        got.components["task"],
        got.components["format"],
        got.components["tag"],
        got.components["prmu"],
        got.components["repetition"],
    )
    assert parts == pytest.approx((2 / 3, 1.0, 2 / 3, 0.5, 0.0))
    assert got.total == pytest.approx(2 / 3 + 0.5 * 2 / 3 + 0.25 * 0.5)
    assert (got.parse_status, got.prmu_status) == ("OK", "scored")


def test_repetition_is_of_the_step_texts() -> None:
    """Texts "a b c d a b c d" and "e": 9 tokens, 6 4-grams, one of them twice; tags are not counted."""
    steps = "<examine_examples>a b c d a b c d</examine_examples><infer_preference>e</infer_preference>"
    got = RUBRIC.score(f"<think>{steps}</think>4", task="LaMP_3", gold="4")
    assert got.components["repetition"] == pytest.approx(-1 / 6)
    assert got.total == pytest.approx(1.0 + 0.5 * 2 / 3 - 0.125 / 6)


def test_malformed_has_every_key_and_no_task_reward() -> None:
    """Right answer, no thought: only the raw text's repetition counts (abcd bcda cdab dabc abcd), and PRMU is gated."""
    answer = "a b c d a b c d"
    got = RUBRIC.score(answer, task="LaMP_2", gold=answer, prmu=1.0, prmu_status="scored")
    assert (got.components["task"], got.components["format"], got.components["tag"], got.components["prmu"]) == (
        0.0,
        0.0,
        0.0,
        1.0,
    )
    assert got.components["repetition"] == pytest.approx(-1 / 5)
    assert got.total == pytest.approx(-0.125 / 5)
    assert got.parse_status == ParseStatus.NO_THOUGHT.value
    assert tuple(got.row()) == RUBRIC.keys


def test_exploratory_weights_leave_task_and_repetition() -> None:
    rubric = Rubric(default_schema(), short_form(alpha=0.0, beta=0.0, gamma=0.125))
    got = rubric.score(THOUGHT + "4", task="LaMP_3", gold="4")
    assert got.total == 1.0
    assert got.components["tag"] == pytest.approx(2 / 3)


@pytest.mark.parametrize("status", ["off", "masked"])
def test_no_prmu_score_says_why(status: str) -> None:
    got = RUBRIC.score(THOUGHT + "4", task="LaMP_3", gold="4", prmu_status=status)
    assert (got.components["prmu"], got.prmu_status) == (0.0, status)


def test_prefilled_is_passed_on() -> None:
    response = THOUGHT.removeprefix("<think>") + "4"
    assert RUBRIC.score(response, task="LaMP_3", gold="4").components["format"] == 0.0
    prefilled = Rubric(RUBRIC.schema, RUBRIC.terms, prefilled=True)
    assert prefilled.score(response, task="LaMP_3", gold="4").components["format"] == 1.0


def test_old_runs_know_the_keys_of_a_row() -> None:
    assert RUBRIC.keys == (
        "total", "task", "format", "tag", "prmu", "repetition", "parse_status", "prmu_status"
    )  # fmt: skip


@given(st.text(), st.sampled_from(TASK_NAMES), st.one_of(st.none(), st.floats(0, 1)))
def test_every_response_gets_every_key_in_range(text: str, task: str, prmu: float | None) -> None:
    for response in (text, THOUGHT + text):
        status = "off" if prmu is None else "scored"
        row = RUBRIC.score(response, task=task, gold="3", prmu=prmu, prmu_status=status).row()
        assert tuple(row) == RUBRIC.keys
        for key, low, high in (("task", 0, 1), ("tag", 0, 1), ("prmu", 0, 1), ("repetition", -1, 0)):
            value = row[key]
            assert isinstance(value, float)
            assert low <= value <= high
        assert row["format"] in (0.0, 1.0)
        assert row["format"] == 1.0 or row["task"] == row["tag"] == 0.0


@pytest.mark.parametrize("prmu", [math.nan, math.inf, -0.01, 1.01])
def test_prmu_out_of_range(prmu: float) -> None:
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        RUBRIC.score("x", task="LaMP_1", gold="[1]", prmu=prmu, prmu_status="scored")


@pytest.mark.parametrize(("prmu", "status"), [(None, "scored"), (0.5, "off"), (0.5, "masked"), (0.5, "done")])
def test_prmu_and_status_must_agree(prmu: float | None, status: str) -> None:
    with pytest.raises(ValueError, match="prmu"):
        RUBRIC.score("x", task="LaMP_1", gold="[1]", prmu=prmu, prmu_status=status)


@pytest.mark.parametrize("response", ["malformed", THOUGHT + "4"])
def test_bad_data_is_reported_whatever_the_policy_wrote(response: str) -> None:
    with pytest.raises(TagprError, match="unknown task"):
        RUBRIC.score(response, task="LaMP_9", gold="4")
    with pytest.raises(TagprError, match="is no number"):
        RUBRIC.score(response, task="LaMP_3", gold="four")


@pytest.mark.parametrize("bad", [-0.1, math.nan, math.inf])
@pytest.mark.parametrize("key, term", [("alpha", "tag"), ("beta", "prmu"), ("gamma", "repetition")])
def test_bad_weights(key: str, term: str, bad: float) -> None:
    with pytest.raises(ValueError, match=f"weight of {term} must be finite"):
        short_form(**{key: bad})
