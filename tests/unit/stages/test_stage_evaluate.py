"""The evaluate stage's arithmetic between models."""

from __future__ import annotations

import pytest

from tagpr_rl.eval.lamp_eval import EvalResult, evaluate
from tagpr_rl.stages.evaluate import comparisons
from tagpr_rl.tags.schema import default_schema
from tagpr_rl.types import LampRecord

RECORDS = [
    LampRecord(str(n), "LaMP_2", "dev", user, f"Which tag? description: film {n}", (), gold)
    for n, user, gold in ((1, "a", "comedy"), (2, "b", "comedy"), (3, "b", "action"))
]


def scored(**right: bool) -> EvalResult:
    """The three questions, right or wrong ("classic" is no gold)."""
    responses = {record.id: str(record.gold) if right[f"q{record.id}"] else "classic" for record in RECORDS}
    return evaluate(RECORDS, responses, default_schema())


def test_each_model_is_compared_with_the_one_before_and_with_the_last() -> None:
    results = {
        "base": scored(q1=False, q2=False, q3=False),
        "answers": scored(q1=True, q2=True, q3=False),
        "sft": scored(q1=True, q2=False, q3=False),
        "final": scored(q1=True, q2=True, q3=True),
    }
    actual = {(row["a"], row["b"]): row["difference"] for row in comparisons(results)}
    assert actual == {
        ("base", "answers"): pytest.approx(2 / 3),
        ("answers", "sft"): pytest.approx(-1 / 3),
        ("sft", "final"): pytest.approx(2 / 3),
        ("base", "final"): pytest.approx(1),
        ("answers", "final"): pytest.approx(1 / 3),
    }
    assert len(comparisons(results)) == 5
    assert comparisons({"base": results["base"]}) == []
