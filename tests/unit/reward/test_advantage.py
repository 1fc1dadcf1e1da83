"""Advantages of every algorithm against numbers derived by hand and against a few lines of NumPy."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tagpr_rl.reward.advantages.group import batch_advantages, group_advantages
from tagpr_rl.reward.advantages.per_component import per_component_advantages
from tagpr_rl.reward.components import Term, short_form
from tagpr_rl.reward.response import ResponseParts, StepPart
from tagpr_rl.reward.update import AdvantageRules, Credit, credit_batch, credit_metrics

EPS = 1e-6


def rules(*, alpha: float = 0.0, beta: float = 0.0, gamma: float = 0.0, **values: Any) -> AdvantageRules:
    return AdvantageRules(**values, terms=short_form(alpha, beta, gamma))


def row(total: float, **values: Any) -> dict[str, Any]:
    actual = {"total": total, "task": total, "format": 1.0, "tag": 0.0, "prmu": 0.0, "repetition": 0.0}
    return {**actual, "parse_status": "OK", "prmu_status": "scored", **values}


def advantages(credits: list[Credit]) -> list[float]:
    return [credit.advantage for credit in credits]


def test_grpo_and_dr_grpo_by_hand() -> None:
    # Group a: 0, 1, 1, 0; mean .5, sample variance 4 * .25 / 3 = 1/3. Group b: 2, 4; mean 3, variance 2.
    rows = [row(0), row(2), row(1), row(4), row(1), row(0)]
    groups = ["a", "b", "a", "b", "a", "a"]
    a, b = 0.5 * math.sqrt(3), 1 / math.sqrt(2)
    actual = credit_batch(rows, groups, None, rules())
    assert advantages(actual) == pytest.approx([-a, -b, a, b, a, -a], abs=5e-6)
    actual = credit_batch(rows, groups, None, rules(normalise="none"))
    assert advantages(actual) == [-0.5, -1.0, 0.5, 1.0, 0.5, -0.5]


def test_equal_rewards_have_advantage_zero_whatever_rounding_says() -> None:
    """verl's float32 mean of eight times 0.99655 is off by 6e-8, and 6e-8 / 1e-6 is an advantage of 0.1."""
    third = [0.1 + 0.2, 0.3, 0.3, 0.1 + 0.2]
    assert group_advantages(third) == [0.0] * 4
    assert group_advantages([0.996551724137931] * 8) == [0.0] * 8


def test_gdpo_by_hand() -> None:
    """Component by component in the group, weighted, summed, divided by the batch's deviation."""
    # Group a, task 0 1: -/+ .5 / sqrt(.5) = -/+ s with s = sqrt(.5). Tag 1 0: the other way round. Group b: task equal,
    # tag 0 1. Sums with weights 1 and .5: a: -s + s/2, s - s/2; b: -s/2, s/2. Squares: 4 * (s/2)^2 = .5, over 3: 1/6.
    rows = [row(0, task=0.0, tag=1.0), row(0, task=1.0), row(0, task=1.0), row(0, task=1.0, tag=1.0)]
    own = rules(normalise="per_component", alpha=0.5)
    actual = credit_batch(rows, ["a", "a", "b", "b"], None, own)
    half = math.sqrt(0.5) / 2
    expected = [value / math.sqrt(1 / 6) for value in (-half, half, -half, half)]
    assert advantages(actual) == pytest.approx(expected, abs=1e-5)
    # A wrong answer with perfect tags is still below a right one; summed first, the tag would weigh .5 of the task.
    malformed = [row(0, task=1.0, format=0.0), row(0, task=1.0)]
    assert credit_batch(malformed, ["a", "a"], None, own)[0].advantage < 0


def numpy_gdpo(components: np.ndarray, weights: np.ndarray, groups: np.ndarray) -> np.ndarray:
    sums = np.zeros(components.shape[1])
    for values, weight in zip(components, weights, strict=True):
        for group in set(groups):
            at = groups == group
            scale = values[at].std(ddof=1) + EPS if np.ptp(values[at]) > 1e-9 else 1.0
            sums[at] += weight * (values[at] - values[at].mean()) / scale
    return sums / (sums.std(ddof=1) + EPS)


