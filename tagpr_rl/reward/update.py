"""From reward rows to advantages: who takes part in an update, and with what advantage on which step.

The trainer's hook and `tagpr replay` both call `credit_batch`, so that a replay recomputes what was trained on.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from tagpr_rl.reward.advantages.group import EQUAL, batch_advantages, members_of
from tagpr_rl.reward.advantages.per_component import per_component_advantages
from tagpr_rl.reward.advantages.step import response_reward, split_terms, step_advantages, step_reward
from tagpr_rl.reward.components import TOTAL, Term
from tagpr_rl.reward.response import ResponseParts

NOT_SCORED, ALONE, ZERO_VARIANCE = "not scored", "alone in its group", "zero variance"
Row = Mapping[str, Any]
"""A reward row (`RewardOutput.row`)."""


@dataclass(frozen=True, slots=True)
class AdvantageRules:
    """How a stage turns rewards into advantages: its recipe's `advantage` block and the terms of its reward."""

    normalise: Literal["group_std", "none", "per_component"] = "group_std"
    zero_variance: Literal["keep", "drop", "resample"] = "keep"
    credit: Literal["response", "step"] = "response"
    step_weight: float = 0.2
    terms: tuple[Term, ...] = ()


@dataclass(frozen=True, slots=True)
class Credit:
    """One response's part in the update."""

    advantage: float = 0.0
    """On all of its tokens."""
    steps: tuple[float, ...] = ()
    """Added on the tokens of each step; empty unless credit is per step."""
    why: str = ""
    """Why the response takes no part; empty if it does."""


def responses_to_mask(statuses: Sequence[str], groups: Sequence[str]) -> list[int]:
    """Indices of responses that must not take part in the update.

    These are the unscored ones, and a response that they leave alone: a group of one has no baseline.
    """
    scored = Counter(group for group, status in zip(groups, statuses, strict=True) if status != "masked")
    return [
        i
        for i, (group, status) in enumerate(zip(groups, statuses, strict=True))
        if status == "masked" or scored[group] < 2
    ]


def credit_batch(
    rows: Sequence[Row], groups: Sequence[str], parts: Sequence[ResponseParts] | None, rules: AdvantageRules
) -> list[Credit]:
    """The credit of every response of one update `[B]`.

    Args:
        rows: reward rows.
        groups: name of each response's group (its prompt).
        parts: each response's steps; needed if `rules.credit` is "step".

    Responses without a score, and those that they leave alone, take no part: neither in a group's mean nor in the
    loss. With `zero_variance: drop`, groups in which every advantage is 0 take no part either. A batch of such groups
    alone is kept: the loss's mean needs a token, and the policy gradient is 0 anyway.
    """
    statuses = [str(row["prmu_status"]) for row in rows]
    why = {i: NOT_SCORED if statuses[i] == "masked" else ALONE for i in responses_to_mask(statuses, groups)}
    within = [i for i in range(len(rows)) if i not in why]
    scored, names = [rows[i] for i in within], [groups[i] for i in within]
    split = [parts[i] for i in within] if parts is not None and rules.credit == "step" else None
    whole = _response_advantages(scored, names, split, rules)
    steps = _step_advantages(names, split, rules) if split is not None else [()] * len(within)
    if rules.zero_variance == "drop":
        flat = _flat_groups(names, whole, steps)
        if len(flat) < len(set(names)):
            why |= {i: ZERO_VARIANCE for i, name in zip(within, names, strict=True) if name in flat}
    credits = [Credit(why=why.get(i, "")) for i in range(len(rows))]
    for i, value, own in zip(within, whole, steps, strict=True):
        if i not in why:
            credits[i] = Credit(value, own)
    return credits


def _response_advantages(
    rows: Sequence[Row], groups: Sequence[str], parts: Sequence[ResponseParts] | None, rules: AdvantageRules
) -> list[float]:
    if rules.normalise == "per_component":
        return per_component_advantages(rows, rules.terms, groups)
    rewards = [row[TOTAL] for row in rows]
    if parts is not None:
        split = split_terms(rules.terms)
        rewards = [response_reward(row, part, split) for row, part in zip(rows, parts, strict=True)]
    return batch_advantages(rewards, groups, norm_std=rules.normalise == "group_std")


def _step_advantages(
    groups: Sequence[str], parts: Sequence[ResponseParts], rules: AdvantageRules
) -> list[tuple[float, ...]]:
    """What each response's steps add to its advantage."""
    split = split_terms(rules.terms)
    advantages: list[tuple[float, ...]] = [()] * len(groups)
    for members in members_of(groups).values():
        rewards = [[step_reward(step, split) for step in parts[i].steps] for i in members]
        values = step_advantages(rewards, norm_std=rules.normalise == "group_std")
        for i, own in zip(members, values, strict=True):
            advantages[i] = tuple(rules.step_weight * value for value in own)
    return advantages


def _flat_groups(groups: Sequence[str], advantages: Sequence[float], steps: Sequence[Sequence[float]]) -> set[str]:
    """Groups in which no token has an advantage."""
    return {
        name
        for name, members in members_of(groups).items()
        if all(abs(value) <= EQUAL for i in members for value in (advantages[i], *steps[i]))
    }


def credit_metrics(credits: Sequence[Credit], groups: Sequence[str]) -> dict[str, float]:
    """Metrics `algo/...` of an update: groups dropped, responses left out, and the size of advantages.

    Keys with `total` add up over the updates of a step, the others are averaged (verl's MetricsAggregator).
    """
    names = set(groups)
    dropped = {group for group, credit in zip(groups, credits, strict=True) if credit.why == ZERO_VARIANCE}
    part = [credit for credit in credits if not credit.why]
    metrics = {
        "algo/dropped_groups_total": float(len(dropped)),
        "algo/dropped_groups_fraction": len(dropped) / len(names) if names else 0.0,
        "algo/left_out_fraction": 1.0 - len(part) / len(credits) if credits else 0.0,
        "algo/advantage_abs": sum(abs(credit.advantage) for credit in part) / len(part) if part else 0.0,
    }
    steps = [value for credit in part for value in credit.steps]
    if steps:
        metrics["algo/step_advantage_abs"] = sum(map(abs, steps)) / len(steps)
    return metrics
