"""Metrics of one GRPO step from its responses' reward rows; verl's V1 trainer computes none of them."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from tagpr_rl.reward.components import TOTAL, Term, needs_prmu, weighted_sum
from tagpr_rl.reward.response import ResponseParts, StepPart

SUM_TOLERANCE = 1e-6
"""Of a reward; relative above 1, since verl keeps rewards in single precision."""
_FLAT = 1e-9
Row = Mapping[str, Any]
"""A reward row (`reward.rubric.RewardOutput.row`)."""


class RewardMismatch(AssertionError):
    """A response was not rewarded with the weighted sum of its components: a mistake in this code."""


def component_metrics(
    rows: Sequence[Row], tasks: Sequence[str], groups: Sequence[str], components: Sequence[str]
) -> dict[str, float]:
    """Step metrics from every response's reward row.

    Args:
        rows: reward rows, one per response.
        tasks: LaMP task of each response.
        groups: prompt uid of each response.
        components: names of the stage's reward components; the total comes by itself.

    Returns:
        `reward/<key>/{mean,std,min,max}` (over the responses that have a measurement, see `_measured`) and
        `reward/<key>/zero_variance` (share of the groups in which it does not vary), `task/<LaMP_x>/mean` of the task
        score, `task/<LaMP_x>/{responses,malformed}` and the mean of every other component, `parse/<STATUS>`
        (fraction), `prmu/masked` (responses without a score) and `prmu/masked_fraction`,
        `groups/zero_variance_fraction` (groups whose rewards are all equal, which teach nothing).
    """
    keys = (TOTAL, *components)
    metrics: dict[str, float] = {}
    for key in keys:
        values = [float(row[key]) for row in rows if _measured(key, row["prmu_status"])]
        if not values:
            continue
        mean = sum(values) / len(values)
        variance = sum((value - mean) ** 2 for value in values) / len(values)
        metrics[f"reward/{key}/mean"] = mean
        metrics[f"reward/{key}/std"] = math.sqrt(variance)
        metrics[f"reward/{key}/min"] = min(values)
        metrics[f"reward/{key}/max"] = max(values)
        metrics[f"reward/{key}/zero_variance"] = _flat_share(key, rows, groups)
    metrics |= _task_metrics(rows, tasks, keys)
    counts = Counter(str(row["parse_status"]) for row in rows)
    metrics |= {f"parse/{status}": count / len(rows) for status, count in sorted(counts.items())}
    metrics["prmu/masked"] = float(sum(row["prmu_status"] == "masked" for row in rows))
    metrics["prmu/masked_fraction"] = metrics["prmu/masked"] / len(rows)
    if "reward/total/zero_variance" in metrics:
        metrics["groups/zero_variance_fraction"] = metrics["reward/total/zero_variance"]
    return metrics


def _flat_share(key: str, rows: Sequence[Row], groups: Sequence[str]) -> float:
    """Share of groups in which `key` does not vary, among groups with a measurement of it."""
    by_group: dict[str, list[float]] = defaultdict(list)
    for row, group in zip(rows, groups, strict=True):
        if _measured(key, row["prmu_status"]):
            by_group[group].append(float(row[key]))
    return sum(max(values) - min(values) < _FLAT for values in by_group.values()) / len(by_group)


def _task_metrics(rows: Sequence[Row], tasks: Sequence[str], keys: Sequence[str]) -> dict[str, float]:
    by_task: dict[str, list[Row]] = defaultdict(list)
    for row, task in zip(rows, tasks, strict=True):
        by_task[task].append(row)
    metrics: dict[str, float] = {}
    for task, own in sorted(by_task.items()):
        metrics[f"task/{task}/responses"] = float(len(own))
        metrics[f"task/{task}/malformed"] = sum(row["parse_status"] != "OK" for row in own) / len(own)
        for key in keys:
            values = [float(row[key]) for row in own if _measured(key, row["prmu_status"])]
            if values:
                metrics[f"task/{task}/{'mean' if key == 'task' else key}"] = sum(values) / len(values)
    return metrics


def _measured(key: str, prmu_status: str) -> bool:
    """Whether a response's `key` is a measurement: without a PRMU score it has neither that nor a total."""
    if needs_prmu(key):
        return prmu_status == "scored"
    return key != TOTAL or prmu_status != "masked"


