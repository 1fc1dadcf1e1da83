"""Reward parts: task reward, repetition penalty and group advantages, by hand and against oracles."""

from __future__ import annotations

import math
import random
import statistics
import time

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tagpr_rl.reward.advantages.group import EQUAL, group_advantages
from tagpr_rl.reward.repetition import repetition_penalty
from tagpr_rl.reward.task import MAX_ROUGE_TOKENS, TASK_NAMES, check_gold, rouge, task_reward
from tagpr_rl.types import TagprError


@pytest.mark.parametrize(
    ("task", "answer", "gold", "reward"),
    [
        ("LaMP_1", " [1]\n", "[1]", 1.0),
        ("LaMP_1", "1", "[1]", 0.0),
        ("LaMP_2", "sci-fi", "sci-fi ", 1.0),
        ("LaMP_2", "Sci-Fi", "sci-fi", 0.0),
        ("LaMP_2N", "style & beauty", "style & beauty", 1.0),
        ("LaMP_2N", "style", "style & beauty", 0.0),
        ("LaMP_3", "4", "4", 1.0),
        ("LaMP_3", "5", "4", 1 - 1 / 3),
        ("LaMP_3", "1", "4", 0.0),
        ("LaMP_3", "3", "1", 0.5),
        ("LaMP_3", "4.5", "5", 0.875),
        ("LaMP_3", "1", "3", 0.0),
        ("LaMP_3", "9", "5", 0.0),
        ("LaMP_3", "6", "5", 0.75),  # no range check, as in the official metric; clipped below at 0
        ("LaMP_3", "-1e308", "5", 0.0),
        ("LaMP_3", "nan", "5", 0.0),
        ("LaMP_3", "-inf", "5", 0.0),
        ("LaMP_3", "1e400", "5", 0.0),
        ("LaMP_3", "", "5", 0.0),
        ("LaMP_3", "five", "5", 0.0),
        ("LaMP_3", "5 stars", "5", 0.0),
        ("LaMP_3", "0" * 200 + "5", "5", 0.0),
        # 3 of 4 predicted words are gold's 3 of 6: P 3/4, R 1/2, F .6; in order, the LCS is "a c" = 2: F .4
        ("LaMP_4", "a c b z", "a b q c r s", 0.5),
        ("LaMP_5", "A Title", "a title!", 1.0),
        ("LaMP_6", "", "a title", 0.0),
        ("LaMP_7", "running", "run", 0.0),  # no stemmer
    ],
)
def test_task_reward_by_hand(task: str, answer: str, gold: str, reward: float) -> None:
    assert task_reward(task, answer, gold) == pytest.approx(reward, abs=1e-12)


def test_rouge_parts_by_hand() -> None:
    assert rouge("a c b z", "a b q c r s") == pytest.approx((0.6, 0.4))


words = st.lists(st.sampled_from("abcdef"), max_size=12)


def oracle_rouge(pred: list[str], gold: list[str]) -> tuple[float, float]:
    def f(hits: int) -> float:
        return 2 * hits / (len(pred) + len(gold)) if hits else 0.0

    def lcs(a: tuple[str, ...], b: tuple[str, ...]) -> int:
        row = [0] * (len(b) + 1)
        for x in a:
            previous = row
            row = [0]
            for j, y in enumerate(b):
                row.append(previous[j] + 1 if x == y else max(row[j], previous[j + 1]))
        return row[-1]

    return f(sum(min(pred.count(w), gold.count(w)) for w in set(gold))), f(lcs(tuple(pred), tuple(gold)))


@given(words, words)
def test_rouge_against_an_oracle(pred: list[str], gold: list[str]) -> None:
    assert rouge(" ".join(pred), " ".join(gold)) == pytest.approx(oracle_rouge(pred, gold))


@given(st.sampled_from(TASK_NAMES), st.text(), st.sampled_from(["1", "3", "5"]))
def test_task_reward_range(task: str, answer: str, gold: str) -> None:
    assert 0.0 <= task_reward(task, answer, gold) <= 1.0
    assert task_reward(task, gold, gold) == 1.0


def test_rouge_cap() -> None:
    head = " ".join(f"w{i}" for i in range(MAX_ROUGE_TOKENS))
    gold = "w0 w1 tail"
    assert rouge(head + " tail" * 50, gold) == rouge(head, gold)  # nothing to gain by the tail
    assert rouge(head + " tail", gold, max_tokens=None) > rouge(head, gold)
    assert rouge("a, b; c d", "a b x", max_tokens=2) == rouge("a b", "a b")
    started = time.process_time()
    rouge("word " * 200_000, "word " * 200_000)
    rouge("x" * 1_000_000, "x")
    task_reward("LaMP_3", "9" * 1_000_000, "5")
    assert time.process_time() - started < 2.0


def test_bad_data_is_reported() -> None:
    for function in (lambda: task_reward("LaMP-1", "x", "y"), lambda: check_gold("LaMP-1", "y")):
        with pytest.raises(TagprError, match=r"LaMP-1.*known: LaMP_1"):
            function()
    for gold in ("five", "nan", "inf", ""):
        with pytest.raises(TagprError, match="is no number"):
            check_gold("LaMP_3", gold)
        with pytest.raises(TagprError, match="is no number"):
            task_reward("LaMP_3", "5", gold)


