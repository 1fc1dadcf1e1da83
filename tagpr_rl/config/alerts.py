"""What a GRPO stage logs beside its figures, and when its figures raise an alert. All limits are ours."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from tagpr_rl.config.base import Closed, Count, Fraction, NonNegative, Positive

AlertKind = Literal["prmu_up_task_down", "entropy_collapse", "malformed", "masked", "probability_gap", "flat_groups"]


class StepLog(Closed):
    """How much of a step's responses is kept, and how often some of them go to W&B."""

    table_every: Annotated[int, Field(ge=0)] = 5
    """Steps between W&B tables of sample responses (the first step has one); 0 = no tables."""
    table_rows: Count = 2
    """Responses of each kind (best, worst, malformed, random) in such a table."""
    keep_responses: Count | None = None
    """Responses of a step in `rollouts/`, as whole groups drawn at random, at least one group (None = all)."""


class AlertLimits(Closed):
    """Limits of a stage's alerts (monitor/alerts.py); null switches one off."""

    window: Count = 5
    """Steps that a mean is taken over."""
    prmu_rise: NonNegative | None = 0.02
    task_fall: NonNegative = 0.05
    """prmu_up_task_down: PRMU's mean score rose and the task score fell by more than these, last window against the one
    before."""
    entropy_fraction: Fraction | None = 0.2
    """entropy_collapse: the last window's entropy is below this share of the first window's."""
    malformed: Fraction | None = 0.3
    """malformed: more than this share of the last window's responses does not parse."""
    masked: Fraction | None = 0.02
    """masked: PRMU left more than this share of a step's responses without a score (time-outs)."""
    probability_gap: Positive | None = 0.5
    """probability_gap: a token's probability in the rollout and in the actor differ by more than this."""
    flat_groups: Fraction | None = 1.0
    """flat_groups: at least this share of the last window's groups has equal rewards, so nothing is learned."""
    abort_on: tuple[AlertKind, ...] = ()
    """Alerts that stop the stage. `resume` goes on past one that was raised."""
