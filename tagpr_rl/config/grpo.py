"""The block of a GRPO stage: reward weights, sampling, group, optimizer, loss. All defaults are ours."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from tagpr_rl.config.alerts import AlertLimits, StepLog
from tagpr_rl.config.base import Closed, Count, Fraction, NonNegative
from tagpr_rl.config.rules import FilterBlock, StopBlock
from tagpr_rl.config.stage import StageBase, TrainingStage


class RewardWeights(Closed):
    """R = task*format + alpha*tag + beta*prmu + gamma*repetition (ours; the paper's values are not public)."""

    alpha: NonNegative = 0.2
    beta: NonNegative = 0.2
    gamma: NonNegative = 0.1


class AdvantageBlock(Closed):
    """How a response's reward becomes the advantage of its tokens (reward.update)."""

    normalise: Literal["group_std", "none", "per_component"] = "group_std"
    """group_std: (R - mean) / std of the group (GRPO). none: R - mean (Dr. GRPO). per_component: each reward component
    by its own group, weighted, summed, then by the batch's deviation (GDPO)."""
    zero_variance: Literal["keep", "drop", "resample"] = "keep"
    """Groups in which every advantage is 0. keep: their tokens count in the loss's mean. drop: they do not, and are
    counted (`algo/dropped_groups_total`). resample: as DAPO, other prompts are asked until the step is full of groups
    that differ (sync trainer; at most `resample_limit` groups more)."""
    resample_limit: float = Field(default=2.0, gt=0.0)
    """Groups given up in a step at most, as a multiple of prompts_per_step; after that equal groups are kept."""
    credit: Literal["response", "step"] = "response"
    """step: soundness and repetition of a tagged step are paid on that step's tokens; the rest on all tokens."""
    step_weight: NonNegative = 0.2
    """Weight of the normalised step rewards beside the response's normalised reward. Ours."""
    step_return: Literal["own", "following"] = "own"
    """own: a step's tokens get its normalised reward. following: the sum with those of later steps (DeepSeekMath)."""

    @model_validator(mode="after")
    def _goes_together(self) -> AdvantageBlock:
        if self.credit == "step" and self.normalise == "per_component":
            raise ValueError(
                "credit: step splits the reward by step, normalise: per_component by component; "
                "set normalise: group_std or none"
            )
        if self.credit == "response" and self.step_return != "own":
            raise ValueError(f"step_return: {self.step_return} needs credit: step")
        return self


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
    advantage: AdvantageBlock = AdvantageBlock()
    loss: Literal["clip", "gspo"] = "clip"
    """clip: each token's probability ratio is clipped (PPO, GRPO, DAPO). gspo: the response's, to the power of
    1 / length (arXiv 2507.18071, its token variant); it wants clip_low and clip_high near 3e-4 and 4e-4."""
    kl_coef: NonNegative = 0.0
    """KL to the stage's start policy, in the loss; 0 = no reference model."""
    loss_agg: Literal["token-mean", "seq-mean-token-sum", "seq-mean-token-sum-norm", "seq-mean-token-mean"] = (
        "token-mean"
    )
    """seq-mean-token-sum-norm divides a response's sum by the longest response allowed (Dr. GRPO)."""
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
    save_tokens: bool = False
    """Write every response's token ids and log-probabilities beside its text (rollouts/step_*.parquet): what
    `rollouts_from` needs. About 7 bytes a token."""
    rollouts_from: str | None = None
    """Train on saved responses instead of generating: an earlier grpo stage of the recipe or a rollouts folder, made
    with save_tokens."""

    def advantage_rules(self) -> dict[str, Any]:
        """Fields of reward.update.AdvantageRules: the advantage block and the reward's weights."""
        return self.advantage.model_dump(exclude={"resample_limit"}) | self.weights.model_dump()

    @model_validator(mode="before")
    @classmethod
    def _old_key(cls, values: Any) -> Any:
        """`norm_advantage_by_std: true | false` of earlier recipes is `advantage.normalise: group_std | none`."""
        if not isinstance(values, dict) or "norm_advantage_by_std" not in values:
            return values
        values = dict(values)
        old, block = values.pop("norm_advantage_by_std"), values.get("advantage") or {}
        if not isinstance(old, bool) or not isinstance(block, dict) or "normalise" in block:
            raise ValueError(
                f"norm_advantage_by_std ({old!r}) is now advantage.normalise: group_std (true) or none (false); "
                "leave the old key out"
            )
        return values | {"advantage": {**block, "normalise": "group_std" if old else "none"}}

    @model_validator(mode="after")
    def _algorithm_goes_together(self) -> GrpoStage:
        own, weights = self.advantage, self.weights
        if own.credit == "step" and weights.alpha + weights.gamma == 0:
            raise ValueError("advantage.credit is step, but weights.alpha and gamma are 0: steps have no reward")
        if own.zero_variance == "drop" and self.loss_agg != "token-mean":
            raise ValueError(
                f"advantage.zero_variance: drop needs loss_agg: token-mean (it is {self.loss_agg}, which divides by "
                "all responses, dropped or not); use resample or keep"
            )
        if own.zero_variance == "drop" and self.mini_batches > 1:
            raise ValueError(
                "advantage.zero_variance: drop could leave one of several mini_batches empty; "
                "set mini_batches: 1, or use resample or keep"
            )
        if self.loss == "gspo" and self.loss_agg != "seq-mean-token-mean":
            raise ValueError(
                f"loss: gspo averages within each response; set loss_agg: seq-mean-token-mean, not {self.loss_agg}"
            )
        if self.loss == "gspo" and max(self.clip_low, self.clip_high) > 0.05:
            raise ValueError(
                f"loss: gspo with clip_low {self.clip_low:g} and clip_high {self.clip_high:g} never clips: a "
                "response's ratio stays near 1; its paper has 3e-4 and 4e-4"
            )
        if self.rollouts_from is not None and own.zero_variance == "resample":
            raise ValueError(
                "rollouts_from gives each step its saved responses: there are none more for zero_variance: resample"
            )
        return self

    filter: FilterBlock | None = None
    """Training questions of this stage; null = all."""
    stop: StopBlock | None = None
    """When to end before `steps`; null = never. The learning rate's schedule is that of `steps`."""
    max_prompt_tokens: Count | None = None
    """Questions with longer prompts are left out; null = data.prompt.max_tokens, and never above it."""
    max_response_tokens: Count | None = None
    """Limit of a response; null = data.prompt.max_response_tokens, and never above it."""

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


def rollout_mistakes(where: str, stage: GrpoStage, earlier: Mapping[str, StageBase], rollout: str) -> list[str]:
    """What is wrong with `rollouts_from` and `resample` in a recipe of these earlier stages."""
    found = []
    source = stage.rollouts_from
    other = earlier.get(source) if source is not None else None
    if other is not None and not isinstance(other, GrpoStage):
        found.append(f"{where}.rollouts_from: stage '{source}' is no grpo stage")
    elif isinstance(other, GrpoStage) and not other.save_tokens:
        found.append(f"{where}.rollouts_from: stage '{source}' keeps no tokens; set its save_tokens: true")
    elif source is not None and other is None and not Path(source).is_dir():
        found.append(f"{where}.rollouts_from: '{source}' is neither an earlier grpo stage nor a folder")
    if rollout == "separate" and source is not None:
        found.append(
            f"{where}.rollouts_from: needs placement.rollout: colocated (separate decides itself what a step holds)"
        )
    if rollout == "separate" and stage.advantage.zero_variance == "resample":
        found.append(f"{where}.advantage.zero_variance: resample needs placement.rollout: colocated; use drop")
    return found