grid = st.integers(0, 8).map(lambda n: n / 8)  # rewards that differ by rounding alone are another test's


@given(st.data())
def test_gdpo_against_numpy_and_its_invariances(data: st.DataObject) -> None:
    size, count = data.draw(st.integers(2, 5)), data.draw(st.integers(1, 4))
    total = size * count
    values = [data.draw(st.lists(grid, min_size=total, max_size=total)) for _ in range(3)]
    weights = data.draw(st.lists(st.sampled_from([0.0, 0.1, 0.5, 1.0]), min_size=3, max_size=3))
    groups = [f"g{i % count}" for i in range(total)]
    terms = [Term(name, weight) for name, weight in zip("abc", weights, strict=True)]
    rows = [dict(zip("abc", row, strict=True)) for row in zip(*values, strict=True)]
    actual = per_component_advantages(rows, terms, groups)
    oracle = numpy_gdpo(np.array(values), np.array(weights), np.array(groups))
    assert actual == pytest.approx(oracle.tolist(), abs=1e-6)
    for name in set(groups):
        assert math.fsum(v for v, g in zip(actual, groups, strict=True) if g == name) == pytest.approx(0.0, abs=1e-8)
    shifted = [{**row, "a": row["a"] + 3.0} for row in rows]
    assert per_component_advantages(shifted, terms, groups) == pytest.approx(actual, abs=1e-6)


@given(st.lists(grid, min_size=2, max_size=12), st.floats(-5, 5), st.booleans())
def test_a_group_s_advantages_add_up_to_zero_and_do_not_feel_a_shift(
    rewards: list[float], shift: float, norm_std: bool
) -> None:
    actual = group_advantages(rewards, norm_std=norm_std)
    assert math.fsum(actual) == pytest.approx(0.0, abs=1e-9)
    moved = group_advantages([reward + shift for reward in rewards], norm_std=norm_std)
    assert moved == pytest.approx(actual, abs=1e-6)
    if len(set(rewards)) == 1:
        assert actual == [0.0] * len(rewards)
    else:
        assert max(zip(rewards, actual, strict=True))[1] > 0 > min(zip(rewards, actual, strict=True))[1]


def test_zero_variance_groups_are_dropped_and_counted() -> None:
    rows = [row(1), row(1), row(0), row(1)]
    groups = ["a", "a", "b", "b"]
    kept = credit_batch(rows, groups, None, rules(zero_variance="keep"))
    assert [credit.why for credit in kept] == [""] * 4 and advantages(kept)[:2] == [0.0, 0.0]
    actual = credit_batch(rows, groups, None, rules(zero_variance="drop"))
    assert [credit.why for credit in actual] == ["zero variance"] * 2 + [""] * 2
    assert advantages(actual) == advantages(kept)  # nobody else's advantage changes
    reported = credit_metrics(actual, groups)
    assert (reported["algo/dropped_groups_total"], reported["algo/dropped_groups_fraction"]) == (1.0, 0.5)
    assert reported["algo/left_out_fraction"] == 0.5


def test_a_batch_of_equal_groups_alone_is_kept() -> None:
    """Something must be in the loss's mean: a sum over no token divided by 0 is no loss."""
    actual = credit_batch([row(1)] * 4, ["a", "a", "b", "b"], None, rules(zero_variance="drop"))
    assert [credit.why for credit in actual] == [""] * 4
    assert credit_metrics(actual, ["a", "a", "b", "b"])["algo/dropped_groups_total"] == 0.0


def test_per_component_drops_what_differs_in_no_weighted_component() -> None:
    """Equal totals can hide components that differ; those groups teach, and stay."""
    hidden = [row(1, task=0.0, tag=1.0), row(1, task=1.0, tag=0.0)]
    plain = [row(1, prmu=0.1), row(1, prmu=0.9)]  # PRMU has no weight here
    own = rules(normalise="per_component", zero_variance="drop", alpha=0.25)
    actual = credit_batch([*hidden, *plain], ["a", "a", "b", "b"], None, own)
    assert [credit.why for credit in actual] == ["", "", "zero variance", "zero variance"]