@pytest.mark.parametrize(
    ("text", "n", "penalty"),
    [
        ("", 4, 0.0),
        ("one two three", 4, 0.0),
        ("a b c d e f g", 4, 0.0),
        ("a b c a b c", 4, 0.0),  # abca bcab cabc: all distinct
        ("a b c d a b c d", 4, -1 / 5),  # abcd bcda cdab dabc abcd
        ("a a a a a a a", 4, -3 / 4),
        ("A a, A a,", 2, -2 / 5),  # "a a", "a ,", ", a", "a a", "a ,"
        ("a b a b", 1, -2 / 4),
    ],
)
def test_repetition_by_hand(text: str, n: int, penalty: float) -> None:
    assert repetition_penalty(text, n) == pytest.approx(penalty, abs=1e-12)


def test_repetition_sees_loops_without_spaces() -> None:
    assert repetition_penalty("ha" * 1000) < -0.9
    assert repetition_penalty("東京に" * 1000) < -0.8
    assert repetition_penalty("!" * 1000) < -0.9
    assert repetition_penalty("<think>" * 1000) < -0.9


def test_repetition_n_below_one() -> None:
    with pytest.raises(ValueError, match="n must be"):
        repetition_penalty("a", 0)


@given(st.lists(st.sampled_from("abcd"), max_size=40), st.integers(1, 5))
def test_repetition_against_an_oracle(tokens: list[str], n: int) -> None:
    grams = [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]
    repeated = sum(gram in grams[:i] for i, gram in enumerate(grams))
    expected = -repeated / len(grams) if grams else 0.0
    assert repetition_penalty(" ".join(tokens), n) == pytest.approx(expected)
    assert -1.0 <= expected <= 0.0


@given(st.text())
def test_repetition_range(text: str) -> None:
    assert -1.0 <= repetition_penalty(text) <= 0.0


def test_advantages_by_hand() -> None:
    # mean 2, squared deviations 1 + 0 + 1, divisor 2: sample std 1 (the population std would give 1.2247)
    assert group_advantages([1.0, 2.0, 3.0], eps=1e-12) == pytest.approx([-1.0, 0.0, 1.0])
    assert group_advantages([1.0, 2.0, 3.0], eps=1.0) == pytest.approx([-0.5, 0.0, 0.5])
    assert group_advantages([0.0, 4.0], norm_std=False) == [-2.0, 2.0]
    assert group_advantages([0.7]) == group_advantages([0.7], norm_std=False) == [0.0]
    assert group_advantages([]) == []
    assert group_advantages([0.25] * 8) == [0.0] * 8


@given(st.lists(st.floats(-2, 2), min_size=2, max_size=16))
@example([0.0, 4.4e-12])
@example([0.0, 2e-9])
def test_advantages_against_statistics(rewards: list[float]) -> None:
    scale = statistics.stdev(rewards) + 1e-6
    mean = statistics.fmean(rewards)
    expected = [(reward - mean) / scale for reward in rewards]
    if max(rewards) - min(rewards) <= EQUAL:  # rounding is no difference, whatever it comes to beside eps
        expected = [0.0] * len(rewards)
    assert group_advantages(rewards) == pytest.approx(expected, rel=1e-6, abs=1e-6)
    assert math.fsum(group_advantages(rewards, norm_std=False)) == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_advantages_refuse_what_is_not_finite(bad: float) -> None:
    with pytest.raises(ValueError, match="reward 1"):
        group_advantages([0.0, bad])


def test_advantages_refuse_bad_eps() -> None:
    with pytest.raises(ValueError, match="eps"):
        group_advantages([0.0, 1.0], eps=0.0)


@pytest.mark.stack
@pytest.mark.parametrize("norm_std", [True, False])
def test_advantages_agree_with_verl(norm_std: bool) -> None:
    """Same numbers as the trainer for groups of two and more; for a group of one we differ, as documented."""
    torch = pytest.importorskip("torch")
    core_algos = pytest.importorskip("verl.trainer.ppo.core_algos")
    np = pytest.importorskip("numpy")
    rng = random.Random(0)
    groups = [[rng.uniform(-0.1, 1.4) for _ in range(size)] for size in (2, 5, 8)] + [[0.5] * 4, [0.75]]
    flat = [reward for group in groups for reward in group]
    index = np.array([str(at) for at, group in enumerate(groups) for _ in group], dtype=object)
    token_level = torch.zeros(len(flat), 3, dtype=torch.float64)
    token_level[:, -1] = torch.tensor(flat, dtype=torch.float64)
    mask = torch.ones(len(flat), 3, dtype=torch.float64)
    reference, _ = core_algos.compute_grpo_outcome_advantage(
        token_level, mask, index, epsilon=1e-6, norm_adv_by_std_in_grpo=norm_std
    )
    own = [value for group in groups for value in group_advantages(group, norm_std=norm_std)]
    assert reference[:-1, 0].tolist() == pytest.approx(own[:-1], abs=1e-9)
    assert own[-1] == 0.0
    assert reference[-1, 0].item() == pytest.approx(0.75, abs=1e-5)
