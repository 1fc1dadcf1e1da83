"""Which chains to keep: the rules and the closed list of reasons to reject."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from tagpr_rl.chains.balance import BalanceRules
from tagpr_rl.chains.client.chat import ReplyStatus
from tagpr_rl.chains.evidence import EvidenceRules
from tagpr_rl.chains.segment import MAX_STEPS, MIN_STEPS
from tagpr_rl.chains.similar import SimilarRules
from tagpr_rl.data.tasks import TASKS
from tagpr_rl.reward.task import rating_of, task_reward
from tagpr_rl.types import LampRecord, TagprError


class Rejection(StrEnum):
    """Why a chain was not kept. The first reason that applies, in this order."""

    NOT_ASKED = "NOT_ASKED"  # the budget was spent before the teacher was asked
    TEACHER_FAILED = "TEACHER_FAILED"  # every retry failed
    TEACHER_REFUSED = "TEACHER_REFUSED"  # the endpoint rejects the request
    TEACHER_EMPTY = "TEACHER_EMPTY"
    TEACHER_CUT = "TEACHER_CUT"  # stopped by the token limit
    NO_ANSWER = "NO_ANSWER"  # no thought, or no `Answer:` line
    TOO_FEW_STEPS = "TOO_FEW_STEPS"
    REASSEMBLY = "REASSEMBLY"  # the steps joined are not the teacher's thought, byte by byte
    NOT_LABELLED = "NOT_LABELLED"  # the budget was spent before the labeller was asked
    LABELLER_FAILED = "LABELLER_FAILED"  # no whole reply: failed, refused, empty or cut
    BAD_LABELS = "BAD_LABELS"  # not JSON, an index missing or twice, a tag not in the schema
    LABELS_DISAGREE = "LABELS_DISAGREE"  # two labellings differ in more steps than allowed
    UNPARSABLE = "UNPARSABLE"  # the rendered response does not parse to the same trace
    LOW_TAG_SCORE = "LOW_TAG_SCORE"
    NO_GOLD = "NO_GOLD"
    WRONG_ANSWER = "WRONG_ANSWER"
    NOT_BETTER = "NOT_BETTER"  # generation: no better than the same teacher without the profile
    NO_BASELINE = "NO_BASELINE"  # generation: the answer without the profile did not come, so nothing to compare with
    NO_EVIDENCE = "NO_EVIDENCE"  # the chain does not use this user's profile (evidence.py)
    DUPLICATE = "DUPLICATE"  # same record and same response
    NEAR_DUPLICATE = "NEAR_DUPLICATE"  # nearly the thought of an earlier chain with the same answer (similar.py)
    NOT_BALANCED = "NOT_BALANCED"  # its task, user or tag sequence has its share already (balance.py)


ANSWER_REASONS = (Rejection.WRONG_ANSWER, Rejection.NOT_BETTER)
"""Well-formed chains whose answer is at fault; `wrong_fraction` may let some of them in."""


NOT_OK: Mapping[ReplyStatus, Rejection] = {
    ReplyStatus.BUDGET: Rejection.NOT_ASKED,
    ReplyStatus.FAILED: Rejection.TEACHER_FAILED,
    ReplyStatus.REFUSED: Rejection.TEACHER_REFUSED,
    ReplyStatus.EMPTY: Rejection.TEACHER_EMPTY,
    ReplyStatus.LENGTH: Rejection.TEACHER_CUT,
}
"""What a teacher's reply without a usable text is called."""


@dataclass(frozen=True, slots=True)
class AnswerRules:
    """When an answer is right."""

    rating_tolerance: float = 0.0
    """LaMP_3: largest |answer - gold| that counts as right."""
    generation_gain: float = 0.05
    """Generation: least gain of the task reward over the answer without the profile."""
    generation_good: float = 0.9
    """Generation: from this task reward on, a chain is kept whatever the answer without the profile scores."""
    generation_least: float = 0.0
    """Generation: least task reward of a kept chain, [0, 1]."""


@dataclass(frozen=True, slots=True)
class KeepRules:
    """The thresholds."""

    answers: AnswerRules = field(default_factory=AnswerRules)
    tasks: Mapping[str, AnswerRules] = field(default_factory=dict)
    """Task -> its own rules instead of `answers`."""
    min_steps: int = MIN_STEPS
    max_steps: int = MAX_STEPS
    """Longer thoughts have neighbouring lines joined."""
    min_tag_score: float = 1.0
    """Least `tag_score` of the labelled chain, [0, 1]."""
    wrong_fraction: float = 0.0
    """Share of the kept set, [0, 1), that may have a wrong answer (never more than there are). Off by default."""
    label_twice: bool = False
    """Label each chain twice and keep those on which the labellings agree."""
    min_agreement: float = 1.0
    """Least share of a chain's steps that got the same tag twice, (0, 1]; below it the chain is dropped. Where a kept
    chain's labellings differ, the first pass's tag stands."""
    evidence: EvidenceRules = field(default_factory=EvidenceRules)
    near_duplicates: SimilarRules = field(default_factory=SimilarRules)
    balance: BalanceRules = field(default_factory=BalanceRules)

    def __post_init__(self) -> None:
        """Refuse shares outside their range (TagprError)."""
        if not 0 <= self.wrong_fraction < 1:
            raise TagprError(f"keep.wrong_fraction is {self.wrong_fraction!r}: use [0, 1)")
        if not 0 <= self.min_tag_score <= 1:
            raise TagprError(f"keep.min_tag_score is {self.min_tag_score!r}: use [0, 1]")
        if not 0 < self.min_agreement <= 1:
            raise TagprError(f"keep.min_agreement is {self.min_agreement!r}: use (0, 1]")
        if not 1 <= self.min_steps <= self.max_steps:
            raise TagprError(f"keep.min_steps is {self.min_steps} and max_steps {self.max_steps}: use 1 <= min <= max")


WORLD_ANSWERS = AnswerRules(generation_least=1.0, generation_good=1.0)
"""The embedded world's headlines are right or wrong, so only the gold itself is kept."""


def world_keep_rules(wrong_fraction: float = 0.0) -> KeepRules:
    """The rules for the embedded world."""
    return KeepRules(answers=WORLD_ANSWERS, wrong_fraction=wrong_fraction)


def judge_answer(
    rules: KeepRules, record: LampRecord, answer: str, without_profile: str | Rejection | None
) -> Rejection | None:
    """None if the answer is right, else the reason against it.

    Right is: equal to the gold (classification), within tolerance (rating), clearly better than the same teacher's
    answer without the profile (generation). `without_profile` is that answer; None or "" counts as a score of 0, a
    Rejection says that the teacher gave none.
    """
    if record.gold is None:
        return Rejection.NO_GOLD
    own = rules.tasks.get(record.task, rules.answers)
    kind = TASKS[record.task].kind
    reward = task_reward(record.task, answer, record.gold)
    if kind == "rating":
        score, wanted = rating_of(answer), rating_of(record.gold)
        right = score is not None and wanted is not None and abs(score - wanted) <= own.rating_tolerance
        return None if right else Rejection.WRONG_ANSWER
    if kind == "classification":
        return None if reward == 1.0 else Rejection.WRONG_ANSWER
    if reward < own.generation_least:
        return Rejection.WRONG_ANSWER
    if reward >= own.generation_good:
        return None
    if isinstance(without_profile, Rejection):
        return Rejection.NO_BASELINE
    baseline = task_reward(record.task, without_profile, record.gold) if without_profile else 0.0
    return None if reward - baseline >= own.generation_gain else Rejection.NOT_BETTER
