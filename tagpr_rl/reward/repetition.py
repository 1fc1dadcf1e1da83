"""The repetition penalty: the share of a text's n-grams that have occurred before (formula ours)."""

from __future__ import annotations

import re

# A run of letters and digits is one token per 16 characters, so that a loop without spaces is seen too.
_RUN = 16
_TOKEN = re.compile(r"\w{1,16}|[^\w\s]")

# The same tokens for ASCII text without the regular expression, which alone costs more than all else in a reward.
_WORD_BYTES = bytes(code for code in range(128) if chr(code).isalnum() or chr(code) == "_")
_SPACE_BYTES = bytes(code for code in range(128) if chr(code).isspace())
_WORD_MASK = bytes(0x77 if code in _WORD_BYTES else 0x20 for code in range(256))
_WORDS_AND_SPACES = _WORD_BYTES + _SPACE_BYTES
_LONG_RUN = b"w" * (_RUN + 1)


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
    tokens = _tokens(text)
    total = len(tokens) - n + 1
    if total <= 0:
        return 0.0
    distinct = len(set(zip(*[tokens[shift:] for shift in range(n)], strict=False)))  # ends with the shortest
    return (distinct - total) / total


def _tokens(text: str) -> list[str]:
    """`_TOKEN.findall(text.lower())`."""
    lowered = text.lower()
    if not lowered.isascii():
        return _TOKEN.findall(lowered)
    raw = lowered.encode("ascii")
    if _LONG_RUN in raw.translate(_WORD_MASK):
        return _TOKEN.findall(lowered)
    for mark in set(raw.translate(None, _WORDS_AND_SPACES).decode("ascii")):
        lowered = lowered.replace(mark, f" {mark} ")
    return lowered.split()
