"""Exact score ceilings of the embedded world: the best any answerer can do, given what it may read.

For one question with answer distribution p, the ceiling is max over texts t of sum_y p(y) * reward(t, y), with
LaMP's rewards: exact match, 1 - |t-y| / max(|1-y|, |5-y|), or the mean of ROUGE-1 and ROUGE-L F. The first two
are maxima over a short list. `best_headline` computes the maximum over *all* texts for headlines.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from graphlib import TopologicalSorter


@dataclass(frozen=True, slots=True)
class Best:
    """An answer of highest expected reward, and that expectation in [0, 1]."""

    answer: str
    score: float


def best_label(answers: Mapping[str, float]) -> Best:
    """Exact match: the most probable answer (the first one on a tie)."""
    answer = max(answers, key=lambda text: answers[text])
    return Best(answer, answers[answer])


def best_rating(answers: Mapping[str, float]) -> Best:
    """Ratings 1 to 5: the rating of highest expected reward; a rating no user gives may be the best one."""

    def expected(rating: int) -> float:
        return sum(p * (1 - abs(rating - int(y)) / max(abs(1 - int(y)), abs(5 - int(y)))) for y, p in answers.items())

    rating = max(range(1, 6), key=expected)
    return Best(str(rating), expected(rating))


def best_headline(answers: Mapping[str, float]) -> Best:
    """Mean of ROUGE-1 and ROUGE-L F: the best text of all, by an argument that needs no enumeration.

    Golds have distinct words. A text of n words has ROUGE-1 F 2*overlap/(n + len(y)) with y, which adds up word
    by word, so for each n the best expected ROUGE-1 is the sum of the n largest word gains
    g(w) = sum_{y holds w} p(y) * 2/(n + len(y)), and ROUGE-L never exceeds ROUGE-1. If one order of the words
    agrees with every gold's order, ROUGE-L reaches ROUGE-1 and the bound is the maximum. Golds without such an
    order raise ValueError: the argument does not hold for them.
    """
    golds = [(gold.lower().split(), p) for gold, p in answers.items()]
    for words, _ in golds:
        if len(set(words)) != len(words):
            raise ValueError(f"a headline repeats a word: {' '.join(words)!r}")
    graph: dict[str, set[str]] = {}
    for words, _ in golds:
        for i, word in enumerate(words):
            graph.setdefault(word, set()).update(words[i - 1 : i] if i else ())
    order = list(TopologicalSorter(graph).static_order())  # CycleError is a ValueError
    best = Best("", 0.0)
    for n in range(1, len(order) + 1):
        gain = {w: sum(p * 2 / (n + len(words)) for words, p in golds if w in words) for w in order}
        best_words = set(sorted(order, key=lambda w: -gain[w])[:n])
        score = sum(gain[w] for w in best_words)
        if score > best.score + 1e-12:
            best = Best(" ".join(w for w in order if w in best_words), score)
    return best


_BEST = {"LaMP_1": best_label, "LaMP_2": best_label, "LaMP_3": best_rating, "LaMP_4": best_headline}


def best_answer(task: str, answers: Mapping[str, float]) -> Best:
    """The answer of highest expected task reward under an answer distribution."""
    return _BEST[task](answers)


def mean(values: Sequence[float]) -> float:
    """Arithmetic mean; an empty sequence is an error (ZeroDivisionError)."""
    return sum(values) / len(values)