def task_correlation(rows: Sequence[Row], groups: Sequence[str]) -> dict[str, float]:
    """Pearson's correlation of PRMU and task score: `prmu/task_correlation` over all scored responses, and
    `prmu/task_correlation_within` after subtracting each group's means. Absent if one of the two does not vary.
    """
    scored = [
        (group, float(row["prmu"]), float(row["task"]))
        for row, group in zip(rows, groups, strict=True)
        if row["prmu_status"] == "scored"
    ]
    by_group: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for group, prmu, task in scored:
        by_group[group].append((prmu, task))
    within = [pair for pairs in by_group.values() for pair in _centred(pairs)]
    values = {
        "prmu/task_correlation": _pearson([(prmu, task) for _, prmu, task in scored]),
        "prmu/task_correlation_within": _pearson(within),
    }
    return {name: value for name, value in values.items() if value is not None}


def _centred(pairs: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    x, y = (math.fsum(column) / len(pairs) for column in zip(*pairs, strict=True))
    return [(a - x, b - y) for a, b in pairs]


def _pearson(pairs: Sequence[tuple[float, float]]) -> float | None:
    centred = _centred(pairs) if pairs else []
    x = math.fsum(a * a for a, _ in centred)
    y = math.fsum(b * b for _, b in centred)
    if min(x, y) <= len(centred) * _FLAT**2:
        return None
    return max(-1.0, min(1.0, math.fsum(a * b for a, b in centred) / math.sqrt(x * y)))


def tag_metrics(responses: Sequence[ResponseParts], names: Sequence[str]) -> dict[str, float]:
    """`tag/<tag>/use`, and for tags in use `tag/<tag>/valid` and `tag/<tag>/words`.

    `use` is the share of all responses that have the tag; malformed responses have none. `valid` is the share of the
    tag's steps without a fault, `words` the mean number of words of such a step.

    Args:
        responses: the tagged steps of every response of the step.
        names: the schema's tags.
    """
    users: dict[str, int] = defaultdict(int)
    steps: dict[str, list[StepPart]] = defaultdict(list)
    for response in responses:
        for tag in {step.tag for step in response.steps}:
            users[tag] += 1
        for step in response.steps:
            steps[step.tag].append(step)
    metrics = {f"tag/{name}/use": users[name] / len(responses) for name in names}
    for name, own in steps.items():
        metrics[f"tag/{name}/valid"] = sum(step.sound for step in own) / len(own)
        metrics[f"tag/{name}/words"] = sum(step.words for step in own) / len(own)
    return metrics


def gated_means(rows: Sequence[Row], terms: Sequence[Term]) -> dict[str, float]:
    """`reward/<term>/mean` of each term with a gate: a product, whose mean the components' means do not give."""
    gated = [term for term in terms if term.gate]
    return {f"reward/{term.name}/mean": sum(term.value(row) for row in rows) / len(rows) for term in gated}


def check_sums(rows: Sequence[Row], rewards: Sequence[float], terms: Sequence[Term], names: Sequence[str]) -> None:
    """RewardMismatch if a response's total is not the weighted sum of its components, or not its trained reward.

    Args:
        rows: reward rows, one per response.
        rewards: what the trainer has as each response's reward.
        terms: the terms of the stage's reward.
        names: what the error calls each response.
    """
    for row, reward, name in zip(rows, rewards, names, strict=True):
        expected = weighted_sum(terms, row)
        off = abs(row[TOTAL] - expected) + abs(reward - row[TOTAL])  # NaN if one of them is
        if not off <= SUM_TOLERANCE * max(1.0, abs(expected)):
            values = ", ".join(f"{key}={value!r}" for key, value in row.items())
            weights = {term.name: term.weight for term in terms}
            raise RewardMismatch(
                f"{name}: the components' weighted sum is {expected!r}, the reward {reward!r} (off by {off:.3g}, "
                f"tolerance {SUM_TOLERANCE:g}): {values}, weights {weights}"
            )
