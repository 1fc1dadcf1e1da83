"""The `keep` block of a chains stage: which chains stay, with every threshold. All defaults are ours."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from tagpr_rl.config.base import Closed, Count, Fraction, NonNegative

Share = Annotated[float, Field(gt=0.0, le=1.0)]


class AnswerBlock(Closed):
    """When an answer is right; null = what the stage says for all tasks."""

    rating_tolerance: NonNegative | None = None
    generation_gain: Fraction | None = None
    generation_good: Fraction | None = None
    generation_least: Fraction | None = None


class TaskAnswersBlock(Closed):
    """Tasks whose answers are not simply right or wrong."""

    LaMP_3: AnswerBlock | None = None
    LaMP_4: AnswerBlock | None = None
    LaMP_5: AnswerBlock | None = None
    LaMP_6: AnswerBlock | None = None
    LaMP_7: AnswerBlock | None = None


class EvidenceBlock(Closed):
    """Does the chain use this user's profile, compared with the same question and another user's profile?"""

    require: Literal["auto", "off", "measure", "text", "answer", "either", "both"] = "auto"
    """measure = figures only; text = the chain must say words of the profile shown that neither the question, nor most
    users' profiles, nor the other profile has, and more of them than words that only the other has; answer = the
    teacher's answer must change with the profile (one more request per record); either; both. auto = measure in the
    embedded world, whose users share few words; text for LaMP files."""
    min_share: Fraction = 0.0
    """Least share of steps with such words; 0 = one step."""
    common: Fraction = 0.5
    """A word in more than this share of users' profiles proves nothing."""


class NearDuplicatesBlock(Closed):
    """Of chains with the same task and answer and nearly the same thought only the first stays."""

    scope: Literal["auto", "off", "record", "user", "all"] = "auto"
    """auto = record in the embedded world, whose teacher writes from templates; all for LaMP files."""
    threshold: Share = 0.9
    """Jaccard index of word shingles from which two thoughts are nearly the same."""
    shingle: Count = 3
    """Words per shingle."""


class BalanceBlock(Closed):
    """Caps on the kept set; chains with rare tags stay first. All off by default."""

    max_per_user: Count | None = None
    max_task_share: Share = 1.0
    """Largest share of one task; below 1 / tasks it means equal shares."""
    max_pattern_share: Share = 1.0
    """Largest share of one sequence of tags."""


class KeepBlock(Closed):
    """Keep rules of a chains stage."""

    min_steps: Count = 3
    max_steps: Count = 15
    min_tag_score: Fraction = 1.0
    """How far a chain must meet the tag schema's constraints."""
    rating_tolerance: NonNegative = 0.0
    """LaMP_3: largest distance from the gold rating that counts as right."""
    generation_gain: Fraction = 0.05
    """Generation: least gain of ROUGE over the same teacher's answer without the profile."""
    generation_good: Fraction | None = None
    """Generation: from this ROUGE on a chain stays whatever its gain; null = 0.9, and 1 in the embedded world."""
    generation_least: Fraction | None = None
    """Generation: least ROUGE; null = 0, and 1 in the embedded world, whose headlines are right or wrong."""
    tasks: TaskAnswersBlock = TaskAnswersBlock()
    """Task -> its own values of the last four."""
    label_twice: bool = True
    """Label each chain in two passes and drop those on which they disagree; also gives Cohen's kappa."""
    min_agreement: Share = 1.0
    """Least share of a chain's steps with the same tag in both passes."""
    evidence: EvidenceBlock = EvidenceBlock()
    near_duplicates: NearDuplicatesBlock = NearDuplicatesBlock()
    balance: BalanceBlock = BalanceBlock()

    @model_validator(mode="after")
    def _steps_fit(self) -> KeepBlock:
        if self.min_steps > self.max_steps:
            raise ValueError(
                f"min_steps is {self.min_steps} and max_steps {self.max_steps}: min_steps must not be above"
            )
        return self
