"""A GRPO stage's score on users who train nothing, and its best step."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

SCORE = "validation/score"
"""A key of a metrics row: the mean task score over tasks, in [0, 1]."""


@dataclass(frozen=True, slots=True)
class Validated:
    """One validated step."""

    step: int
    score: float


def best(rows: Sequence[Mapping[str, Any]], saved: Collection[int] | None = None) -> Validated | None:
    """The validated step with the highest score, the first of equals; of those in `saved`, if given. None = no step."""
    steps = [Validated(int(row["step"]), float(row[SCORE])) for row in rows if SCORE in row]
    steps = [one for one in steps if saved is None or one.step in saved]
    return max(steps, key=lambda one: (one.score, -one.step), default=None)
