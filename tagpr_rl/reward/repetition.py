"""The repetition penalty: the share of a text's n-grams that occurred before."""

from __future__ import annotations

import re
from collections.abc import Sequence

from tagpr_rl.tags.words import RUN, Plain, plain_tokens

# A run of letters and digits is one token per 16 characters, so that a loop without spaces is seen too.
_TOKEN = re.compile(rf"\w{{1,{RUN}}}|[^\w\s]")


def repetition_penalty(text: str, n: int = 4) -> float:
    """Penalty in [-1, 0]: `distinct n-grams / n-grams - 1`; 0 if and only if no n-gram occurs twice.

    Tokens are lower-case words (cut every 16 characters) and single other marks. A text shorter than n
    tokens has no n-gram and no penalty. A text of m n-grams that are all the same scores `1/m - 1`, so the
    penalty tends to -1 as a loop goes on. Linear in the text.

    Raises:
        ValueError: n below 1.
    """
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}")
    plain = plain_tokens([text.replace("\n", " ")])
    return _penalty(_TOKEN.findall(text.lower()) if plain is None else plain[0][0], n)


def steps_penalty(texts: Sequence[str], plain: Plain | None, n: int = 4) -> float:
    """`repetition_penalty` of the texts joined by line breaks, given their `plain_tokens`."""
    if plain is None:
        return repetition_penalty("\n".join(texts), n)
    return _penalty([token for tokens in plain[0] for token in tokens], n)


def step_penalties(texts: Sequence[str], plain: Plain | None, n: int = 4) -> list[float]:
    """Each step's own share of `steps_penalty`: minus the share of its n-grams that occurred before, in [-1, 0].

    An n-gram belongs to the step of its last token. It occurred before if an earlier step, or this one, already had
    it. A step without n-grams has 0. Weighted by n-grams, the steps' values average to the thought's.
    """
    tokens = [_TOKEN.findall(text.lower()) for text in texts] if plain is None else plain[0]
    seen: set[tuple[str, ...]] = set()
    before: list[str] = []
    penalties = []
    for words in tokens:
        joined = [*before[-(n - 1) :], *words] if n > 1 else list(words)
        grams = list(zip(*[joined[shift:] for shift in range(n)], strict=False))
        repeated = 0
        for gram in grams:
            repeated += gram in seen
            seen.add(gram)
        penalties.append(-repeated / len(grams) if grams else 0.0)
        before = joined
    return penalties


def _penalty(tokens: Sequence[str], n: int) -> float:
    total = len(tokens) - n + 1
    if total <= 0:
        return 0.0
    distinct = len(set(zip(*[tokens[shift:] for shift in range(n)], strict=False)))  # ends with the shortest
    return (distinct - total) / total
