"""Retrieval: BM25 against a hand computation, stable ties, recency, seeded draws."""

from __future__ import annotations

import math
from collections import Counter
from itertools import pairwise
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tagpr_rl.data.tasks import TASKS
from tagpr_rl.prompts.retrieve import Method, Retriever, bm25_scores, rank
from tagpr_rl.types import LampRecord, ProfileItem, TagprError


def reviews(texts: list[str], query: str = "q", dates: list[str | None] | None = None) -> LampRecord:
    dates = dates or [None] * len(texts)
    items = tuple(
        ProfileItem(str(n), {"text": text, "score": "3"}, date)
        for n, (text, date) in enumerate(zip(texts, dates, strict=True))
    )
    return LampRecord("5", "LaMP_3", "dev", "u", TASKS["LaMP_3"].make_input(text=query), items)


def ids(items: tuple[ProfileItem, ...]) -> list[str]:
    return [item.id for item in items]


def test_bm25_by_hand() -> None:
    # 3 texts, mean length 2. "cat": in 1 of 3, idf = ln(2.5 / 1.5). tf 2 in a text of 3 words.
    texts = ["cat cat dog", "dog", "bird fish"]
    tf = 2 * 2.5 / (2 + 1.5 * (1 - 0.75 + 0.75 * 3 / 2))
    assert bm25_scores(texts, "cat") == pytest.approx([math.log(2.5 / 1.5) * tf, 0, 0])
    assert bm25_scores(texts, "Cat") == [0, 0, 0]  # case counts
    assert bm25_scores(["", " "], "cat") == [0, 0]


def test_bm25_uses_the_tasks_query_and_puts_the_best_first() -> None:
    # "scale" stands in LaMP_3's instruction, not in the query: item 0 must not win by it.
    record = reviews(["scale of the thing", "a red lamp", "two"], query="red lamp")
    assert ids(rank(record, 1)) == ["1"]
    assert ids(rank(record, 9, ties="position")) == ["1", "0", "2"]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.sampled_from(["red lamp", "red", "blue", "blue lamp", ""]), max_size=12), st.integers(0, 15))
def test_bm25_ties_may_keep_their_position(texts: list[str], k: int) -> None:
    record = reviews(texts, query="red lamp")
    ranked = rank(record, k, ties="position")
    assert len(ranked) == min(k, len(texts))
    scores = bm25_scores(texts, "red lamp")
    places = [int(item.id) for item in rank(record, len(texts), ties="position")]
    for before, after in pairwise(places):
        assert scores[before] > scores[after] or (scores[before] == scores[after] and before < after)
    assert ids(ranked) == [str(place) for place in places[:k]]


def test_recency_is_newest_first_by_number() -> None:
    # As text "2016-9-1" > "2016-10-1"; as numbers it is older. Equal dates: the later position first.
    record = reviews(list("abcd"), dates=["2016-9-1", "2016-10-1", "2015", "2016-10-1"])
    assert ids(rank(record, 3, "recency")) == ["3", "1", "0"]


def test_recency_without_dates_is_an_error() -> None:
    with pytest.raises(TagprError, match="LaMP_3 record '5', profile item '1': has no date; recency works on"):
        rank(reviews(["a", "b"], dates=["2016-01-01", None]), 1, "recency")
    with pytest.raises(TagprError, match="date 'May 2016' is not like 2016-05-21"):
        rank(reviews(["a"], dates=["May 2016"]), 1, "recency")


def test_random_is_seeded_and_without_replacement() -> None:
    record = reviews([str(n) for n in range(10)])
    assert sorted(ids(rank(record, 10, "random"))) == [str(n) for n in range(10)]
    assert rank(record, 4, "random", seed=1) == rank(record, 4, "random", seed=1)
    firsts = Counter(rank(record, 1, "random", seed=seed)[0].id for seed in range(200))
    assert len(firsts) == 10  # each of 10 is missed in 200 draws with probability 10 * .9^200 = 7e-9
    assert len(rank(record, 99, "random")) == 10


def test_none_empty_and_bad_arguments() -> None:
    record = reviews(["a", "b"])
    assert rank(record, 5, "none") == ()
    for method in get_args(Method):
        assert rank(reviews([]), 5, method) == ()
        assert rank(record, 0, method) == ()
    with pytest.raises(TagprError, match="method dense needs an encoder"):
        rank(record, 1, "dense")
    with pytest.raises(TagprError, match=r"method file needs data\.retrieval\.path"):
        rank(record, 1, "file")


def test_an_input_without_the_marker_is_an_error() -> None:
    bare = LampRecord("5", "LaMP_3", "dev", "u", "How good is it?", reviews(["a"]).profile)
    with pytest.raises(TagprError, match="LaMP_3 record '5': input has no 'review:'"):
        rank(bare, 1)
    cited = LampRecord(
        "6", "LaMP_1", "dev", "u", 'the title "a", "b"', (ProfileItem("0", {"title": "", "abstract": ""}),)
    )
    with pytest.raises(TagprError, match="LaMP_1 record '6': input has 2 quoted texts"):
        rank(cited, 1)


@pytest.mark.parametrize("k, method", [(-1, "bm25"), (1, "BM25")])
def test_a_retriever_with_a_wrong_method_or_number_is_refused(k: int, method: str) -> None:
    with pytest.raises(TagprError, match=f"method '{method}', k {k}"):
        Retriever(k, method)  # type: ignore[arg-type]
