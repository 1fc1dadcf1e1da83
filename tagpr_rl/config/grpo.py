"""The block of a GRPO stage: reward, sampling, group, optimizer, loss, and the algorithms that set several of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from tagpr_rl.config.base import Count, Fraction, NonNegative, PathText
from tagpr_rl.config.data import DataBlock
from tagpr_rl.config.reward import AdvantageBlock, RewardTerm, RewardWeights, list_mistake, prmu_terms
from tagpr_rl.config.rules import (
    AlertLimits,
    CurriculumBlock,
    FilterBlock,
    RolloutCorrection,
    StepLog,
    StopBlock,
    ValidationBlock,
)  # fmt: skip
from tagpr_rl.config.stage import StageBase, TrainingStage
from tagpr_rl.reward.advantages.step import split_terms
from tagpr_rl.reward.components import Term


@dataclass(frozen=True, slots=True)
class Algorithm:
    """Keys of a GRPO stage that one published algorithm sets."""

    arxiv: str
    """Id of its paper."""
    idea: str
    """What it changes, in one line."""
    normalise: str
    loss: str
    clip_low: float
    clip_high: float
    loss_agg: str
    zero_variance: str

    def keys(self) -> dict[str, Any]:
        """Keys of the stage, with those of its `advantage` block inside."""
        advantage = {"normalise": self.normalise, "zero_variance": self.zero_variance}
        names = ("loss", "clip_low", "clip_high", "loss_agg")
        return {"advantage": advantage, **{name: getattr(self, name) for name in names}}


ALGORITHMS: Mapping[str, Algorithm] = {
    "grpo": Algorithm(
        "2402.03300", "advantages relative to the group, in place of a value network",
        "group_std", "clip", 0.2, 0.2, "seq-mean-token-mean", "keep",
    ),
    "dr_grpo": Algorithm(
        "2503.20783", "no division by the group's deviation or by the response's length, which bias the update",
        "none", "clip", 0.2, 0.2, "seq-mean-token-sum-norm", "keep",
    ),
    "dapo": Algorithm(
        "2503.14476", "a higher upper clip, a mean over tokens, and other prompts for groups of equal rewards",
        "group_std", "clip", 0.2, 0.28, "token-mean", "resample",
    ),
    "gspo": Algorithm(
        "2507.18071", "one probability ratio per response in place of one per token",
        "group_std", "gspo", 3e-4, 4e-4, "seq-mean-token-mean", "keep",
    ),
    "gdpo": Algorithm(
        "2601.05242", "each term of the reward is normalised by its own group before the sum",
        "per_component", "clip", 0.2, 0.2, "token-mean", "keep",
    ),
}  # fmt: skip
"""Values of `algorithm`. Batch sizes, learning rate, `mini_batches` and `kl_coef` stay the recipe's: the papers' values
fit their own models."""


def algorithm_rows() -> list[dict[str, str]]:
    """A row per algorithm for the documentation: name, arXiv id, idea, and every key that it sets."""
    rows = []
    for name, algorithm in ALGORITHMS.items():
        keys = algorithm.keys()
        keys |= {f"advantage.{key}": value for key, value in keys.pop("advantage").items()}
        shown = {key: f"{value:g}" if isinstance(value, float) else value for key, value in keys.items()}
        rows.append({"algorithm": name, "arXiv": algorithm.arxiv, "idea": algorithm.idea, **shown})
    return rows


class GrpoStage(TrainingStage):
    """One GRPO stage; the guided and the exploratory stage differ in their reward."""

    kind: Literal["grpo"] = "grpo"
    init: str
    """Stage whose weights this one starts from: a model, sft or grpo stage."""
    prmu: str | None = None
    """Stage whose PRMU scores responses; required if the reward weighs `prmu`."""
    prmu_users: Literal["own", "shuffled"] = "own"
    """Whose profile PRMU scores a response for. shuffled: another user's of the same task, always the same one; this is
    a control."""
    reward: tuple[RewardTerm, ...] | None = None
    """What a response is rewarded for, as a list of terms: `[{name: task_format, weight: 1}, {name: tag, weight: 0.1},
    {fn: "my_rewards:brevity", weight: 0.05}]`. The reward is the sum of weight * value, in this order."""
    weights: RewardWeights | None = None
    """Short form of `reward`, one or the other: {alpha, beta, gamma}. Without both, the short form's defaults hold."""
    algorithm: Literal["grpo", "dr_grpo", "dapo", "gspo", "gdpo"] | None = None
    """A published algorithm by name. It sets advantage.normalise, advantage.zero_variance, loss, clip_low, clip_high
    and loss_agg; keys that the recipe gives itself override it."""
    steps: Count = 20
    """Training steps. A step asks for responses to new prompts and updates the weights with them."""
    prompts_per_step: Count = 32
    """Questions of a step."""
    group_size: Count = 8
    """Responses to each question of a step; they are compared with each other."""
    temperature: Annotated[float, Field(gt=0.0)] = 1.0
    """Sampling temperature of the responses."""
    lr: Annotated[float, Field(gt=0.0)] = 3e-4
    """Learning rate of AdamW, constant after the warm-up."""
    lr_warmup_steps: Annotated[int, Field(ge=0)] = 0
    """Steps in which the learning rate rises from 0 to `lr`."""
    betas: tuple[float, float] = (0.9, 0.98)
    """AdamW's decay rates of the gradient's mean and of its square."""
    weight_decay: NonNegative = 0.01
    """AdamW's decoupled weight decay, per step and learning rate."""
    clip_low: Annotated[float, Field(gt=0.0)] = 0.2
    """A probability ratio below 1 - clip_low counts as that."""
    clip_high: Annotated[float, Field(gt=0.0)] = 0.2
    """A probability ratio above 1 + clip_high counts as that."""
    advantage: AdvantageBlock = AdvantageBlock()
    """How rewards become advantages."""
    loss: Literal["clip", "gspo"] = "clip"
    """clip: each token's probability ratio is clipped (PPO, GRPO, DAPO). gspo: the response's, to the power of
    1 / length (arXiv 2507.18071, its token variant); it wants clip_low and clip_high near 3e-4 and 4e-4."""
    kl_coef: NonNegative = 0.0
    """Weight of the KL divergence to the stage's start policy in the loss; with 0 no reference model is loaded."""
    loss_agg: Literal["token-mean", "seq-mean-token-sum", "seq-mean-token-sum-norm", "seq-mean-token-mean"] = (
        "token-mean"
    )
    """How token losses become one number: the mean over all tokens, or over responses of their tokens' sum or mean.
    seq-mean-token-sum-norm divides a response's sum by the longest response allowed (Dr. GRPO)."""
    max_grad_norm: Annotated[float, Field(gt=0.0)] = 1.0
    """A gradient with a larger norm is scaled down to it."""
    mini_batches: Count = 1
    """Optimizer updates per step."""
    micro_batch_size: Count = 32
    """Responses of one forward and backward pass; it changes memory and speed, and results by rounding only."""
    reuse_rollout_logprobs: bool = True
    """Take old log-probabilities from the rollout (verl's bypass mode) and do not compute them again. In fp32 it
    changes nothing on-policy."""
    rollout_correction: RolloutCorrection | None = None
    """Weights for what rollout and update disagree in, with reuse_rollout_logprobs: false; null = by token with
    bfloat16, and none with float32, where the two agree."""
    rollout_timeout_s: Annotated[float, Field(gt=0.0)] = 1800.0
    """A response that the engine has not ended after this many seconds, its wait for a place included, is asked for
    again: twice, as after an error. Then it is left out of the step."""
    prmu_timeout_s: Annotated[float, Field(gt=0.0)] = 60.0
    """A response that PRMU has not scored after this many seconds is left out of the update."""
    max_masked_fraction: Fraction = 0.05
    """A larger share of a step's responses that could not be generated or scored aborts the stage."""
    save_every: Count | None = None
    """Steps between checkpoints (None = one, after the last step)."""
    keep_checkpoints: Count = 2
    """Newest checkpoints that stay on disk."""
    save_tokens: bool = False
    """Write every response's token ids and log-probabilities beside its text (rollouts/step_*.parquet), about 7 bytes a
    token. `rollouts_from` needs them."""
    rollouts_from: PathText | None = None
    """Train on saved responses and generate none: an earlier grpo stage of the recipe, or a rollouts folder, made with
    save_tokens."""

    @property
    def terms(self) -> tuple[Term, ...]:
        """The terms of the reward, in the order in which they are added."""
        if self.reward is None:
            return (self.weights or RewardWeights()).terms()
        return tuple(term.term() for term in self.reward)

    def correction(self, dtype: str) -> RolloutCorrection | None:
        """The weights of the loss for a model that computes in `dtype`; None = none."""
        chosen = self.rollout_correction
        if chosen is None and not self.reuse_rollout_logprobs and dtype == "bfloat16":
            chosen = RolloutCorrection()
        return None if chosen is None or chosen.level == "off" else chosen

    @property
    def uses_prmu(self) -> bool:
        """Whether PRMU scores this stage's responses: one is named and its weight is above 0."""
        return self.prmu is not None and bool(prmu_terms(self.terms))

    @model_validator(mode="before")
    @classmethod
    def _presets(cls, values: Any) -> Any:
        """The short form's defaults if no reward is given, and the keys of `algorithm` that the recipe leaves out."""
        if not isinstance(values, dict):
            return values
        values = dict(values)
        if values.get("reward") is None and values.get("weights") is None:
            values["weights"] = {}
        preset = ALGORITHMS.get(str(values.get("algorithm")))
        given = values.get("advantage") or {}
        if preset is None or not isinstance(given, dict):
            return values
        keys = preset.keys()
        return {**keys, **values, "advantage": {**keys["advantage"], **given}}

    @model_validator(mode="after")
    def _algorithm_goes_together(self) -> GrpoStage:
        own = self.advantage
        if own.credit == "step" and not sum(term.weight for term, _ in split_terms(self.terms)):
            raise ValueError("advantage.credit is step, but tag and repetition have no weight: steps have no reward")
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
        if self.curriculum is not None and (self.rollouts_from is not None or own.zero_variance == "resample"):
            other = "rollouts_from" if self.rollouts_from is not None else "advantage.zero_variance: resample"
            raise ValueError(f"curriculum and {other} both choose the questions of a step; keep one of them")
        if self.rollouts_from is not None and own.zero_variance == "resample":
            raise ValueError(
                "rollouts_from gives each step its saved responses: there are none more for zero_variance: resample"
            )
        return self

    filter: FilterBlock | None = None
    """Training questions of this stage; null = all."""
    curriculum: CurriculumBlock | None = None
    """The order of the questions; null = shuffled, each once before one comes again."""
    validation: ValidationBlock | None = None
    """Validate the policy on users who train nothing (data.validation_fraction); null = never."""
    stop: StopBlock | None = None
    """When to end before `steps`; null = never. The learning rate's schedule is that of `steps`."""
    max_prompt_tokens: Count | None = None
    """Questions with longer prompts are left out; null = data.prompt.max_tokens, and never above it."""
    max_response_tokens: Count | None = None
    """Limit of a response; null = data.prompt.max_response_tokens, and never above it."""

    log: StepLog = StepLog()
    """What is kept and shown of a step's responses."""
    alerts: AlertLimits = AlertLimits()
    """When the stage's metrics raise an alert."""

    @model_validator(mode="after")
    def _reward_goes_together(self) -> GrpoStage:
        if self.reward is not None and self.weights is not None:
            raise ValueError(
                "give reward or its short form weights, not both (weights: null removes that of an extended recipe)"
            )
        if self.reward is not None and (mistake := list_mistake(self.reward)):
            raise ValueError(mistake)
        if (weighted := prmu_terms(self.terms)) and self.prmu is None:
            key = "weights.beta" if self.reward is None else f"the weight of {weighted[0].component} in reward"
            raise ValueError(f"{key} is above 0 but no `prmu` stage is named; name one or set the weight to 0")
        return self

    @model_validator(mode="after")
    def _correction_acts(self) -> GrpoStage:
        if self.reuse_rollout_logprobs and self.correction("") is not None:
            raise ValueError(
                "rollout_correction would be ignored: with reuse_rollout_logprobs: true the clipped ratio is update / "
                "rollout already. Leave it out, or set reuse_rollout_logprobs: false"
            )
        return self

    @model_validator(mode="after")
    def _best_step_is_saved(self) -> GrpoStage:
        block = self.validation
        if block is not None and block.publish == "best" and block.every % (self.save_every or self.steps):
            raise ValueError(
                f"validation.publish: best needs a checkpoint of each validated step: save_every "
                f"({self.save_every or 'null'}) must divide validation.every ({block.every})"
            )
        return self

    @model_validator(mode="after")
    def _sizes_go_together(self) -> GrpoStage:
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
    mistakes = []
    source = stage.rollouts_from
    other = earlier.get(source) if source is not None else None
    if other is not None and not isinstance(other, GrpoStage):
        mistakes.append(f"{where}.rollouts_from: stage '{source}' is no grpo stage")
    elif isinstance(other, GrpoStage) and not other.save_tokens:
        mistakes.append(f"{where}.rollouts_from: stage '{source}' keeps no tokens; set its save_tokens: true")
    elif source is not None and other is None and not Path(source).is_dir():
        mistakes.append(f"{where}.rollouts_from: '{source}' is neither an earlier grpo stage nor a folder")
    if rollout == "separate" and source is not None:
        mistakes.append(f"{where}.rollouts_from: needs placement.rollout: colocated (else verl fills the steps itself)")
    if rollout == "separate" and stage.advantage.zero_variance == "resample":
        mistakes.append(f"{where}.advantage.zero_variance: resample needs placement.rollout: colocated; use drop")
    return mistakes


def validation_mistakes(where: str, stage: GrpoStage, data: DataBlock, rollout: str) -> list[str]:
    """What is wrong with `validation`, or a stop rule on it, in a recipe with this data and placement.rollout."""
    if stage.validation is None:
        plateau = stage.stop.plateau if stage.stop is not None else None
        if plateau is not None and plateau.metric.startswith("validation/"):
            return [f"{where}.stop.plateau.metric: {plateau.metric} needs the stage's `validation`"]
        return []
    mistakes = []
    if not data.validation_fraction:
        mistakes.append(f"{where}.validation: no user is set aside for it; set data.validation_fraction, to 0.1 say")
    if stage.rollouts_from is not None:
        mistakes.append(f"{where}.validation: rollouts_from has saved responses in the place of the policy's")
    if rollout == "separate":
        mistakes.append(f"{where}.validation: needs placement.rollout: colocated")
    return mistakes
