"""The `keep` block of a chains stage: which chains stay."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from tagpr_rl.config.base import Closed, Count, Fraction, NonNegative


class KeepBlock(Closed):
    """Keep rules of a chains stage. Thresholds that no study has moved are constants in `tagpr_rl/chains`."""

    min_steps: Count = 3
    """A thought with fewer steps is dropped."""
    max_steps: Count = 15
    """Neighbouring lines of a longer thought are joined until it has this many steps."""
    rating_tolerance: NonNegative = 0.0
    """LaMP_3: largest distance from the gold rating at which an answer still counts as right."""
    generation_gain: Fraction = 0.05
    """LaMP_4 to 7: least gain in ROUGE over the same teacher's answer without the profile."""
    min_agreement: Fraction = 1.0
    """Each chain is labelled twice; least share of its steps that must get the same tag both times. 0 = label once,
    which halves the labeller's requests and leaves Cohen's kappa out of the report."""
    profile_evidence: Literal["auto", "off", "measure", "text", "answer", "either", "both"] = "auto"
    """How a chain must show that it uses this user's profile, compared with the same question and another user's
    profile. measure = count and keep all; text = it says more words that only the own profile has than words that
    only the other has; answer = the teacher's answer changes with the profile (one more request a record); either or
    both of the two. auto = measure in the embedded world, whose users share few words, and text for LaMP files."""
    duplicate_scope: Literal["auto", "off", "record", "user", "all"] = "auto"
    """Which chains are compared for near-duplicates, of which only the first stays: those of a record, of a user or
    all. auto = record in the embedded world, whose teacher writes from templates, and all for LaMP files."""
    max_per_user: Count | None = None
    """Most chains of one user; those with rare tags stay first. null = no limit."""
    max_task_share: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """Largest share of one task among the kept chains; below 1 / tasks it means equal shares."""

    @model_validator(mode="after")
    def _steps_fit(self) -> KeepBlock:
        if self.min_steps > self.max_steps:
            raise ValueError(
                f"min_steps is {self.min_steps} and max_steps {self.max_steps}: min_steps must not be above"
            )
        return self
