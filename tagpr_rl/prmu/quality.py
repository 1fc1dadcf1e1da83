"""Quality of PRMU's scores beyond accuracy: calibration, best-of-N, correlations, profile size. Imports no torch.

A "raw" score is the model's output before it is normalised. The suffix _N marks the N responses to one question.
"""

from __future__ import annotations

import math
import random
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace

from tagpr_rl.prmu.accuracy import mean
from tagpr_rl.prmu.serving.requests import ScoreRequest, request_for
from tagpr_rl.types import PairRow


def third_users(
    pairs: Sequence[PairRow], seed: int = 0, draws: int = 4
) -> tuple[list[tuple[ScoreRequest, ScoreRequest]], list[PairRow]]:
    """(chosen, rejected) requests for `draws` random users of the same task, and the pair that each belongs to.

    The users are neither of the pair's two users. A pair is left out if its task has no such user.
    """
    rng = random.Random(seed)
    by_task: dict[str, dict[str, PairRow]] = defaultdict(dict)
    for pair in pairs:
        by_task[pair.task].setdefault(pair.user_id, pair)
    requests, sources = [], []
    for pair in pairs:
        others = [p for user, p in by_task[pair.task].items() if user not in (pair.user_id, pair.other_user_id)]
        for third in rng.sample(others, min(draws, len(others))):
            other = replace(third, question=pair.question)
            requests.append((request_for(other, pair.chosen), request_for(other, pair.rejected)))
            sources.append(pair)
    return requests, sources


def calibration(differences: Sequence[float], bins: int = 10) -> dict[str, object]:
    """Reliability of P(chosen wins) = sigmoid(raw difference), and the expected calibration error.

    The side with the higher score is predicted with confidence sigmoid(|d|) in [0.5, 1]; it is right when d > 0
    (half right at 0). Returns {"bins": [{"low", "high", "confidence", "accuracy", "pairs"}], "ece": sum over bins of
    share * |accuracy - confidence|}; empty bins are left out.
    """
    groups: dict[int, list[tuple[float, float]]] = defaultdict(list)
    for d in differences:
        confidence = 1 / (1 + math.exp(-min(abs(d), 700.0)))
        right = 1.0 if d > 0 else 0.5 if d == 0 else 0.0
        groups[min(int((confidence - 0.5) * 2 * bins), bins - 1)].append((confidence, right))
    rows, error = [], 0.0
    for index in sorted(groups):
        confidence = mean([c for c, _ in groups[index]])
        accuracy = mean([r for _, r in groups[index]])
        share = len(groups[index]) / len(differences)
        error += share * abs(accuracy - confidence)
        low = 0.5 + index / (2 * bins)
        rows.append(
            {"low": low, "high": low + 1 / (2 * bins), "confidence": confidence, "accuracy": accuracy,
             "pairs": len(groups[index])}
        )  # fmt: skip
    return {"bins": rows, "ece": error}


def best_of(task_scores: Sequence[float], ranking: Sequence[float], n: int) -> float:
    """Mean task score of the responses that `ranking` puts first in consecutive groups of `n`; ties count evenly.

    n = 1 is the mean of all responses. The number of responses must be a multiple of n.
    """
    assert len(task_scores) % n == 0 and len(task_scores) == len(ranking)
    picks = []
    for first in range(0, len(task_scores), n):
        group = range(first, first + n)
        top = max(ranking[i] for i in group)
        picks.append(mean([task_scores[i] for i in group if ranking[i] == top]))
    return mean(picks)


def votes(answers: Sequence[str]) -> list[float]:
    """For each response the number of responses with the same answer: the ranking of self-consistency.

    An empty answer, for example of an unfinished thought, has no vote.
    """
    counts = Counter(answer for answer in answers if answer)
    return [float(counts[answer]) for answer in answers]


def correlation_within(xs: Sequence[Sequence[float]], ys: Sequence[Sequence[float]]) -> float | None:
    """Pearson correlation after taking each question's mean from both, [-1, 1]; None if one side never varies."""
    a, b = [], []
    for x_N, y_N in zip(xs, ys, strict=True):
        x_mean, y_mean = mean(x_N), mean(y_N)
        a += [x - x_mean for x in x_N]
        b += [y - y_mean for y in y_N]
    size = math.sqrt(math.fsum(x * x for x in a) * math.fsum(y * y for y in b))
    return math.fsum(x * y for x, y in zip(a, b, strict=True)) / size if size > 0 else None


def auc_within(raws: Sequence[Sequence[float]], task_scores: Sequence[Sequence[float]]) -> tuple[float | None, int]:
    """(share, number) of the response pairs of one question that the raw score orders as the task score does.

    Pairs of equal task score are not counted; equal raw scores count half. The share is None if no pair is counted.
    """
    won, pairs = 0.0, 0
    for raw_N, task_N in zip(raws, task_scores, strict=True):
        for i in range(len(raw_N)):
            for j in range(i):
                if task_N[i] != task_N[j]:
                    better, worse = (i, j) if task_N[i] > task_N[j] else (j, i)
                    won += 1.0 if raw_N[better] > raw_N[worse] else 0.5 if raw_N[better] == raw_N[worse] else 0.0
                    pairs += 1
    return (won / pairs if pairs else None), pairs


def truncated(pairs: Sequence[PairRow], size: int, seed: int = 0) -> list[PairRow]:
    """The pairs with at most `size` random items of each user's profile; all pairs of a user get the same items."""
    items: dict[tuple[str, str], tuple[str, ...]] = {}
    for pair in pairs:
        key = pair.task, pair.user_id
        if key not in items:
            order = list(range(len(pair.profile_texts)))
            random.Random(f"{seed}/{key}").shuffle(order)
            items[key] = tuple(pair.profile_texts[i] for i in order[:size])
    return [replace(pair, profile_texts=items[pair.task, pair.user_id]) for pair in pairs]
