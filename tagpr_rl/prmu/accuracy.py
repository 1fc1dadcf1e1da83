"""What a PRMU is worth: pairwise accuracy on seen and unseen users, and the controls. Imports no torch."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace

from tagpr_rl.prmu.serving.requests import ScoreRequest
from tagpr_rl.prmu.training.pairs import KINDS, PairRow

RawScore = Callable[[Sequence[ScoreRequest]], list[float]]
"""Requests to raw scores, in order."""


def wins(chosen: Sequence[float], rejected: Sequence[float]) -> list[float]:
    """1 where chosen scores above rejected, 0.5 on a tie, else 0."""
    return [1.0 if c > r else 0.5 if c == r else 0.0 for c, r in zip(chosen, rejected, strict=True)]


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


def pair_wins(raw: RawScore, asks: Sequence[tuple[ScoreRequest, ScoreRequest]]) -> list[float]:
    """Wins of (chosen, rejected) requests, scored in one call."""
    scores = raw([request for ask in asks for request in ask])
    return wins(scores[0::2], scores[1::2])


def own(pair: PairRow) -> tuple[ScoreRequest, ScoreRequest]:
    """Both responses scored for the pair's own user."""
    return pair.request(pair.chosen), pair.request(pair.rejected)


def shuffled(pairs: Sequence[PairRow], seed: int = 0) -> list[tuple[ScoreRequest, ScoreRequest]]:
    """Both responses to the pair's question, scored for a random *other* user of the same task (id and profile).

    Pairs whose task has no other user among `pairs` are left out.
    """
    rng = random.Random(seed)
    by_task: dict[str, list[PairRow]] = defaultdict(list)
    for pair in pairs:
        by_task[pair.task].append(pair)
    asks = []
    for pair in pairs:
        others = [other for other in by_task[pair.task] if other.user_id != pair.user_id]
        if others:
            other = replace(rng.choice(others), question=pair.question)
            asks.append((other.request(pair.chosen), other.request(pair.rejected)))
    return asks


def score_statistics(raw: RawScore, pairs: Sequence[PairRow]) -> tuple[float, float]:
    """Mean and population standard deviation (at least 1e-6) of the raw scores of all chosen and rejected."""
    scores = raw([request for pair in pairs for request in own(pair)])
    centre = mean(scores)
    return centre, max(mean([(score - centre) ** 2 for score in scores]) ** 0.5, 1e-6)


def evaluate(raw: RawScore, seen: Sequence[PairRow], unseen: Sequence[PairRow], *, seed: int = 0) -> dict[str, float]:
    """Accuracies in [0, 1] and counts; a key is absent when there is no pair to measure it on.

    `<set>/accuracy`, `/user_macro`, `/<kind>` (one per kind), `/<task>`, `/shuffled` (cross_profile pairs
    scored for another user: .5 = PRMU uses the user and nothing else), `/generic` (e_0 only, all pairs),
    `/generic_cross_profile`, `/pairs`, `/users`.
    """
    out: dict[str, float] = {}
    for name, pairs in (("seen", seen), ("unseen", unseen)):
        if not pairs:
            continue
        won = pair_wins(raw, [own(pair) for pair in pairs])
        generic = pair_wins(raw, [(a.generic(), b.generic()) for a, b in map(own, pairs)])
        out[f"{name}/accuracy"] = mean(won)
        out[f"{name}/user_macro"] = per_user_macro([pair.user_id for pair in pairs], won)
        out[f"{name}/generic"] = mean(generic)
        out[f"{name}/pairs"] = float(len(pairs))
        out[f"{name}/users"] = float(len({pair.user_id for pair in pairs}))
        for attribute, values in (("kind", KINDS), ("task", sorted({pair.task for pair in pairs}))):
            for value in values:
                group = [w for w, pair in zip(won, pairs, strict=True) if getattr(pair, attribute) == value]
                if group:
                    out[f"{name}/{value}"] = mean(group)
        cross = [pair for pair in pairs if pair.kind == "cross_profile"]
        if cross:
            kept = [g for g, pair in zip(generic, pairs, strict=True) if pair.kind == "cross_profile"]
            out[f"{name}/generic_cross_profile"] = mean(kept)
        if asks := shuffled(cross, seed):
            out[f"{name}/shuffled"] = mean(pair_wins(raw, asks))
    return out