@pytest.mark.parametrize("normalise", ["group_std", "none", "per_component"])
def test_masked_responses_take_no_part(normalise: Any) -> None:
    """With or without them the others' advantages are the same, also through the batch's deviation."""
    own = rules(normalise=normalise, beta=0.5)
    rows = [row(0, prmu=0.2), row(1, prmu=0.4), row(1, prmu=0.1), row(0.5), row(1)]
    groups = ["a", "a", "a", "b", "b"]
    masked = [*rows, row(9, prmu_status="masked"), row(9, prmu_status="masked"), row(5)]
    actual = credit_batch(masked, [*groups, "a", "c", "c"], None, own)
    assert actual[:5] == credit_batch(rows, groups, None, own)
    assert actual[5:] == [Credit(why="not scored"), Credit(why="not scored"), Credit(why="alone in its group")]


def part(tag: str, *, sound: bool = True, repetition: float = 0.0) -> StepPart:
    return StepPart(tag, 0, 1, sound, repetition)


def test_credit_per_step_by_hand() -> None:
    """alpha .3, gamma .1. Response 0: three steps, the last at fault; response 1: one sound step, coverage .5."""
    parts = [
        ResponseParts(1.0, (part("x"), part("y"), part("y", sound=False, repetition=-0.4))),
        ResponseParts(0.5, (part("x"),)),
    ]
    rows = [row(1.18, task=1.0, tag=2 / 3, repetition=-0.2), row(0.15, task=0.0, tag=0.5)]
    own = rules(credit="step", normalise="none", step_weight=2.0, alpha=0.3, gamma=0.1)
    # Whole: 1.18 + .3 * (1 - 2/3) + .1 * .2 = 1.3 (the task's 1, coverage's .3); .15: task 0, coverage .15. Mean .725.
    # Steps: 0, 0, (.3 * -1 + .1 * -.4) / .4 = -.85, and 0: mean -.2125; twice the centred values.
    actual = credit_batch(rows, ["a", "a"], parts, own)
    assert advantages(actual) == pytest.approx([0.575, -0.575])
    assert actual[0].steps == pytest.approx((0.425, 0.425, -1.275)) and actual[1].steps == pytest.approx((0.425,))
    # DeepSeekMath's normalisation: the sample deviation of 0, 0, -.85, 0 is .425.
    scaled = credit_batch(rows, ["a", "a"], parts, rules(credit="step", step_weight=1.0, alpha=0.3, gamma=0.1))
    assert scaled[0].steps == pytest.approx((0.5, 0.5, -1.5), abs=1e-5)


def test_a_malformed_response_has_no_steps_and_keeps_its_whole_reward() -> None:
    parts = [ResponseParts(0.0, ()), ResponseParts(1.0, (part("x"), part("y")))]
    rows = [row(-0.05, task=0.0, format=0.0, repetition=-0.5), row(1.3, task=1.0, tag=1.0)]
    actual = credit_batch(rows, ["a", "a"], parts, rules(credit="step", normalise="none", alpha=0.3, gamma=0.1))
    assert advantages(actual) == pytest.approx([-0.675, 0.675])  # of -.05 and 1.3
    assert actual[0].steps == () and actual[1].steps == (0.0, 0.0)


@given(st.lists(st.lists(st.booleans(), max_size=5), min_size=2, max_size=5), st.booleans())
def test_step_advantages_of_a_group_add_up_to_zero(chains: list[list[bool]], norm: bool) -> None:
    parts = [ResponseParts(1.0, tuple(part("x", sound=sound) for sound in chain)) for chain in chains]
    own = rules(credit="step", normalise="group_std" if norm else "none", alpha=1.0)
    rows = [row(1.0, tag=1.0) for _ in chains]
    actual = credit_batch(rows, ["a"] * len(chains), parts, own)
    flat = [value for credit in actual for value in credit.steps]
    assert math.fsum(flat) == pytest.approx(0.0, abs=1e-9)
    for credit, chain in zip(actual, chains, strict=True):
        for value, sound in zip(credit.steps, chain, strict=True):
            assert value >= 0 if sound else value <= 0


def test_batch_advantages_are_group_by_group() -> None:
    assert batch_advantages([1, 5, 3, 7], ["a", "b", "a", "b"], norm_std=False) == [-1.0, -1.0, 1.0, 1.0]
    assert batch_advantages([], []) == []
