"""The rubric: one response -> every reward component and their weighted sum."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields

from tagpr_rl.reward.repetition import repetition_penalty, steps_penalty
from tagpr_rl.reward.task import check_gold, task_reward
from tagpr_rl.tags.constraints import tag_score
from tagpr_rl.tags.grammar import parse
from tagpr_rl.tags.schema import TagSchema
from tagpr_rl.tags.words import plain_tokens
from tagpr_rl.types import RewardBreakdown

REWARD_KEYS = tuple(field.name for field in fields(RewardBreakdown))
"""Keys of `breakdown_row`, the same for every response."""
PRMU_STATUSES = ("scored", "off", "masked")


@dataclass(frozen=True, slots=True)
class Weights:
    """Weights of the composite reward; finite and not negative (ValueError otherwise). Defaults are ours.

    The guided stage uses all three; the exploratory stage is `alpha = beta = 0`.
    """

    alpha: float = 0.2
    """Weight of `tag`."""
    beta: float = 0.2
    """Weight of `prmu`."""
    gamma: float = 0.1
    """Weight of `repetition`, which is negative itself."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{field.name} must be finite and not negative, got {value!r}")


@dataclass(frozen=True, slots=True)
class Rubric:
    """Scores responses; holds no state."""

    schema: TagSchema
    weights: Weights
    prefilled: bool = False
    """See `tags.grammar.parse`."""

    def score(
        self, response: str, *, task: str, gold: str, prmu: float | None = None, prmu_status: str = "off"
    ) -> RewardBreakdown:
        """Score one response: `total = task * format + alpha * tag + beta * prmu + gamma * repetition`.

        `task` is the value of the *parsed* answer. A malformed response has no parsed answer, so its `task`
        and `tag` are 0, as is `format`; its `repetition` is that of the raw response (else: of the step
        texts, one a line). `prmu` is the caller's; with status "off" or "masked" it is None, and the
        component is 0 and the status says why.

        Args:
            response: the decoded response without special tokens.
            task: LaMP task name.
            gold: gold answer.
            prmu: PRMU's normalised score in [0, 1] if and only if `prmu_status` is "scored".
            prmu_status: "scored", "off" or "masked".

        Raises:
            ValueError: `prmu` and its status disagree, or `prmu` is not in [0, 1] (NaN included).
            TagprError: unknown task or unusable gold, also when the response is malformed.
        """
        check_gold(task, gold)  # bad data is reported whatever the policy wrote
        prmu_value = _checked_prmu(prmu, prmu_status)
        parsed = parse(response, self.schema, prefilled=self.prefilled)
        trace = parsed.trace
        if trace is None:
            task_value = format_value = tag_value = 0.0
            repetition = repetition_penalty(response)
        else:
            task_value, format_value = task_reward(task, trace.answer, gold), 1.0
            texts = [step.text for step in trace.steps]
            plain = plain_tokens(texts)
            tag_value = tag_score(trace, self.schema, plain)
            repetition = steps_penalty(texts, plain)
        weights = self.weights
        return RewardBreakdown(
            total=task_value * format_value
            + weights.alpha * tag_value
            + weights.beta * prmu_value
            + weights.gamma * repetition,
            task=task_value,
            format=format_value,
            tag=tag_value,
            prmu=prmu_value,
            repetition=repetition,
            parse_status=parsed.status.value,
            prmu_status=prmu_status,
        )


def _checked_prmu(prmu: float | None, status: str) -> float:
    if status not in PRMU_STATUSES:
        raise ValueError(f"prmu_status must be one of {', '.join(PRMU_STATUSES)}, got {status!r}")
    if (prmu is not None) != (status == "scored"):
        raise ValueError(f"prmu {prmu!r} with prmu_status {status!r}: a score if and only if 'scored'")
    if prmu is None:
        return 0.0
    if not 0.0 <= prmu <= 1.0:  # false for NaN
        raise ValueError(f"prmu must be in [0, 1], got {prmu!r}")
    return float(prmu)


def breakdown_row(breakdown: RewardBreakdown) -> dict[str, float | str]:
    """The breakdown as a flat row with exactly the keys `REWARD_KEYS`, in that order."""
    return asdict(breakdown)
