"""Which questions a GRPO stage sees, and when it ends before its last step. All defaults are ours."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from tagpr_rl.config.base import Closed, Count, NonNegative, Positive


class MixedBlock(Closed):
    """Keep the questions that the stage's start policy answers neither always nor never."""

    samples: Annotated[int, Field(ge=2)] = 4
    """Responses to each question, at the stage's temperature; kept where task * format differs between them."""


class FilterBlock(Closed):
    """Which training questions a stage sees, in this order: tasks, profile size, share or number, mixed."""

    tasks: tuple[str, ...] | None = Field(default=None, min_length=1)
    min_items: Annotated[int, Field(ge=0)] | None = None
    """Fewest items of the asker's whole profile."""
    max_items: Annotated[int, Field(ge=0)] | None = None
    share: Annotated[float, Field(gt=0.0, le=1.0)] | None = None
    """Of what is left, evenly spread in the data's order."""
    questions: Count | None = None
    """At most this many of what is left, evenly spread; not together with `share`."""
    mixed: MixedBlock | None = None
    """Costs one vLLM start and `samples` responses a question, so it comes last."""

    @model_validator(mode="after")
    def _fits(self) -> FilterBlock:
        if self.share is not None and self.questions is not None:
            raise ValueError(f"share={self.share:g} and questions={self.questions}: give one of them")
        if self.min_items is not None and self.max_items is not None and self.min_items > self.max_items:
            raise ValueError(f"min_items={self.min_items} is above max_items={self.max_items}")
        return self


class PlateauBlock(Closed):
    """Stop when the mean of `metric` over `window` steps has not got better for `patience` steps."""

    metric: str = "reward/task/mean"
    """A key of the stage's metrics.jsonl."""
    window: Count = 5
    patience: Count = 10
    min_gain: NonNegative = 0.0
    """A window counts as better when it beats the best one by more than this."""
    better: Literal["higher", "lower"] = "higher"


class StopBlock(Closed):
    """When a stage ends before `steps`; the first rule that holds, after a step. `steps` stays the upper bound."""

    plateau: PlateauBlock | None = None
    max_seconds: Positive | None = None
    """Of training steps (start-up is left out), over all attempts."""
    max_tokens: Count | None = None
    """Prompt and response tokens of all responses trained on."""
