"""Which profile items a prompt gets, best first.

`bm25` follows LaMP (`LaMP/rank_profiles.py` at 38c9d4d): BM25Okapi over whitespace tokens, no lower-casing, equal
scores in the order of `get_top_n`. `dense` is upstream's Contriever path for any encoder. `file` reads the rankings
that upstream writes, `{question id: [item ids]}`. Two differences: `random` draws without replacement and is seeded,
and `k` may exceed the profile.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

from tagpr_rl.data.tasks import TASKS, TaskSpec, task_name
from tagpr_rl.prompts.bm25 import Bm25Index, IndexCache, official_order
from tagpr_rl.types import LampRecord, ProfileItem, TagprError

Method = Literal["bm25", "dense", "recency", "random", "file", "none"]
Ties = Literal["official", "position"]
Similarity = Callable[[Sequence[str], str], Sequence[float]]
"""(texts, query) -> a score per text; higher is nearer."""
Rankings = Mapping[tuple[str, str], Sequence[str]]
"""(task, question id) -> item ids, best first."""

_INDEXES = IndexCache()


@dataclass(frozen=True, slots=True)
class Retriever:
    """A record -> the items that its prompt gets, under one set of choices."""

    k: int
    """0 or more; it may exceed the profile."""
    method: Method = "bm25"
    seed: int = 0
    ties: Ties = "official"
    """Equal BM25 or dense scores: `official` = as upstream's `numpy.argsort(scores)[::-1]` leaves them, `position`
    = in the profile's order, which is the same on every machine."""
    similarity: Similarity | None = None
    """For `dense`."""
    rankings: Rankings | None = None
    """For `file`."""

    def __post_init__(self) -> None:
        if self.method not in get_args(Method) or self.k < 0:
            raise TagprError(
                f"retrieval: method {self.method!r}, k {self.k}; use one of {', '.join(get_args(Method))}, and k from 0"
            )

    def __call__(self, record: LampRecord) -> tuple[ProfileItem, ...]:
        """At most `k` items of the record's profile, best first.

        bm25: by similarity to the task's query; dense: by `similarity`; recency: newest first (needs dates, so the
        time split only); random: a draw that depends on `seed`, the task and the record's id alone; file: as
        `rankings` has it; none: no items. Raises TagprError for a record whose query or dates cannot be read, and for
        rankings that do not fit the record.
        """
        profile, k = record.profile, self.k
        if self.method == "none" or k == 0 or not profile:
            return ()
        if self.method == "recency":
            return _newest_first(record)[:k]
        if self.method == "random":
            rng = random.Random(f"{self.seed}/{record.task}/{record.id}")
            return tuple(rng.sample(profile, min(k, len(profile))))
        if self.method == "file":
            return _by_rankings(record, self.rankings)[:k]
        spec = TASKS[task_name(record.task)]
        query = spec.query(record)

        def texts() -> list[str]:
            return [spec.item_text(item) for item in profile]

        if self.method == "bm25":
            scores = _INDEXES.of(profile, texts).scores(query)
        else:
            scores = np.asarray(_required(self.similarity)(texts(), query), dtype=np.float64)
        official = self.ties == "official"
        order = official_order(scores) if official else np.argsort(-scores, kind="stable").tolist()
        return tuple(map(profile.__getitem__, order[:k]))


def rank(record: LampRecord, k: int, method: Method = "bm25", **choices: Any) -> tuple[ProfileItem, ...]:
    """`Retriever(k, method, **choices)` of one record."""
    return Retriever(k, method, **choices)(record)


def query_and_texts(record: LampRecord) -> tuple[str, list[str]]:
    """The two sides of retrieval: the record's query, and the text of each profile item."""
    spec: TaskSpec = TASKS[task_name(record.task)]
    return spec.query(record), [spec.item_text(item) for item in record.profile]


def bm25_scores(texts: Sequence[str], query: str) -> list[float]:
    """BM25Okapi scores (k1 1.5, b .75, epsilon .25) of `texts` for `query`, whitespace tokens, case kept.

    All 0 if no text has a word (the library divides by zero there).
    """
    scores: list[float] = Bm25Index(texts).scores(query).tolist()
    return scores


def _required(similarity: Similarity | None) -> Similarity:
    if similarity is None:
        raise TagprError(
            "retrieval method dense needs an encoder, which is not loaded here; write the rankings with "
            "`tagpr data rank` and use method: file, or use bm25"
        )
    return similarity


def _by_rankings(record: LampRecord, rankings: Rankings | None) -> tuple[ProfileItem, ...]:
    if rankings is None:
        raise TagprError("retrieval method file needs data.retrieval.path, the file or folder with the rankings")
    ranking = rankings.get((record.task, record.id))
    where = f"{record.task} record {record.id!r}"
    if ranking is None:
        raise TagprError(f"{where}: the rankings do not name it; they belong to other questions")
    places: dict[str, list[int]] = {}
    for index, item in enumerate(record.profile):
        places.setdefault(item.id, []).append(index)
    items = []
    for key in ranking:
        if not places.get(key):
            raise TagprError(
                f"{where}: the rankings name item {key!r}, which its profile of {len(record.profile)} items does not "
                "have (or has fewer times); they belong to another split or version of the data"
            )
        items.append(record.profile[places[key].pop(0)])  # an id that stands twice: the first one first
    return tuple(items)


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
