"""Compares the arms of a sweep on the same questions: means, and paired differences to the first arm.

Each question's score is first averaged over seeds. So an interval (95 %, over users) holds for these trained models
only; `seed_sd` says how much the seeds differ.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from tagpr_rl.eval.metrics import mean_over_tasks, paired_difference, task_mean
from tagpr_rl.types import ParseStatus, TagprError

Scores = Mapping[str, float]
"""Question key -> score in [0, 1]."""


def question_scores(result: Mapping[str, Any], metric: str) -> dict[str, float]:
    """The scores of a model's block of eval.json. The metric `strict_score` counts a malformed response as 0."""
    strict = metric == "strict_score"
    return {
        question["key"]: 0.0 if strict and question["parse_status"] != ParseStatus.OK else float(question["score"])
        for question in result["questions"]
    }


def over_seeds(runs: Sequence[Scores]) -> dict[str, float]:
    """Each question's mean over seeds. TagprError if the seeds answered different questions."""
    for other in runs[1:]:
        if other.keys() != runs[0].keys():
            unpaired = sorted(other.keys() ^ runs[0].keys())
            raise TagprError(f"{len(unpaired)} questions (first {unpaired[0]!r}) are not in every seed's evaluation")
    return {key: statistics.fmean(run[key] for run in runs) for key in runs[0]}


def compare_arms(
    scores: Mapping[str, Mapping[int, Scores]], users: Mapping[str, str], tasks: Mapping[str, str]
) -> dict[str, dict[str, Any]]:
    """Arm -> its block of sweep.json.

    Args:
        scores: arm -> seed -> scores. All arms have the same seeds.
        users, tasks: question key -> user, task.

    Returns:
        per_seed: seed -> {score, by_task}. score: [mean over tasks, low, high]. against_first: [difference to the first
        arm, low, high], paired by question. seed_sd: sample standard deviation of the seeds' differences to the first
        arm; None with one seed.
    """
    keys = sorted(tasks)
    order = [tasks[key] for key in keys], [users[key] for key in keys]
    first = next(iter(scores))
    base = over_seeds(list(scores[first].values()))
    blocks: dict[str, dict[str, Any]] = {}
    for arm, runs in scores.items():
        pooled = over_seeds(list(runs.values()))
        per_seed = {str(seed): seed_result(run, tasks) for seed, run in runs.items()}
        gaps = [
            per_seed[str(seed)]["score"] - mean_over_tasks([scores[first][seed][key] for key in keys], order[0])
            for seed in runs
        ]
        blocks[arm] = {
            "per_seed": per_seed,
            "score": list(task_mean([pooled[key] for key in keys], *order)),
            "against_first": list(paired_difference(pooled, base, users, tasks=tasks)),
            "seed_sd": statistics.stdev(gaps) if len(gaps) > 1 else None,
        }
    return blocks


def seed_result(run: Scores, tasks: Mapping[str, str]) -> dict[str, Any]:
    """{"score": mean over tasks, "by_task": {task: mean}} of one seed."""
    if run.keys() != tasks.keys():
        unpaired = sorted(run.keys() ^ tasks.keys())
        raise TagprError(f"{len(unpaired)} questions (first {unpaired[0]!r}) are not in every arm's evaluation")
    by_task = {
        task: statistics.fmean(run[key] for key in run if tasks[key] == task) for task in sorted(set(tasks.values()))
    }
    return {"score": statistics.fmean(by_task.values()), "by_task": by_task}
