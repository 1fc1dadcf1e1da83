"""BM25Okapi over white-space tokens: the scores of `rank_bm25` 0.2.2 to the last bit, from postings built once.

`rank_bm25.BM25Okapi(corpus, k1=1.5, b=0.75, epsilon=0.25)` walks every text for every word of every query. Here a
profile is tokenised once (pyarrow) and each word's contributions are kept, so a query costs a few array operations.
Floating point is not associative, so every sum runs in the library's order: the mean idf over words in the order of
their first occurrence, a text's score over the query's words as they stand, repeats included.
"""

from __future__ import annotations

import math
import weakref
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import cached_property, lru_cache
from itertools import repeat
from typing import Any

import numpy as np
import numpy.typing as npt

K1, B, EPSILON = 1.5, 0.75, 0.25
"""The library's defaults, which LaMP uses."""
CACHED_TOKENS = 4_000_000
"""Indexes of recent profiles are kept while they hold no more tokens together (about 50 bytes each)."""

CACHED_OWNERS = 4096

Ints = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]


class Bm25Index:
    """BM25Okapi of one list of texts (D texts, V distinct words, P (word, text) pairs)."""

    def __init__(self, texts: Sequence[str]) -> None:
        lengths_D, codes_T, self._words = _tokenise(texts)
        self.size, self.n_tokens = len(texts), len(codes_T)
        if self.n_tokens == 0:
            return
        # Sorted (word, text) keys; a run of equal keys is one posting and its length the word's count there.
        small = len(self._words) * self.size < 1 << 31  # half the bytes to sort
        keys_T = codes_T if small else codes_T.astype(np.int64)
        keys_T = keys_T * keys_T.dtype.type(self.size)
        keys_T += np.repeat(np.arange(self.size, dtype=keys_T.dtype), lengths_D)
        keys_T.sort()
        at_P = np.flatnonzero(np.concatenate(([True], keys_T[1:] != keys_T[:-1])))
        count_P = np.diff(np.append(at_P, self.n_tokens))
        word_P, self._text_P = np.divmod(keys_T[at_P], self.size)
        frequency_V = np.bincount(word_P, minlength=len(self._words))
        ends_V = np.cumsum(frequency_V)
        # Word V, one more, stands for every word that no text has: it has no posting.
        self._start_V = np.concatenate((ends_V - frequency_V, ends_V[-1:]))
        self._n_V = np.append(frequency_V, 0)
        idf_V = _idf(self.size, frequency_V)
        norm_D = K1 * (1 - B + B * lengths_D / (self.n_tokens / self.size))
        self._value_P = np.repeat(idf_V, frequency_V) * (count_P * (K1 + 1) / (count_P + norm_D[self._text_P]))

    @cached_property
    def _code_of(self) -> dict[str, int]:
        return dict(zip(self._words.to_pylist(), range(len(self._words)), strict=True))

    def scores(self, query: str) -> Floats:
        """Scores [D] of `query`'s white-space tokens; all 0 if no text has a word (the library fails there)."""
        if self.n_tokens == 0:
            return np.zeros(self.size)
        words = query.split()
        if not words:
            return np.zeros(self.size)
        codes_Q = np.fromiter(map(self._code_of.get, words, repeat(len(self._words))), dtype=np.int64, count=len(words))
        n_Q = self._n_V[codes_Q]
        ends_Q = np.cumsum(n_Q)
        postings = np.repeat(self._start_V[codes_Q] - ends_Q + n_Q, n_Q)
        postings += np.arange(len(postings))
        # bincount adds its weights one after the other, so each text's sum has the query's order.
        sums_D = np.bincount(self._text_P[postings], weights=self._value_P[postings], minlength=self.size)
        return sums_D.astype(np.float64, copy=False)

    def top(self, query: str, k: int) -> list[int]:
        """Positions of the `k` best texts as `BM25Okapi.get_top_n` orders them, equal scores included."""
        return official_order(self.scores(query))[:k]


