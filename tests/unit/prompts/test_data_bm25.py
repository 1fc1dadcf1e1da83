"""BM25 against `rank_bm25` itself: the same scores to the last bit and the same order, ties included."""

from __future__ import annotations

import random
import sys

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rank_bm25 import BM25Okapi

from tagpr_rl.prompts.bm25 import Bm25Index, IndexCache

WORDS = ["a", "b", "c", "dd", "é", "日本", "B", "e\u0301", "x,", "1"]
SPACES = [" ", "  ", "\n", "\t", "\x1c", "\u3000", "\x85", "\xa0", "\u2028"]


def agree(texts: list[str], query: str) -> None:
    corpus = [text.split() for text in texts]
    own = Bm25Index(texts)
    if not any(corpus):  # the library divides by zero
        assert own.scores(query).tolist() == [0.0] * len(texts)
        return
    library = BM25Okapi(corpus)
    assert own.scores(query).tolist() == library.get_scores(query.split()).tolist()
    assert own.top(query, len(texts)) == library.get_top_n(query.split(), list(range(len(texts))), n=len(texts))


@settings(max_examples=300)
@given(
    st.lists(st.lists(st.tuples(st.sampled_from(WORDS), st.sampled_from(SPACES)), max_size=12), max_size=30),
    st.lists(st.sampled_from([*WORDS, "unknown"]), max_size=12),
    st.integers(1, len(WORDS)),
)
def test_small_texts(texts: list[list[tuple[str, str]]], query: list[str], vocabulary: int) -> None:
    known = set(WORDS[:vocabulary])  # few words: frequent ones, whose idf is negative, and many ties
    agree(["".join(word + space for word, space in text if word in known) for text in texts], " ".join(query))


@settings(max_examples=100)
@given(st.lists(st.text(max_size=20), max_size=8), st.text(max_size=20))
def test_any_text(texts: list[str], query: str) -> None:
    agree(texts, query)


def test_long_texts_with_ties() -> None:
    # Sums of many terms of different size: another order of addition would change the last bits.
    rng = random.Random(0)
    words = [f"w{n}" for n in range(400)]
    weights = [1 / (n + 1) for n in range(400)]
    for _ in range(40):
        texts = [" ".join(rng.choices(words, weights, k=rng.randint(0, 120))) for _ in range(rng.randint(1, 60))]
        texts += rng.choices(texts, k=10)
        agree(texts, " ".join(rng.choices(words, weights, k=rng.randint(1, 80))))


def test_one_text_of_many_query_words() -> None:
    # One row: an array sum along it would be pairwise.
    agree([" ".join(f"w{n}" for n in range(300))], " ".join(f"w{n % 300}" for n in range(0, 3000, 7)))


def test_arrow_and_python_agree_on_white_space() -> None:
    # Every character: Arrow splits the texts, Python the queries.
    characters = [chr(code) for code in range(sys.maxunicode + 1) if not 0xD800 <= code < 0xE000]
    rows = pc.utf8_split_whitespace(pa.array([f"a{char}b" for char in characters], type=pa.large_string()))
    splits = np.flatnonzero(np.diff(rows.offsets.to_numpy()) == 2)
    assert [characters[at] for at in splits] == [char for char in characters if char.isspace()]


def test_recent_profiles_keep_their_index() -> None:
    cache = IndexCache(max_tokens=5)
    first = cache.get(["a b", "c"])
    assert cache.get(["a b", "c"]) is first
    cache.get(["d e f"])  # 3 + 3 tokens are too many: the oldest goes
    assert cache.get(["a b", "c"]) is not first


def test_no_texts() -> None:
    assert Bm25Index([]).top("a", 5) == []
    assert Bm25Index(["", "  "]).top("a", 5) == np.argsort(np.zeros(2))[::-1].tolist()


def test_surrogates_are_refused_by_the_loader_and_never_reach_this() -> None:
    with pytest.raises(UnicodeEncodeError):
        Bm25Index(["\ud800"])
