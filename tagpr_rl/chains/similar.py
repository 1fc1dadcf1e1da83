"""Finds near-duplicate chains: an exact set-similarity join over word shingles, in one deterministic pass."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Literal

_WORD = re.compile(r"\w+")


@dataclass(frozen=True, slots=True)
class SimilarRules:
    """When two thoughts count as near-duplicates."""

    scope: Literal["off", "record", "user", "all"] = "off"
    """Chains of one record, of one user or of the whole set are compared, if they have the same task and answer."""
    threshold: float = 0.9
    """Least Jaccard index of the sets of shingles, in (0, 1]."""
    shingle: int = 3
    """Words per shingle."""


def shingles(text: str, size: int) -> frozenset[tuple[str, ...]]:
    """The set of all `size` neighbouring words in lower case; a shorter text is one shingle."""
    words = _WORD.findall(text.lower())
    if len(words) <= size:
        return frozenset([tuple(words)])
    return frozenset(tuple(words[i : i + size]) for i in range(len(words) - size + 1))


def near_duplicates(texts: Sequence[str], groups: Sequence[Hashable], rules: SimilarRules) -> list[bool]:
    """For each text, whether it is a near-duplicate of an earlier text of its group that is none itself.

    Prefix filtering (Bayardo, Ma and Srikant 2007) makes this exact and fast: if shingles are sorted by rarity, two
    sets can only reach the threshold t if they share one of their first n - ceil(t n) + 1 shingles.
    """
    sets = [shingles(text, rules.shingle) for text in texts]
    frequency: Counter[tuple[str, ...]] = Counter(shingle for one in sets for shingle in one)
    index: dict[tuple[Hashable, tuple[str, ...]], list[int]] = {}
    result = []
    for i, (one, group) in enumerate(zip(sets, groups, strict=True)):
        order = sorted(one, key=lambda shingle: (frequency[shingle], shingle))
        prefix = order[: len(order) - _ceil(rules.threshold * len(order)) + 1]
        twin = _has_twin(one, prefix, group, sets, index, rules.threshold)
        result.append(twin)
        if not twin:
            for shingle in prefix:
                index.setdefault((group, shingle), []).append(i)
    return result


def _has_twin(
    one: frozenset[tuple[str, ...]],
    prefix: Sequence[tuple[str, ...]],
    group: Hashable,
    sets: Sequence[frozenset[tuple[str, ...]]],
    index: dict[tuple[Hashable, tuple[str, ...]], list[int]],
    threshold: float,
) -> bool:
    seen: set[int] = set()
    for shingle in prefix:
        for other in index.get((group, shingle), ()):
            if other not in seen:
                seen.add(other)
                if jaccard(one, sets[other]) >= threshold:
                    return True
    return False


def jaccard(a: frozenset[tuple[str, ...]], b: frozenset[tuple[str, ...]]) -> float:
    """|a and b| / |a or b|; 0 if a set is empty."""
    if min(len(a), len(b)) == 0:
        return 0.0
    common = len(a & b)
    return common / (len(a) + len(b) - common)


def _ceil(value: float) -> int:
    """Ceiling that takes 0.9 * 10 for 9 and not for 9.000000000000002: a shorter prefix must never lose a pair."""
    return math.ceil(value - 1e-9)