def official_order(scores_D: Floats) -> list[int]:
    """Positions, best first, by the library's own expression: numpy's sort decides between equal scores.

    The sort is not stable: the order of ties is fixed on one machine and numpy release, not on all of them.
    """
    order: list[int] = np.argsort(scores_D)[::-1].tolist()
    return order


def _tokenise(texts: Sequence[str]) -> tuple[Ints, Ints, Any]:
    """(tokens of each text [D], code of each token, the words by code); codes count up by first occurrence."""
    import pyarrow as pa  # on first use: a reward model that ranks nothing also runs without it
    import pyarrow.compute as pc

    # Arrow makes an empty token of an empty text and of white space at an end; `str.split` does not.
    filled_D = np.fromiter((bool(text) and not text.isspace() for text in texts), dtype=bool, count=len(texts))
    whole = filled_D.all()
    filled = pa.array(texts if whole else [text for text in texts if text and not text.isspace()], pa.large_string())
    rows = (pc.ascii_split_whitespace if _plain(texts) else pc.utf8_split_whitespace)(pc.utf8_trim_whitespace(filled))
    lengths_D = np.zeros(len(texts), dtype=np.int64)
    lengths_D[filled_D] = np.diff(rows.offsets.to_numpy())
    coded = rows.flatten().dictionary_encode()
    return lengths_D, coded.indices.to_numpy(), coded.dictionary


def _plain(texts: Sequence[str]) -> bool:
    """Whether Arrow's faster split for ASCII equals Python's: to Arrow, \\x1c to \\x1f are no white space."""
    if not all(map(str.isascii, texts)):
        return False
    whole = "".join(texts)
    return not any(mark in whole for mark in "\x1c\x1d\x1e\x1f")


def _idf(size: int, frequency_V: Ints) -> Floats:
    """Inverse text frequencies [V]; negative ones become EPSILON times the mean over the vocabulary."""
    idf_V = _idf_table(size)[frequency_V]
    # A running sum adds in order; `np.sum` adds pairwise and ends some units in the last place away.
    mean = np.add.accumulate(idf_V)[-1] / len(idf_V)
    floored: Floats = np.where(idf_V < 0, EPSILON * mean, idf_V)
    return floored


@lru_cache(maxsize=512)
def _idf_table(size: int) -> Floats:
    """idf by text frequency 0..size, by `math.log` as in the library (numpy's log may differ in the last bit)."""
    return np.array([math.log(size - n + 0.5) - math.log(n + 0.5) for n in range(size + 1)])


class IndexCache:
    """The indexes of recently used profiles, by their texts. A repeated profile is recognised by its identity."""

    def __init__(self, max_tokens: int = CACHED_TOKENS) -> None:
        self.max_tokens = max_tokens
        self._indexes: OrderedDict[tuple[str, ...], Bm25Index] = OrderedDict()
        self._tokens = 0
        # The owner is kept, so that no other object can get its id.
        self._by_owner: OrderedDict[int, tuple[object, weakref.ref[Bm25Index]]] = OrderedDict()

    def of(self, owner: object, texts: Callable[[], Sequence[str]]) -> Bm25Index:
        """The index of `texts()`, which is called only if `owner`, an immutable object, is not in the cache."""
        entry = self._by_owner.get(id(owner))
        index = entry[1]() if entry is not None else None
        if index is None:
            index = self.get(texts())
            self._by_owner[id(owner)] = owner, weakref.ref(index)
            if len(self._by_owner) > CACHED_OWNERS:
                self._by_owner.popitem(last=False)
        return index

    def get(self, texts: Sequence[str]) -> Bm25Index:
        """The index of `texts`, from the cache or new."""
        key = tuple(texts)
        index = self._indexes.get(key)
        if index is not None:
            self._indexes.move_to_end(key)
            return index
        index = self._indexes[key] = Bm25Index(texts)
        self._tokens += index.n_tokens
        while self._tokens > self.max_tokens and len(self._indexes) > 1:
            self._tokens -= self._indexes.popitem(last=False)[1].n_tokens
        return index
