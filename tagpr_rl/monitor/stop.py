"""When a GRPO stage ends before its last step: a plateau of a metric, or a budget of seconds or tokens.

Decided from the rows of the stage's metrics.jsonl alone, so the trainer, the stage and a resumed run agree.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tagpr_rl.config.rules import PlateauBlock, StopBlock
from tagpr_rl.types import TagprError

SECONDS, TOKENS = "timing_s/step", "perf/total_num_tokens"
"""Keys of a metrics row: seconds of the step, and prompt and response tokens of its responses."""
VALIDATION = "validation/"
"""Keys that the rows of validated steps alone have."""


@dataclass(frozen=True, slots=True)
class Stop:
    """A stage's early end."""

    step: int
    rule: str
    """plateau, max_seconds or max_tokens"""
    reason: str
    """One line for the manifest and the report."""

    def note(self, steps: int) -> str:
        """The line as the manifest has it; `steps` is what the recipe allows."""
        return f"stopped at step {self.step} of {steps}: {self.reason}"


def stop_after(rows: Sequence[Mapping[str, Any]], rule: StopBlock | None, steps: int) -> Stop | None:
    """Whether the stage ends after the last of `rows` (its steps so far, in order); None = it goes on.

    None as well if that row is the last step of all. TagprError if a row lacks what the rule reads.
    """
    if rule is None or not rows or int(rows[-1]["step"]) >= steps:
        return None
    step = int(rows[-1]["step"])
    for name, key, limit, unit in (
        ("max_seconds", SECONDS, rule.max_seconds, "s of training steps"),
        ("max_tokens", TOKENS, rule.max_tokens, "tokens"),
    ):
        if limit is not None:
            used = sum(_value(row, key, name) for row in rows)
            if used >= limit:
                return Stop(step, name, f"{name}: {used:,.0f} {unit}, the budget is {limit:,.0f}")
    if rule.plateau is not None:
        metric = rule.plateau.metric
        given = [row for row in rows if metric in row] if metric.startswith(VALIDATION) else rows
        reason = plateau([_value(row, metric, "plateau.metric") for row in given], rule.plateau)
        if reason:
            return Stop(step, "plateau", reason)
    return None


def plateau(values: Sequence[float], rule: PlateauBlock) -> str:
    """Why the metric counts as flat after the last of `values` (one a step), or "" while it still may rise."""
    sign = 1.0 if rule.better == "higher" else -1.0
    best, since = float("-inf"), 0
    for end in range(rule.window, len(values) + 1):
        mean = sign * sum(values[end - rule.window : end]) / rule.window
        if best == float("-inf") or mean > best + rule.min_gain:
            best, since = mean, 0
        else:
            since += 1
    if since < rule.patience:
        return ""
    return (
        f"plateau: the {rule.window}-step mean of {rule.metric} has not got better by more than {rule.min_gain:g} "
        f"for {since} steps; the best was {sign * best:.4f}"
    )


def _value(row: Mapping[str, Any], key: str, rule: str) -> float:
    if key not in row:
        known = ", ".join(sorted(str(name) for name in row if str(name).startswith("reward/"))) or "none of reward/"
        raise TagprError(
            f"stop.{rule}: step {row['step']} has no metric '{key}'; name a key of the stage's metrics.jsonl ({known})"
        )
    return float(row[key])
