"""Around a GRPO stage's steps: the questions it sees, what it logs, when it raises an alert, when it ends early."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from tagpr_rl.config.base import Closed, Count, Fraction, NonNegative, Once, Positive


class RolloutCorrection(Closed):
    """Weigh a token's loss by update / rollout probability, cut off above (truncated importance sampling)."""

    level: Literal["token", "sequence", "off"] = "token"
    """token: each token has its own ratio. sequence: all tokens of a response have the product of their ratios, which
    is unbiased and varies more. off: no weights."""
    threshold: Annotated[float, Field(gt=1.0)] = 2.0
    """Larger weights count as this."""


class MixedBlock(Closed):
    """Keep the questions that the stage's start policy answers neither always nor never."""

    samples: Annotated[int, Field(ge=2)] = 4
    """Responses to each question at the stage's temperature. A question stays if task * format differs between them."""


class FilterBlock(Closed):
    """Which training questions a stage sees, in this order: tasks, profile size, share or number, mixed."""

    tasks: Annotated[tuple[str, ...], Once] | None = Field(default=None, min_length=1)
    """LaMP tasks of the stage; null = all of the recipe's."""
    min_items: Annotated[int, Field(ge=0)] | None = None
    """Users with fewer items in their whole profile are left out."""
    max_items: Annotated[int, Field(ge=0)] | None = None
    """Users with more items in their whole profile are left out."""
    share: Annotated[float, Field(gt=0.0, le=1.0)] | None = None
    """Share of the questions left that the stage sees, evenly spread in the data's order."""
    questions: Count | None = None
    """Number of the questions left that the stage sees at most, evenly spread; not together with `share`."""
    mixed: MixedBlock | None = None
    """Ask the start policy first, and leave out questions that it answers always or never. It comes last, because it
    costs one vLLM start and `samples` responses a question."""

    @model_validator(mode="after")
    def _fits(self) -> FilterBlock:
        if self.share is not None and self.questions is not None:
            raise ValueError(f"share={self.share:g} and questions={self.questions}: give one of them")
        if self.min_items is not None and self.max_items is not None and self.min_items > self.max_items:
            raise ValueError(f"min_items={self.min_items} is above max_items={self.max_items}")
        return self


class CurriculumBlock(Closed):
    """Ask questions more often whose groups differ in their reward. What is known of a question is the running variance
    of its person's and task's groups. The order follows from seed and rewards; a resumed stage goes on with it."""

    floor: Annotated[float, Field(gt=0.0, le=1.0)] = 0.3
    """Share of the questions that are drawn alike from all, so that each of them keeps a chance."""


class PlateauBlock(Closed):
    """Stop when the mean of `metric` over `window` steps has not got better for `patience` steps."""

    metric: str = "reward/task/mean"
    """A key of the stage's metrics.jsonl. With `validation/score` each validated step counts as a step below."""
    window: Count = 5
    """Steps that a mean is taken over."""
    patience: Count = 10
    """Steps without a better window after which the stage ends."""
    min_gain: NonNegative = 0.0
    """A window counts as better if it beats the best one by more than this."""
    better: Literal["higher", "lower"] = "higher"
    """Whether a higher or a lower value of the metric is better."""


class StopBlock(Closed):
    """When a stage ends before `steps`; the first rule that holds, after a step. `steps` stays the upper bound."""

    plateau: PlateauBlock | None = None
    """End when a metric stops getting better."""
    max_seconds: Positive | None = None
    """End after this many seconds of training steps, over all attempts; start-up does not count."""
    max_tokens: Count | None = None
    """End after this many prompt and response tokens, counted over all responses trained on."""


class ValidationBlock(Closed):
    """The policy's score during training on the users of data.validation_fraction: greedy, on the stage's own rollout
    server. It changes neither the order of the questions nor a random state."""

    every: Count = 10
    """Steps between two validations; the last step has one too."""
    questions: Count | None = 100
    """Questions asked, always the same, evenly spread over tasks and users; null = all of them."""
    publish: Literal["last", "best"] = "last"
    """The step whose weights the stage gives on: the last one, or the validated one with the best score, the first of
    equals. Its checkpoint then stays on disk beside the newest."""


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
    """prmu_up_task_down: PRMU's mean score rose by more than this from one window to the next, while the task score
    fell by more than `task_fall`."""
    task_fall: NonNegative = 0.05
    """The fall of the task score that goes with `prmu_rise`."""
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
    abort_on: Annotated[tuple[AlertKind, ...], Once] = ()
    """Alerts that stop the stage. `resume` goes on past one that was raised."""
