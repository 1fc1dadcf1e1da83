"""The block of a GRPO stage: reward weights, sampling, group, optimizer, loss. All defaults are ours."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from tagpr_rl.closed import Closed, Count, Fraction, NonNegative
from tagpr_rl.monitor_blocks import AlertLimits, StepLog
from tagpr_rl.stage_base import TrainingStage


class RewardWeights(Closed):
    """R = task*format + alpha*tag + beta*prmu + gamma*repetition (ours; the paper's values are not public)."""

    alpha: NonNegative = 0.2
    beta: NonNegative = 0.2
    gamma: NonNegative = 0.1


class GrpoStage(TrainingStage):
    """One GRPO stage; guided and exploratory are this with different weights."""

    kind: Literal["grpo"] = "grpo"
    init: str
    prmu: str | None = None
    """Stage whose PRMU scores responses; required when weights.beta > 0."""
    prmu_users: Literal["own", "shuffled"] = "own"
    """Whose profile PRMU scores a response for; shuffled = always the same other user's of the task: a control."""
    weights: RewardWeights = RewardWeights()
    steps: Count = 20
    prompts_per_step: Count = 32
    group_size: Count = 8
    temperature: Annotated[float, Field(gt=0.0)] = 1.0
    lr: Annotated[float, Field(gt=0.0)] = 3e-4
    lr_warmup_steps: Annotated[int, Field(ge=0)] = 0
    betas: tuple[float, float] = (0.9, 0.98)
    weight_decay: NonNegative = 0.01
    clip_low: Annotated[float, Field(gt=0.0)] = 0.2
    clip_high: Annotated[float, Field(gt=0.0)] = 0.2
    norm_advantage_by_std: bool = True
    """False = Dr. GRPO."""
    kl_coef: NonNegative = 0.0
    """KL to the stage's start policy, in the loss; 0 = no reference model."""
    loss_agg: Literal["token-mean", "seq-mean-token-sum", "seq-mean-token-mean"] = "token-mean"
    max_grad_norm: Annotated[float, Field(gt=0.0)] = 1.0
    mini_batches: Count = 1
    """Optimizer updates per step."""
    micro_batch_size: Count = 32
    reuse_rollout_logprobs: bool = True
    """Old log-probabilities from the rollout (verl's bypass mode). Changes nothing on-policy in fp32."""
    prmu_timeout_s: Annotated[float, Field(gt=0.0)] = 60.0
    max_masked_fraction: Fraction = 0.05
    """More unscored responses in a step than this abort the stage."""
    save_every: Count | None = None
    """Steps between checkpoints (None = one, after the last step)."""
    keep_checkpoints: Count = 2

    log: StepLog = StepLog()
    alerts: AlertLimits = AlertLimits()

    @model_validator(mode="after")
    def _prmu_named(self) -> GrpoStage:
        if self.weights.beta > 0 and self.prmu is None:
            raise ValueError("weights.beta is above 0 but no `prmu` stage is named; name it or set beta: 0")
        if self.group_size < 2:
            raise ValueError("group_size must be at least 2: a group of one has advantage 0 and teaches nothing")
        if (self.prompts_per_step * self.group_size) % (self.mini_batches * self.micro_batch_size):
            raise ValueError(
                f"prompts_per_step * group_size = {self.prompts_per_step * self.group_size} is not a multiple of "
                f"mini_batches * micro_batch_size = {self.mini_batches * self.micro_batch_size}"
            )
        return self
