"""Agreement of two labellings of the same steps: Cohen's kappa over all tags, and for each tag."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Agreement:
    """A comparison of two labelling passes, over the chains that both passes labelled validly."""

    chains: int
    whole: int
    """Number of chains with the same tag in both passes at every step."""
    steps: int
    same: int
    """Number of steps with the same tag in both passes."""
    kappa: float | None
    """Cohen's kappa in [-1, 1]; None if no step was labelled twice."""
    by_tag: Mapping[str, float | None]
    """Tag -> kappa of "this tag or another"; None for a tag that neither pass used."""
    confusion: Mapping[str, Mapping[str, int]]
    """Tag of the first pass -> tag of the second pass -> number of steps. Pairs that did not occur are left out."""


def compare(labellings: Iterable[tuple[Sequence[str], Sequence[str]]], tags: Sequence[str]) -> Agreement:
    """The comparison of chains, each given as (tags of the first pass, tags of the second pass)."""
    pairs: Counter[tuple[str, str]] = Counter()
    chains = whole = 0
    for first, second in labellings:
        chains += 1
        whole += list(first) == list(second)
        pairs.update(zip(first, second, strict=True))
    confusion: dict[str, dict[str, int]] = {}
    for (one, two), n in sorted(pairs.items()):
        confusion.setdefault(one, {})[two] = n
    return Agreement(
        chains,
        whole,
        pairs.total(),
        sum(n for (one, two), n in pairs.items() if one == two),
        _kappa(pairs) if pairs else None,
        {tag: _one_against_rest(pairs, tag) for tag in tags},
        confusion,
    )


def _one_against_rest(pairs: Mapping[tuple[str, str], int], tag: str) -> float | None:
    binary: Counter[tuple[str, str]] = Counter()
    for (one, two), n in pairs.items():
        binary[str(one == tag), str(two == tag)] += n
    return _kappa(binary) if set(binary) - {("False", "False")} else None


def _kappa(pairs: Counter[tuple[str, str]]) -> float:
    """(p_o - p_e) / (1 - p_e), with p_e from the tag shares of each labelling; 1.0 if both use one same tag only."""
    n = pairs.total()
    observed = sum(count for (one, two), count in pairs.items() if one == two)
    first: Counter[str] = Counter()
    second: Counter[str] = Counter()
    for (one, two), count in pairs.items():
        first[one] += count
        second[two] += count
    expected = sum(first[tag] * second[tag] for tag in first)  # n**2 times the share, so that it is an exact integer
    return 1.0 if expected == n * n else (observed * n - expected) / (n * n - expected)
