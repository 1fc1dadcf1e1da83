"""From reward rows to advantages: who takes part in an update, and with what advantage on which step.

The trainer's hook and `launch.py replay` both call `credit_batch`, so that a replay recomputes what was trained on.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from tagpr_rl.reward.advantages.group import EQUAL, batch_advantages, members_of, per_component_advantages
from tagpr_rl.reward.advantages.step import ResponseParts, response_reward, step_advantages, step_reward

NOT_SCORED, ALONE, ZERO_VARIANCE = "not scored", "alone in its group", "zero variance"


@dataclass(frozen=True, slots=True)
class AdvantageRules:
    """How a stage turns rewards into advantages (recipe keys of the same names) and the reward's weights."""

    normalise: Literal["group_std", "none", "per_component"] = "group_std"
    zero_variance: Literal["keep", "drop", "resample"] = "keep"
    credit: Literal["response", "step"] = "response"
    step_weight: float = 0.2
    step_return: Literal["own", "following"] = "own"
    alpha: float = 0.0
    beta: float = 0.0
    gamma: float = 0.0


@dataclass(frozen=True, slots=True)
class Credit:
    """One response's part in the update."""

    advantage: float = 0.0
    """On all of its tokens."""
    steps: tuple[float, ...] = ()
    """Added on the tokens of each step; empty unless credit is per step."""
    why: str = ""
    """Why the response takes no part; empty where it does."""


def responses_to_mask(statuses: Sequence[str], groups: Sequence[str]) -> list[int]:
    """Indices of responses that must not take part in the update.

    These are the unscored ones, and a response left alone by them: a group of one has no baseline.
    """
    scored = Counter(group for group, status in zip(groups, statuses, strict=True) if status != "masked")
    return [
        i
        for i, (group, status) in enumerate(zip(groups, statuses, strict=True))
        if status == "masked" or scored[group] < 2
    ]


def credit_batch(
    rows: Sequence[Mapping[str, Any]],
    groups: Sequence[str],
    parts: Sequence[ResponseParts] | None,
    rules: AdvantageRules,
) -> list[Credit]:
    """The credit of every response of one update `[B]`.

    Args:
        rows: reward rows (reward.rubric.breakdown_row).
        groups: name of each response's group (its prompt).
        parts: each response's steps, needed where `rules.credit` is "step".
        rules: how.

    Responses without a score, or left alone by them, take no part: neither in a group's mean nor in the loss. With
    `zero_variance: drop`, groups in which every advantage is 0 take none either, but for a batch in which all are
    like this: something has to be in the loss's mean, and their policy gradient is 0 anyway.
    """
    statuses = [str(row["prmu_status"]) for row in rows]
    out = set(responses_to_mask(statuses, groups))
    why = {i: NOT_SCORED if statuses[i] == "masked" else ALONE for i in out}
    within = [i for i in range(len(rows)) if i not in out]
    kept, names = [rows[i] for i in within], [groups[i] for i in within]
    chosen = [parts[i] for i in within] if parts is not None and rules.credit == "step" else None
    whole = _response_advantages(kept, names, chosen, rules)
    steps = _step_parts(names, chosen, rules) if chosen is not None else [()] * len(within)
    if rules.zero_variance == "drop":
        empty = _zero_groups(names, whole, steps)
        if len(empty) < len(set(names)):
            why |= {i: ZERO_VARIANCE for i, name in zip(within, names, strict=True) if name in empty}
    found = [Credit(why=why.get(i, "")) for i in range(len(rows))]
    for i, value, own in zip(within, whole, steps, strict=True):
        if i not in why:
            found[i] = Credit(value, own)
    return found


def _response_advantages(
    rows: Sequence[Mapping[str, Any]],
    groups: Sequence[str],
    parts: Sequence[ResponseParts] | None,
    rules: AdvantageRules,
) -> list[float]:
    if rules.normalise == "per_component":
        components = {"task": [row["task"] * row["format"] for row in rows]}
        components |= {name: [row[name] for row in rows] for name in ("tag", "prmu", "repetition")}
        weights = {"task": 1.0, "tag": rules.alpha, "prmu": rules.beta, "repetition": rules.gamma}
        return per_component_advantages(components, weights, groups)
    rewards = [row["total"] for row in rows]
    if parts is not None:
        rewards = [
            response_reward(row["total"], row["tag"], row["repetition"], part, rules.alpha, rules.gamma)
            for row, part in zip(rows, parts, strict=True)
        ]
    return batch_advantages(rewards, groups, norm_std=rules.normalise == "group_std")


def _step_parts(
    groups: Sequence[str], parts: Sequence[ResponseParts], rules: AdvantageRules
) -> list[tuple[float, ...]]:
    found: list[tuple[float, ...]] = [()] * len(groups)
    for members in members_of(groups).values():
        rewards = [[step_reward(step, rules.alpha, rules.gamma) for step in parts[i].steps] for i in members]
        values = step_advantages(
            rewards, norm_std=rules.normalise == "group_std", following=rules.step_return == "following"
        )
        for i, own in zip(members, values, strict=True):
            found[i] = tuple(rules.step_weight * value for value in own)
    return found


def _zero_groups(groups: Sequence[str], advantages: Sequence[float], steps: Sequence[Sequence[float]]) -> set[str]:
    """Groups in which no token has an advantage."""
    return {
        name
        for name, members in members_of(groups).items()
        if all(abs(value) <= EQUAL for i in members for value in (advantages[i], *steps[i]))
    }


def figures(credits: Sequence[Credit], groups: Sequence[str]) -> dict[str, float]:
    """Step figures `algo/...` of an update: groups dropped, responses left out, and step credit's share.

    Keys with `total` add up over the updates of a step, the others are averaged (verl's MetricsAggregator).
    """
    names = set(groups)
    dropped = {group for group, credit in zip(groups, credits, strict=True) if credit.why == ZERO_VARIANCE}
    part = [credit for credit in credits if not credit.why]
    found = {
        "algo/dropped_groups_total": float(len(dropped)),
        "algo/dropped_groups_fraction": len(dropped) / len(names) if names else 0.0,
        "algo/left_out_fraction": 1.0 - len(part) / len(credits) if credits else 0.0,
        "algo/advantage_abs": sum(abs(credit.advantage) for credit in part) / len(part) if part else 0.0,
    }
    steps = [value for credit in part for value in credit.steps]
    if steps:
        found["algo/step_advantage_abs"] = sum(map(abs, steps)) / len(steps)
    return found
