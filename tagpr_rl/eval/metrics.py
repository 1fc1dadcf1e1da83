"""LaMP's official metrics, with percentile bootstrap intervals over users.

Semantics of `eval/evaluation.py` (LaMP-Benchmark/LaMP at 38c9d4d): answers are stripped only, case counts, F1
is macro over the full label list, an unparsable rating becomes the farther end of 1..5. Two differences:
ROUGE is the plain mean (upstream prints the middle of its own bootstrap, about 1e-4 away), and what `rating_of` takes
for no rating, such as "nan" or a thousand fives, counts as unparsable (upstream stops there or prints inf).

Every metric is a function of sums over questions, so a resample of users is one matrix product. Names:
N questions, U users, C columns, R resamples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tagpr_rl.data.tasks import TASKS, task_name
from tagpr_rl.reward.task import rating_of, rouge
from tagpr_rl.types import MetricResult, TagprError

Array = npt.NDArray[np.float64]
RESAMPLES = 1000
CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class Statistic:
    """A metric as column sums: `finish` maps sums [..., C] over questions to values [...]."""

    name: str
    columns_NC: Array
    finish: Callable[[Array], Array]
    higher_is_better: bool
    by_user: bool = True
    """Whether the metric means something on one user's few questions."""


def official_metrics(
    task: str,
    answers: Sequence[str],
    golds: Sequence[str],
    users: Sequence[str],
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> list[MetricResult]:
    """LaMP's metrics of one task, answers and golds in the same order, each with its interval over users."""
    name = task_name(task)
    if not answers or not len(answers) == len(golds) == len(users):
        raise TagprError(
            f"{name}: {len(answers)} answers, {len(golds)} golds, {len(users)} users; they must be equally many, not 0"
        )
    for gold in golds:
        TASKS[name].require_gold(gold, f"{name}: gold")
    statistics = _statistics(name, [text.strip() for text in answers], [text.strip() for text in golds])
    n_unparsable = sum(is_unparsable(name, text) for text in answers)
    results = []
    for statistic in statistics:
        value = float(statistic.finish(statistic.columns_NC.sum(axis=0)))
        low, high = bootstrap(statistic.columns_NC, users, statistic.finish, seed=seed, resamples=resamples)
        results.append(
            MetricResult(
                task=name,
                name=statistic.name,
                value=value,
                n=len(answers),
                n_unparsable=n_unparsable,
                higher_is_better=statistic.higher_is_better,
                low=low,
                high=high,
                user_macro=user_macro(statistic.columns_NC, users, statistic.finish) if statistic.by_user else None,
            )
        )
    return results


def is_unparsable(task: str, answer: str) -> bool:
    """Whether an answer cannot be what the task asks for: no known label, no number, or no text at all."""
    spec = TASKS[task_name(task)]
    text = answer.strip()
    if spec.kind == "classification":
        return text not in spec.labels
    if spec.kind == "rating":
        return rating_of(text) is None
    return not text


def rating(answer: str, gold: str) -> float:
    """The answer as a number; unparsable: 1.0 if |1 - gold| > |5 - gold| else 5.0. No range check."""
    value = rating_of(answer)
    if value is not None:
        return value
    target = float(gold)
    return 1.0 if abs(1 - target) > abs(5 - target) else 5.0


def accuracy(answers: Sequence[str], golds: Sequence[str], labels: Sequence[str]) -> float:
    """Share of answers that equal their gold and are known labels."""
    return float(_hits(answers, golds, labels).mean())


def macro_f1(answers: Sequence[str], golds: Sequence[str], labels: Sequence[str]) -> float:
    """Mean over *all* labels of F1 = 2 TP / (2 TP + FP + FN); a label that never occurs counts as 0."""
    return float(_finish_f1(_f1_columns(answers, golds, labels).sum(axis=0)))


def bootstrap(
    columns_NC: Array,
    users: Sequence[str],
    finish: Callable[[Array], Array],
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> tuple[float, float]:
    """95 % percentile interval of `finish(sum over questions)`, whole users drawn with replacement."""
    sums_UC = _sums_by_user(columns_NC, users)
    n_users = len(sums_UC)
    weights_RU = np.random.default_rng(seed).multinomial(n_users, np.full(n_users, 1 / n_users), size=resamples)
    with np.errstate(invalid="ignore", divide="ignore"):
        values_R = finish(weights_RU.astype(np.float64) @ sums_UC)
    tail = 100 * (1 - CONFIDENCE) / 2
    low, high = np.nanpercentile(values_R, [tail, 100 - tail])
    return float(low), float(high)


def user_macro(columns_NC: Array, users: Sequence[str], finish: Callable[[Array], Array]) -> float:
    """Mean over users of `finish(sum over the user's questions)`: a user with many questions counts once."""
    return float(finish(_sums_by_user(columns_NC, users)).mean())


def _sums_by_user(columns_NC: Array, users: Sequence[str]) -> Array:
    """[U, C], users in order of their first question."""
    ids = {user: index for index, user in enumerate(dict.fromkeys(users))}
    sums_UC = np.zeros((len(ids), columns_NC.shape[1]))
    np.add.at(sums_UC, [ids[user] for user in users], columns_NC)
    return sums_UC


def user_macro_mean(scores: Sequence[float], users: Sequence[str]) -> float:
    """Mean over users of each user's mean score, so that a user with many questions counts once."""
    by_user: dict[str, list[float]] = {}
    for score, user in zip(scores, users, strict=True):
        by_user.setdefault(user, []).append(score)
    return math.fsum(math.fsum(own) / len(own) for own in by_user.values()) / len(by_user)


def mean_over_tasks(scores: Sequence[float], tasks: Sequence[str]) -> float:
    """Mean over tasks of each task's mean score."""
    return float(_finish_task_mean(_task_columns(scores, tasks).sum(axis=0)))


def task_mean(
    scores: Sequence[float],
    tasks: Sequence[str],
    users: Sequence[str],
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> tuple[float, float, float]:
    """(value, low, high): `mean_over_tasks` with its interval over users.

    A resample that lacks a task averages the others.
    """
    columns_NC = _task_columns(scores, tasks)
    value = mean_over_tasks(scores, tasks)
    low, high = bootstrap(columns_NC, users, _finish_task_mean, seed=seed, resamples=resamples)
    return value, low, high


def paired_difference(
    scores_a: Mapping[str, float],
    scores_b: Mapping[str, float],
    users: Mapping[str, str],
    *,
    tasks: Mapping[str, str] | None = None,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> tuple[float, float, float]:
    """(mean, low, high) of a - b over the same questions, with the interval over users.

    Keys are questions. With `tasks` it is the mean over tasks of each task's mean difference. TagprError when
    the two sides do not answer the same questions or a question has no user or task.
    """
    if scores_a.keys() != scores_b.keys() or not scores_a:
        only = sorted(scores_a.keys() ^ scores_b.keys())
        raise TagprError(
            f"paired comparison of {len(scores_a)} and {len(scores_b)} questions, {len(only)} of them on one "
            f"side only (first {only[0] if only else '-'}); evaluate both on the same questions"
        )
    keys = sorted(scores_a)
    for what, table in (("user", users), ("task", tasks)):
        bare = [key for key in keys if table is not None and key not in table]
        if bare:
            raise TagprError(f"paired comparison: question {bare[0]!r} has no {what}; give every question its {what}")
    differences = [scores_a[key] - scores_b[key] for key in keys]
    groups = [tasks[key] if tasks is not None else "all" for key in keys]
    return task_mean(differences, groups, [users[key] for key in keys], seed=seed, resamples=resamples)


def _statistics(task: str, answers: list[str], golds: list[str]) -> list[Statistic]:
    spec = TASKS[task]
    if spec.kind == "classification":
        hits = _with_count(_hits(answers, golds, spec.labels))
        return [
            Statistic("accuracy", hits, _finish_mean, True),
            Statistic("f1", _f1_columns(answers, golds, spec.labels), _finish_f1, True, by_user=False),
        ]
    if spec.kind == "rating":
        errors = np.array([rating(answer, gold) - float(gold) for answer, gold in zip(answers, golds, strict=True)])
        return [
            Statistic("MAE", _with_count(np.abs(errors)), _finish_mean, False),
            Statistic("RMSE", _with_count(errors**2), _finish_root_mean, False),
        ]
    pairs_N2 = np.array([rouge(answer, gold, max_tokens=None) for answer, gold in zip(answers, golds, strict=True)])
    return [
        Statistic("rouge-1", _with_count(pairs_N2[:, 0]), _finish_mean, True),
        Statistic("rouge-L", _with_count(pairs_N2[:, 1]), _finish_mean, True),
    ]


def _with_count(values_N: Array) -> Array:
    """Columns [N, 2]: the value and 1."""
    return np.stack([values_N, np.ones(len(values_N))], axis=1)


def _hits(answers: Sequence[str], golds: Sequence[str], labels: Sequence[str]) -> Array:
    known = set(labels)
    return np.array([float(a == g and a in known) for a, g in zip(answers, golds, strict=True)])


def _f1_columns(answers: Sequence[str], golds: Sequence[str], labels: Sequence[str]) -> Array:
    """Columns [N, 3 L]: true positives, false positives and false negatives of each label."""
    listed = np.array(list(labels), dtype=object)
    answered_NL = np.array(answers, dtype=object)[:, None] == listed[None, :]
    wanted_NL = np.array(golds, dtype=object)[:, None] == listed[None, :]
    parts = (answered_NL & wanted_NL, answered_NL & ~wanted_NL, ~answered_NL & wanted_NL)
    return np.concatenate(parts, axis=1, dtype=np.float64)


def _finish_f1(sums: Array) -> Array:
    tp, fp, fn = np.split(sums, 3, axis=-1)
    f1: Array = 2 * tp / np.maximum(2 * tp + fp + fn, 1.0)  # counts are whole: 1 only replaces 0, where tp is 0
    return np.asarray(f1.mean(axis=-1))


def _finish_mean(sums: Array) -> Array:
    return np.asarray(sums[..., 0] / sums[..., 1])


def _finish_root_mean(sums: Array) -> Array:
    return np.asarray(np.sqrt(sums[..., 0] / sums[..., 1]))


def _task_columns(scores: Sequence[float], tasks: Sequence[str]) -> Array:
    """Columns [N, 2 T]: the score under its task, then 1 under its task."""
    names = list(dict.fromkeys(tasks))
    member_NT = np.array([[float(task == name) for name in names] for task in tasks])
    return np.concatenate([member_NT * np.asarray(scores, dtype=np.float64)[:, None], member_NT], axis=1)


def _finish_task_mean(sums: Array) -> Array:
    totals, counts = np.split(sums, 2, axis=-1)
    means = np.divide(totals, counts, out=np.full_like(totals, np.nan), where=counts > 0)
    return np.asarray(np.nanmean(means, axis=-1))
