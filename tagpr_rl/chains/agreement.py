"""Agreement of two labellings of the same steps: Cohen's kappa, over all tags and for each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Agreement:
    """Two labelling passes compared. All figures are over the steps of chains that both passes labelled validly."""

    chains: int
    whole: int
    """Chains with the same tag in both passes at every step."""
    steps: int
    same: int
    """Steps with the same tag in both passes."""
    kappa: float | None
    """None when no step was labelled twice."""
    by_tag: Mapping[str, float | None]
    """Tag -> kappa of "this tag or another"; None for a tag that neither pass used."""
    confusion: Mapping[str, Mapping[str, int]]
    """First pass's tag -> second pass's tag -> steps; pairs that did not occur are left out."""


def compare(labellings: Iterable[tuple[Sequence[str], Sequence[str]]], tags: Sequence[str]) -> Agreement:
    """Figures over chains given as (first pass's tags, second pass's tags)."""
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


def cohen_kappa(first: Sequence[str], second: Sequence[str]) -> float:
    """Cohen's kappa of two labellings of the same steps, in [-1, 1]; 1.0 when both use one same tag throughout.

    (p_o - p_e) / (1 - p_e), with p_e from the two labellings' own tag shares. ValueError when empty or unequal.
    """
    if not first or len(first) != len(second):
        raise ValueError(f"kappa needs two labellings of the same steps, got {len(first)} and {len(second)}")
    return _kappa(Counter(zip(first, second, strict=True)))


def _one_against_rest(pairs: Mapping[tuple[str, str], int], tag: str) -> float | None:
    binary: Counter[tuple[str, str]] = Counter()
    for (one, two), n in pairs.items():
        binary[str(one == tag), str(two == tag)] += n
    return _kappa(binary) if set(binary) - {("False", "False")} else None


def _kappa(pairs: Counter[tuple[str, str]]) -> float:
    n = pairs.total()
    observed = sum(count for (one, two), count in pairs.items() if one == two)
    first: Counter[str] = Counter()
    second: Counter[str] = Counter()
    for (one, two), count in pairs.items():
        first[one] += count
        second[two] += count
    expected = sum(first[tag] * second[tag] for tag in first)  # in whole numbers: exact, n**2 times the share
    return 1.0 if expected == n * n else (observed * n - expected) / (n * n - expected)
