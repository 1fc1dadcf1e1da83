"""A GRPO stage's score on users who train nothing: its metrics, and the best step."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tagpr_rl.eval.lamp_eval import EvalResult

SCORE, SECONDS = "validation/score", "timing_s/testing"
"""Keys of a metrics row: the mean task score over tasks, in [0, 1], and verl's name for the seconds that it cost."""


@dataclass(frozen=True, slots=True)
class Validated:
    """One validated step."""

    step: int
    score: float


def validation_metrics(result: EvalResult) -> dict[str, float]:
    """The row's keys: score with its 95 % interval over users, each task's official metrics, the well-formed share."""
    return {
        SCORE: result.score,
        "validation/low": result.score_low,
        "validation/high": result.score_high,
        "validation/well_formed": result.strict_rate,
        **{f"validation/{metric.task}/{metric.name}": metric.value for metric in result.metrics},
    }


def best(rows: Sequence[Mapping[str, Any]], saved: Collection[int] | None = None) -> Validated | None:
    """The validated step with the highest score, the first of equals; of those in `saved`, if given. None = no step."""
    steps = [Validated(int(row["step"]), float(row[SCORE])) for row in rows if SCORE in row]
    steps = [one for one in steps if saved is None or one.step in saved]
    return max(steps, key=lambda one: (one.score, -one.step), default=None)
