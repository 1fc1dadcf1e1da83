"""The task reward: how right a parsed answer is, per LaMP task, in [0, 1]."""

from __future__ import annotations

from rapidfuzz.distance import LCSseq

from tagpr_rl.types import TagprError

EXACT_TASKS = frozenset({"LaMP_1", "LaMP_2", "LaMP_2N"})
RATING_TASKS = frozenset({"LaMP_3"})
TEXT_TASKS = frozenset({"LaMP_4", "LaMP_5", "LaMP_6", "LaMP_7"})
_KNOWN = EXACT_TASKS | RATING_TASKS | TEXT_TASKS
TASK_NAMES = tuple(sorted(_KNOWN))

MAX_ROUGE_TOKENS = 512
"""ROUGE-L is quadratic; a reward reads no more than this many ROUGE tokens of each side."""
MAX_RATING_CHARS = 64
"""A longer "number" is no rating."""
MAX_RATING = 1e6
"""Nor is a larger one, whose square could be infinite. LaMP's metrics set no limit."""

_ROUGE_LETTERS = b"abcdefghijklmnopqrstuvwxyz0123456789"
_ROUGE_BYTES = bytes(code if code in _ROUGE_LETTERS else 0x20 for code in range(256))


def task_reward(task: str, answer: str, gold: str) -> float:
    """Reward of one parsed answer, in [0, 1].

    LaMP_1, 2, 2N: 1 if equal after strip, case-sensitive, as the official metric compares. LaMP_3:
    `1 - |y_hat - y| / max(|1 - y|, |5 - y|)`, clipped; 0 for what is no finite number. LaMP_4 to 7: mean of
    the F values of ROUGE-1 and ROUGE-L (`rouge`).

    Raises:
        TagprError: an unknown task, or a LaMP_3 gold that is no finite number.
    """
    check_gold(task, gold)
    if task in EXACT_TASKS:
        return float(answer.strip() == gold.strip())
    if task in RATING_TASKS:
        return _rating_reward(answer, gold)
    return sum(rouge(answer, gold)) / 2


def check_gold(task: str, gold: str) -> None:
    """Raise TagprError for an unknown task or a gold that the task cannot use, as `task_reward` would."""
    if task not in _KNOWN:
        raise TagprError(f"unknown task {task!r}; known: {', '.join(TASK_NAMES)}")
    if task in RATING_TASKS:
        _gold_rating(gold)


def _gold_rating(gold: str) -> float:
    value = rating_of(gold)
    if value is None:
        raise TagprError(f"LaMP_3 gold {gold[:MAX_RATING_CHARS]!r} is no number; expected 1, 2, 3, 4 or 5")
    return value


def _rating_reward(answer: str, gold: str) -> float:
    y = _gold_rating(gold)
    y_hat = rating_of(answer)
    if y_hat is None:
        return 0.0
    return min(1.0, max(0.0, 1.0 - abs(y_hat - y) / max(abs(1.0 - y), abs(5.0 - y))))


def rating_of(text: str) -> float | None:
    """What Python's `float` reads, as the official metric does, within MAX_RATING; None for what is no rating."""
    stripped = text.strip()
    if len(stripped) > MAX_RATING_CHARS:
        return None
    try:
        value = float(stripped)
    except ValueError:
        return None
    return value if abs(value) <= MAX_RATING else None  # False for NaN


def rouge(pred: str, gold: str, *, max_tokens: int | None = MAX_ROUGE_TOKENS) -> tuple[float, float]:
    """F of ROUGE-1 and ROUGE-L, each in [0, 1]: the values of `rouge_score` without stemmer, computed faster.

    Each side is cut after `max_tokens` ROUGE tokens (lower-case runs of a-z and 0-9), so that a runaway
    answer costs no more than a long one and gains nothing by its tail. `None` cuts nothing: exact, for
    official numbers. Text without such tokens scores 0.
    """
    gold_tokens, tokens = rouge_tokens(gold)[:max_tokens], rouge_tokens(pred)[:max_tokens]
    if not gold_tokens or not tokens:
        return 0.0, 0.0
    left: dict[bytes, int] = {}
    for token in gold_tokens:
        left[token] = left.get(token, 0) + 1
    shared = [token for token in tokens if token in left]  # no other token can be part of a common subsequence
    hits = 0
    for token in shared:
        if left[token]:
            left[token] -= 1
            hits += 1
    longest = LCSseq.similarity(shared, gold_tokens) if hits > 1 else hits
    return _f(hits, len(tokens), len(gold_tokens)), _f(longest, len(tokens), len(gold_tokens))


def rouge_tokens(text: str) -> list[bytes]:
    """`rouge_score.tokenize.tokenize(text, None)` as bytes: lower-case runs of a-z and 0-9."""
    return text.lower().encode("ascii", "replace").translate(_ROUGE_BYTES).split()


def _f(hits: int, n_pred: int, n_gold: int) -> float:
    """The F value, by the operations of `rouge_score.scoring.fmeasure` in their order."""
    precision, recall = hits / n_pred, hits / n_gold
    return 2 * precision * recall / (precision + recall) if hits else 0.0
