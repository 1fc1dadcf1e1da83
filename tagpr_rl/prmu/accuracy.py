"""Pairwise accuracy of a PRMU on seen and unseen users, with controls. Imports no torch."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace

from tagpr_rl.prmu.serving.requests import ScoreRequest, request_for
from tagpr_rl.prmu.training.preferences import KINDS
from tagpr_rl.types import PairRow

RawScore = Callable[[Sequence[ScoreRequest]], list[float]]
"""Requests to raw scores, in order."""


def wins(chosen: Sequence[float], rejected: Sequence[float]) -> list[float]:
    """For each pair 1 if `chosen` is above `rejected`, 0.5 on a tie, else 0."""
    return [1.0 if c > r else 0.5 if c == r else 0.0 for c, r in zip(chosen, rejected, strict=True)]


def remembered(raw: RawScore) -> RawScore:
    """`raw` that scores equal requests once, over all calls."""
    known: dict[ScoreRequest, float] = {}

    def scores(requests: Sequence[ScoreRequest]) -> list[float]:
        new = list(dict.fromkeys(request for request in requests if request not in known))
        known.update(zip(new, raw(new), strict=True) if new else ())
        return [known[request] for request in requests]

    return scores


def mean(values: Sequence[float]) -> float:
    """Arithmetic mean of at least one value."""
    assert values
    return sum(values) / len(values)


def per_user_macro(users: Sequence[str], won: Sequence[float]) -> float:
    """Mean over users of each user's mean, so that a user with many pairs does not count more."""
    by_user: dict[str, list[float]] = defaultdict(list)
    for user, win in zip(users, won, strict=True):
        by_user[user].append(win)
    return mean([mean(group) for group in by_user.values()])


def pair_wins(raw: RawScore, requests: Sequence[tuple[ScoreRequest, ScoreRequest]]) -> list[float]:
    """`wins` of (chosen, rejected) requests, scored in one call."""
    scores = raw([request for pair in requests for request in pair])
    return wins(scores[0::2], scores[1::2])


def own(pair: PairRow) -> tuple[ScoreRequest, ScoreRequest]:
    """The requests that score both responses for the pair's own user."""
    return request_for(pair, pair.chosen), request_for(pair, pair.rejected)


def shuffled(pairs: Sequence[PairRow], seed: int = 0) -> list[tuple[ScoreRequest, ScoreRequest]]:
    """The requests that score both responses for a random *other* user of the same task, with that user's profile.

    A pair is left out if `pairs` has no other user of its task.
    """
    rng = random.Random(seed)
    by_task: dict[str, list[PairRow]] = defaultdict(list)
    for pair in pairs:
        by_task[pair.task].append(pair)
    requests = []
    for pair in pairs:
        others = [other for other in by_task[pair.task] if other.user_id != pair.user_id]
        if others:
            other = replace(rng.choice(others), question=pair.question)
            requests.append((request_for(other, pair.chosen), request_for(other, pair.rejected)))
    return requests


def score_statistics(raw: RawScore, pairs: Sequence[PairRow]) -> tuple[float, float]:
    """Mean and population standard deviation (at least 1e-6) of the raw scores of all responses of the pairs."""
    scores = raw([request for pair in pairs for request in own(pair)])
    centre = mean(scores)
    return centre, max(mean([(score - centre) ** 2 for score in scores]) ** 0.5, 1e-6)


def evaluate(raw: RawScore, seen: Sequence[PairRow], unseen: Sequence[PairRow], *, seed: int = 0) -> dict[str, float]:
    """Accuracies in [0, 1] and counts of the sets "seen" and "unseen". A key is absent if no pair measures it.

    `<set>/accuracy`: all pairs. `/user_macro`: mean over users. `/<kind>`, `/<task>`: the pairs of that kind or task.
    `/shuffled`: cross_profile pairs scored for another user; .5 means that PRMU uses the user and nothing else.
    `/generic`, `/generic_cross_profile`: the same pairs scored with e_0 only. `/pairs`, `/users`: counts.
    """
    metrics: dict[str, float] = {}
    for name, pairs in (("seen", seen), ("unseen", unseen)):
        if not pairs:
            continue
        won = pair_wins(raw, [own(pair) for pair in pairs])
        generic = pair_wins(raw, [(a.generic(), b.generic()) for a, b in map(own, pairs)])
        metrics[f"{name}/accuracy"] = mean(won)
        metrics[f"{name}/user_macro"] = per_user_macro([pair.user_id for pair in pairs], won)
        metrics[f"{name}/generic"] = mean(generic)
        metrics[f"{name}/pairs"] = float(len(pairs))
        metrics[f"{name}/users"] = float(len({pair.user_id for pair in pairs}))
        for attribute, values in (("kind", KINDS), ("task", sorted({pair.task for pair in pairs}))):
            for value in values:
                group = [w for w, pair in zip(won, pairs, strict=True) if getattr(pair, attribute) == value]
                if group:
                    metrics[f"{name}/{value}"] = mean(group)
        cross = [pair for pair in pairs if pair.kind == "cross_profile"]
        if cross:
            group = [g for g, pair in zip(generic, pairs, strict=True) if pair.kind == "cross_profile"]
            metrics[f"{name}/generic_cross_profile"] = mean(group)
        if requests := shuffled(cross, seed):
            metrics[f"{name}/shuffled"] = mean(pair_wins(raw, requests))
    return metrics
