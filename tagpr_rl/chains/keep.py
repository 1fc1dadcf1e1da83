"""Which chains to keep: the rules and the closed list of reasons to reject (METHOD: known idea, our thresholds)."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from tagpr_rl.data.tasks import TASKS
from tagpr_rl.reward.task import task_reward
from tagpr_rl.types import LampRecord, TagprError


class Rejection(StrEnum):
    """Why a chain was not kept. The first reason that applies, in this order."""

    NO_ANSWER = "NO_ANSWER"  # no thought, or no `Answer:` line
    TOO_FEW_STEPS = "TOO_FEW_STEPS"
    BAD_LABELS = "BAD_LABELS"  # not JSON, an index missing or twice, a tag not in the schema
    LABELS_DISAGREE = "LABELS_DISAGREE"  # two labellings differ
    UNPARSABLE = "UNPARSABLE"  # the rendered response does not parse to the same trace
    LOW_TAG_SCORE = "LOW_TAG_SCORE"
    NO_GOLD = "NO_GOLD"
    WRONG_ANSWER = "WRONG_ANSWER"
    NOT_BETTER = "NOT_BETTER"  # generation: no better than the same teacher without the profile
    DUPLICATE = "DUPLICATE"  # same record and same response


ANSWER_REASONS = (Rejection.WRONG_ANSWER, Rejection.NOT_BETTER)
"""Well-formed chains whose answer is at fault; `wrong_fraction` may let some of them in."""


@dataclass(frozen=True, slots=True)
class KeepRules:
    """Thresholds (all ours)."""

    min_steps: int = 3
    min_tag_score: float = 1.0
    """Least `tag_score` of the labelled chain, [0, 1]."""
    rating_tolerance: float = 0.0
    """LaMP_3: largest |answer - gold| that counts as right."""
    generation_gain: float = 0.05
    """Generation: least gain of the task reward over the answer without the profile."""
    generation_good: float = 0.9
    """Generation: from this task reward on, a chain is kept whatever the answer without the profile scores."""
    generation_least: float = 0.0
    """Generation: least task reward of a kept chain, [0, 1]."""
    wrong_fraction: float = 0.0
    """Share of the kept set, [0, 1), that may have a wrong answer (never more than there are). Off by default."""
    label_twice: bool = False
    """Label each chain twice and keep those on which the labellings agree."""

    def __post_init__(self) -> None:
        """Refuse shares outside their range (TagprError)."""
        if not 0 <= self.wrong_fraction < 1:
            raise TagprError(f"keep.wrong_fraction is {self.wrong_fraction!r}: use [0, 1)")
        if not 0 <= self.min_tag_score <= 1:
            raise TagprError(f"keep.min_tag_score is {self.min_tag_score!r}: use [0, 1]")


def world_keep_rules(wrong_fraction: float = 0.0) -> KeepRules:
    """The rules for the embedded world: its headlines are right or wrong, so only the gold itself is kept."""
    return KeepRules(generation_least=1.0, generation_good=1.0, wrong_fraction=wrong_fraction)


def judge_answer(rules: KeepRules, record: LampRecord, answer: str, without_profile: str | None) -> Rejection | None:
    """None when the answer is right: equal (classification), within tolerance (rating), clearly better than the
    same teacher's answer without the profile (generation; `without_profile` None = scores 0)."""
    if record.gold is None:
        return Rejection.NO_GOLD
    kind = TASKS[record.task].kind
    reward = task_reward(record.task, answer, record.gold)
    if kind == "rating":
        try:
            right = abs(float(answer) - float(record.gold)) <= rules.rating_tolerance
        except ValueError:
            right = False
        return None if right else Rejection.WRONG_ANSWER
    if kind == "classification":
        return None if reward == 1.0 else Rejection.WRONG_ANSWER
    if reward >= rules.generation_good:
        return None
    if reward < rules.generation_least:
        return Rejection.WRONG_ANSWER
    baseline = task_reward(record.task, without_profile, record.gold) if without_profile else 0.0
    return None if reward - baseline >= rules.generation_gain else Rejection.NOT_BETTER
