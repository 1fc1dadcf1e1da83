"""Figures of one GRPO step from its responses' reward rows; verl's V1 trainer computes none of them."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

NUMERIC_KEYS = ("total", "task", "format", "tag", "prmu", "repetition")


def component_metrics(rows: Sequence[dict[str, Any]], tasks: Sequence[str], groups: Sequence[str]) -> dict[str, float]:
    """Step metrics from every response's reward row.

    Args:
        rows: reward rows (keys REWARD_KEYS), one per response.
        tasks: LaMP task of each response.
        groups: prompt uid of each response.

    Returns:
        `reward/<key>/{mean,std,min,max}` (`prmu` and `total` over the responses that have them),
        `task/<LaMP_x>/mean`, `parse/<STATUS>` (fraction), `prmu/masked` (responses without a score) and
        `prmu/masked_fraction`, `groups/zero_variance_fraction` (groups whose rewards are all equal, which teach
        nothing).
    """
    metrics: dict[str, float] = {}
    for key in NUMERIC_KEYS:
        values = [float(row[key]) for row in rows if _counts(key, row["prmu_status"])]
        if not values:
            continue
        mean = sum(values) / len(values)
        variance = sum((value - mean) ** 2 for value in values) / len(values)
        metrics[f"reward/{key}/mean"] = mean
        metrics[f"reward/{key}/std"] = math.sqrt(variance)
        metrics[f"reward/{key}/min"] = min(values)
        metrics[f"reward/{key}/max"] = max(values)
    by_task: dict[str, list[float]] = defaultdict(list)
    by_group: dict[str, list[float]] = defaultdict(list)
    for row, task, group in zip(rows, tasks, groups, strict=True):
        by_task[task].append(float(row["task"]))
        if _counts("total", row["prmu_status"]):
            by_group[group].append(float(row["total"]))
    metrics |= {f"task/{task}/mean": sum(values) / len(values) for task, values in sorted(by_task.items())}
    counts = Counter(str(row["parse_status"]) for row in rows)
    metrics |= {f"parse/{status}": count / len(rows) for status, count in sorted(counts.items())}
    metrics["prmu/masked"] = float(sum(row["prmu_status"] == "masked" for row in rows))
    metrics["prmu/masked_fraction"] = metrics["prmu/masked"] / len(rows)
    flat = sum(max(values) - min(values) < 1e-9 for values in by_group.values())
    metrics["groups/zero_variance_fraction"] = flat / len(by_group)
    return metrics


def _counts(key: str, prmu_status: str) -> bool:
    """Whether a response's `key` is a measurement: without a PRMU score it has neither that nor a total."""
    if key == "prmu":
        return prmu_status == "scored"
    return key != "total" or prmu_status != "masked"


def prmu_metrics(asked: Sequence[dict[str, Any]], step_s: float | None) -> dict[str, float]:
    """How long PRMU took, from each response's `response_scorer.Asked` row; {} when PRMU is off (no rows).

    Returns:
        `timing_s/prmu_wait`: seconds from the end of the last rollout to the last score, which the step waits for;
        `prmu/wait_fraction`: as a share of the step's seconds `step_s`; `prmu/seconds/{mean,max}` of a response.
    """
    if not asked:
        return {}
    wait = max(row["done_at"] for row in asked) - max(row["asked_at"] for row in asked)
    seconds = [row["done_at"] - row["asked_at"] for row in asked]
    found = {
        "timing_s/prmu_wait": wait,
        "prmu/seconds/mean": sum(seconds) / len(seconds),
        "prmu/seconds/max": max(seconds),
    }
    return found if not step_s else found | {"prmu/wait_fraction": wait / step_s}
