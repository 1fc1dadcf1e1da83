"""Which profile items a prompt gets, best first.

`bm25` follows LaMP (`LaMP/rank_profiles.py` at 38c9d4d): BM25Okapi over whitespace tokens, no lower-casing.
Ours where upstream has traps: equal scores keep the profile's order, `random` draws without replacement and
is seeded, and `k` may exceed the profile.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Literal, get_args

from rank_bm25 import BM25Okapi

from tagpr_rl.data.tasks import TASKS, task_name
from tagpr_rl.types import LampRecord, ProfileItem, TagprError

Method = Literal["bm25", "recency", "random", "none"]
METHODS: tuple[str, ...] = get_args(Method)


def rank(record: LampRecord, k: int, method: str = "bm25", seed: int = 0) -> tuple[ProfileItem, ...]:
    """At most `k` items of the record's profile, best first.

    bm25: by similarity to the task's query; recency: newest first (needs dates, so the time split only);
    random: a draw that depends on `seed`, the task and the record's id alone; none: no items. Raises
    TagprError for an unknown method, a negative `k`, a record whose query or dates cannot be read.
    """
    if method not in METHODS:
        raise TagprError(f"retrieval method {method!r} is not one of {', '.join(METHODS)}")
    if k < 0:
        raise TagprError(f"retrieval k is {k}; it must be 0 or more")
    profile = record.profile
    if method == "none" or k == 0 or not profile:
        return ()
    if method == "recency":
        return _newest_first(record)[:k]
    if method == "random":
        drawn = random.Random(f"{seed}/{record.task}/{record.id}").sample(range(len(profile)), min(k, len(profile)))
        return tuple(profile[index] for index in drawn)
    spec = TASKS[task_name(record.task)]
    scores = bm25_scores([spec.item_text(item) for item in profile], spec.query(record))
    order = sorted(range(len(profile)), key=lambda index: -scores[index])  # stable: ties keep their position
    return tuple(profile[index] for index in order[:k])


def bm25_scores(texts: Sequence[str], query: str) -> list[float]:
    """BM25Okapi scores (k1 1.5, b .75, epsilon .25) of `texts` for `query`, whitespace tokens, case kept.

    All 0 when no text has a word (the library divides by zero there).
    """
    corpus = [text.split() for text in texts]
    if not any(corpus):
        return [0.0] * len(corpus)
    return [float(score) for score in BM25Okapi(corpus).get_scores(query.split())]


def _newest_first(record: LampRecord) -> tuple[ProfileItem, ...]:
    """As upstream: dates compare as tuples of integers, and of equal dates the later position comes first."""
    dated = [(_date_key(record, item), index) for index, item in enumerate(record.profile)]
    return tuple(record.profile[index] for _, index in sorted(dated, reverse=True))


def _date_key(record: LampRecord, item: ProfileItem) -> tuple[int, ...]:
    where = f"{record.task} record {record.id!r}, profile item {item.id!r}"
    if item.date is None:
        raise TagprError(
            f"{where}: has no date; recency works on LaMP's time split only (the user split's order is "
            "random), use bm25 or the time split"
        )
    try:
        return tuple(int(part) for part in item.date.split("-"))
    except ValueError:
        raise TagprError(f"{where}: date {item.date!r} is not like 2016-05-21 or 2016") from None
