"""Official metrics against numbers derived by hand, and intervals over users."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tagpr_rl.data.tasks import TASKS
from tagpr_rl.eval.metrics import (
    accuracy,
    is_unparsable,
    macro_f1,
    mean_over_tasks,
    official_metrics,
    paired_difference,
    rating,
    task_mean,
    user_macro_mean,
)
from tagpr_rl.types import MetricResult, TagprError


def by_name(results: Sequence[MetricResult]) -> dict[str, MetricResult]:
    return {result.name: result for result in results}


def run(task: str, answers: list[str], golds: list[str]) -> dict[str, MetricResult]:
    return by_name(official_metrics(task, answers, golds, [f"u{n}" for n in range(len(golds))]))


def test_accuracy_and_f1_by_hand() -> None:
    # a: tp 1, fp 0, fn 1 -> 2/3. b: tp 1, fp 1, fn 1 -> 1/2. c never occurs -> 0, and counts.
    answers, golds = ["a", "b", "b", "x"], ["a", "a", "b", "b"]
    assert accuracy(answers, golds, "abc") == 0.5
    assert macro_f1(answers, golds, "abc") == pytest.approx((2 / 3 + 1 / 2) / 3)


def test_classification_is_over_all_labels_strips_and_minds_case() -> None:
    answers = [" comedy\n", "Comedy", "violence", "a comedy", ""]
    golds = ["comedy", "comedy", "violence", "comedy", "classic"]
    actual = run("LaMP_2", answers, golds)
    # comedy: tp 1, fn 2 -> 2/4; violence: 1; the other 13 labels: 0.
    assert actual["accuracy"].value == pytest.approx(2 / 5)
    assert actual["f1"].value == pytest.approx((0.5 + 1) / 15)
    assert (actual["f1"].n, actual["f1"].n_unparsable, actual["f1"].higher_is_better) == (5, 3, True)
    assert run("LaMP_1", ["[1]", "[2]", "1"], ["[1]", "[1]", "[1]"])["f1"].value == pytest.approx(0.5 / 2)


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abcx"), st.sampled_from("abc")), min_size=1, max_size=30))
def test_f1_agrees_with_precision_and_recall(pairs: list[tuple[str, str]]) -> None:
    answers, golds = [a for a, _ in pairs], [g for _, g in pairs]
    total = 0.0
    for label in "abcd":
        right = sum(a == g == label for a, g in pairs)
        precision = right / answers.count(label) if label in answers else 0.0
        recall = right / golds.count(label) if label in golds else 0.0
        total += 2 * precision * recall / (precision + recall) if right else 0.0
    assert macro_f1(answers, golds, "abcd") == pytest.approx(total / 4)


@pytest.mark.parametrize(
    ("answer", "gold", "value"),
    [
        ("4", "2", 4.0),
        (" 3.5 ", "2", 3.5),
        ("100", "2", 100.0),  # no range check
        ("five", "1", 5.0),
        ("five", "2", 5.0),
        ("five", "3", 5.0),  # |1-3| > |5-3| does not hold
        ("", "4", 1.0),
        ("4 stars", "5", 1.0),
        ("nan", "5", 1.0),
        ("inf", "1", 5.0),
    ],
)
def test_ratings(answer: str, gold: str, value: float) -> None:
    assert rating(answer, gold) == value


def test_mae_and_rmse_by_hand() -> None:
    # errors 0, 2, -1, and unparsable with gold 4 -> 1.0: -3. MAE 6/4, RMSE sqrt(14/4).
    actual = run("LaMP_3", ["5", "4", "2.0", "good"], ["5", "2", "3", "4"])
    assert actual["MAE"].value == pytest.approx(1.5)
    assert actual["RMSE"].value == pytest.approx(math.sqrt(3.5))
    assert (actual["MAE"].n_unparsable, actual["MAE"].higher_is_better) == (1, False)
    # With integer ratings RMSE >= sqrt(MAE); a smaller one would be MSE by another name.
    assert actual["RMSE"].value >= math.sqrt(actual["MAE"].value)


def test_rouge_by_hand() -> None:
    # "the cat sat" / "The cat lay down": 2 shared of 3 and 4 -> F 4/7 for both.
    # "cat the" / "the cat": ROUGE-1 1, longest common subsequence 1 of 2 and 2 -> 1/2. Empty answer: 0.
    actual = run("LaMP_4", ["the cat sat", "cat the", ""], ["The cat lay down", "the cat", "x"])
    assert actual["rouge-1"].value == pytest.approx((4 / 7 + 1 + 0) / 3)
    assert actual["rouge-L"].value == pytest.approx((4 / 7 + 1 / 2 + 0) / 3)
    assert actual["rouge-1"].n_unparsable == 1
    assert run("LaMP_7", ["cats running"], ["cat run"])["rouge-1"].value == 0  # no stemmer


def test_long_answers_are_not_cut_in_official_numbers() -> None:
    # 600 of 1,200 words are the gold's 600: P 1/2, R 1 -> F 2/3. The reward's cut at 512 would give less.
    gold = " ".join(f"w{n}" for n in range(600))
    tail = " ".join(f"x{n}" for n in range(600))
    assert run("LaMP_4", [f"{tail} {gold}"], [gold])["rouge-1"].value == pytest.approx(2 / 3)


def test_every_task_has_its_official_metrics() -> None:
    expected = {"LaMP_1": "accuracy f1", "LaMP_3": "MAE RMSE", "LaMP_6": "rouge-1 rouge-L"}
    for task, names in expected.items():
        gold = (TASKS[task].labels or ("text",))[0]
        results = official_metrics(task, [gold], [gold], ["u"])
        assert " ".join(result.name for result in results) == names
        assert all(result.low <= result.value <= result.high for result in results)
    with pytest.raises(TagprError, match="LaMP_2: 0 answers, 0 golds, 0 users"):
        official_metrics("LaMP_2", [], [], [])


def test_intervals_draw_users_not_questions() -> None:
    # Two users, all right and all wrong: a resample's accuracy is 0, 1/2 or 1 with chances 1/4, 1/2, 1/4,
    # so the 95 % interval is [0, 1]. Drawing the 200 questions one by one would give about [.43, .57].
    golds = ["[1]"] * 200
    answers = ["[1]"] * 100 + ["[2]"] * 100
    users = ["a"] * 100 + ["b"] * 100
    actual = by_name(official_metrics("LaMP_1", answers, golds, users))["accuracy"]
    assert (actual.low, actual.value, actual.high) == (0.0, 0.5, 1.0)
    alone = by_name(official_metrics("LaMP_1", answers, golds, ["a"] * 200))["accuracy"]
    assert (alone.low, alone.high) == (0.5, 0.5)


def test_interval_has_the_width_of_the_normal_approximation() -> None:
    # 400 users with one question each, half right: standard error sqrt(.25 / 400) = .025.
    answers = ["[1]", "[2]"] * 200
    users = [f"u{n}" for n in range(400)]
    actual = by_name(official_metrics("LaMP_1", answers, ["[1]"] * 400, users))["accuracy"]
    assert actual.low == pytest.approx(0.5 - 1.96 * 0.025, abs=0.01)
    assert actual.high == pytest.approx(0.5 + 1.96 * 0.025, abs=0.01)
    again = by_name(official_metrics("LaMP_1", answers, ["[1]"] * 400, users))["accuracy"]
    assert again == actual  # seeded
    other = by_name(official_metrics("LaMP_1", answers, ["[1]"] * 400, users, seed=1))["accuracy"]
    assert (other.low, other.high) != (actual.low, actual.high)


def test_means_over_users_and_tasks() -> None:
    # User a: (1 + 1 + 0) / 3, user b: 0. Tasks: x (1 + 0) / 2, y (1 + 0) / 2.
    assert user_macro_mean([1, 1, 0, 0], ["a", "a", "a", "b"]) == pytest.approx(1 / 3)
    assert mean_over_tasks([1, 1, 0, 0, 0], ["x", "y", "y", "y", "x"]) == pytest.approx((1 / 2 + 1 / 3) / 2)
    value, low, high = task_mean([1, 0], ["x", "y"], ["a", "b"])
    # A resample with user a only has task x only: 1; with b only: 0.
    assert (value, low, high) == (0.5, 0.0, 1.0)


def test_paired_difference() -> None:
    users = {f"q{n}": f"u{n}" for n in range(100)}
    base = {key: float(n % 2) for n, key in enumerate(users)}
    better = {key: score + 0.25 for key, score in base.items()}
    # Every question gains .25: no spread at all, though the scores themselves vary.
    assert paired_difference(better, base, users) == pytest.approx((0.25, 0.25, 0.25))
    assert paired_difference(base, better, users)[0] == pytest.approx(-0.25)
    mixed = {key: score + (0.5 if n < 50 else -0.5) for n, (key, score) in enumerate(base.items())}
    mean, low, high = paired_difference(mixed, base, users)
    assert mean == pytest.approx(0)
    assert low == pytest.approx(-0.098, abs=0.02)  # 1.96 * .5 / sqrt(100)
    assert high == pytest.approx(0.098, abs=0.02)
    # By task: 1 question gains 1, 3 gain 0 -> (1 + 0) / 2, not 1/4.
    scores = {"a": 1.0, "b": 0.0, "c": 0.0, "d": 0.0}
    zeros = dict.fromkeys(scores, 0.0)
    own = {key: key for key in scores}
    assert paired_difference(scores, zeros, own)[0] == 0.25
    assert paired_difference(scores, zeros, own, tasks={"a": "x", "b": "y", "c": "y", "d": "y"})[0] == 0.5


def test_paired_difference_needs_the_same_questions() -> None:
    with pytest.raises(TagprError, match=r"1 of them on one side only \(first b\)"):
        paired_difference({"a": 1.0}, {"a": 1.0, "b": 0.0}, {"a": "u"})
    with pytest.raises(TagprError, match="question 'b' has no user"):
        paired_difference({"a": 1.0, "b": 0.0}, {"a": 1.0, "b": 0.0}, {"a": "u"})
    with pytest.raises(TagprError, match="0 and 0 questions"):
        paired_difference({}, {}, {})


def test_unparsable() -> None:
    assert [is_unparsable("LaMP_1", text) for text in ("[1]", " [2] ", "1")] == [False, False, True]
    assert [is_unparsable("LaMP_3", text) for text in ("7.5", "nan", "x")] == [False, True, True]
    assert [is_unparsable("LaMP_5", text) for text in ("t", " ")] == [False, True]


def test_two_thousand_questions_are_quick() -> None:
    rng = np.random.default_rng(0)
    labels = TASKS["LaMP_2"].labels
    answers = [labels[n] for n in rng.integers(0, 15, 2000)]
    golds = [labels[n] for n in rng.integers(0, 15, 2000)]
    start = time.perf_counter()
    official_metrics("LaMP_2", answers, golds, [f"u{n}" for n in range(2000)])
    assert time.perf_counter() - start < 5  # measured .3 s on one core


@pytest.mark.parametrize("text", ["5" * 160, "1e308", "-1e308", "inf", "1e7", "nan", "1e400"])
def test_a_number_without_sense_is_no_rating_and_leaves_figures_finite(text: str) -> None:
    mae, rmse = official_metrics("LaMP_3", [text, "1"], ["5", "1"], ["u", "v"], resamples=50)
    # Unparsable: the farther end of 1..5 is 1, four away; mean of 4 and 0, root of the mean of 16 and 0.
    assert (mae.value, rmse.value, mae.n_unparsable) == (2.0, pytest.approx(math.sqrt(8)), 1)
    json.dumps([vars_of(metric) for metric in (mae, rmse)], allow_nan=False)


def vars_of(metric: MetricResult) -> list[float | None]:
    return [metric.value, metric.low, metric.high, metric.user_macro]


@pytest.mark.parametrize(
    ("task", "gold", "said"),
    [
        ("LaMP_2", "politics", "'politics', not one of LaMP_2's answers.*give --task LaMP_2N"),
        ("LaMP_3", "7", "'7', not one of LaMP_3's answers: 1, 2, 3, 4, 5"),
        ("LaMP_1", "1", r"not one of LaMP_1's answers: \[1\], \[2\]; it is one of LaMP_3's"),
        ("LaMP_5", "  ", "is empty"),
    ],
)
def test_a_gold_that_the_task_cannot_have_is_refused(task: str, gold: str, said: str) -> None:
    with pytest.raises(TagprError, match=said):
        official_metrics(task, ["x"], [gold], ["u"])
