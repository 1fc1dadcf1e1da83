"""The blocks of all stages but GRPO: what may be set, its type, range and default."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from tagpr_rl.config.base import Count, Fraction, NonNegative
from tagpr_rl.config.endpoints import LabellerChoice, TeacherChoice
from tagpr_rl.config.keep import KeepBlock
from tagpr_rl.config.stage import StageBase, TrainingStage


class DataStage(StageBase):
    """Makes the world or reads LaMP files, splits by user, writes prompts."""

    kind: Literal["data"] = "data"


class ModelStage(StageBase):
    """Builds the tiny model and tokenizer, or checks and links the given one."""

    kind: Literal["model"] = "model"


class PromptsStage(StageBase):
    """Builds a prompt within the limit for every record, as verl rows."""

    kind: Literal["prompts"] = "prompts"


class ChainsStage(StageBase):
    """Teacher -> segment -> label -> keep: the tagged SFT set and PRMU's pairs."""

    kind: Literal["chains"] = "chains"
    teacher: TeacherChoice = "auto"
    """A name or a block (endpoints.py). auto = scripted for the embedded world, heuristic for LaMP files."""
    labeller: LabellerChoice = "scripted"
    """scripted = by cue words; or a block of kind openai or vllm."""
    answers: Path | None = None
    """File of the answers that models gave, shared by runs; null = `<out>/answers.sqlite`."""
    samples: Count = 1
    error_rate: Fraction = 0.0
    """Share of questions that the scripted teacher answers wrongly on purpose."""
    keep_wrong_fraction: Fraction = 0.0
    """Share of wrong chains kept in the SFT set (ours; an ablation that leaves RL more room)."""
    empty_profile_fraction: Fraction = 0.0
    """Share of questions also taught without a profile, so that the generic user is trained."""
    max_pairs: Count = 3000
    keep: KeepBlock = KeepBlock()
    accept_partial: bool = False
    """Go on with what there is where a model's budget was spent; false = stop, so that more budget can go on."""

    @model_validator(mode="after")
    def _labeller_fits(self) -> ChainsStage:
        if not isinstance(self.labeller, str) and self.labeller.kind in ("heuristic", "auto"):
            raise ValueError(f"labeller.kind is {self.labeller.kind}; use scripted, openai or vllm")
        return self


class SftStage(TrainingStage):
    """Supervised fine-tuning with verl's SFT trainer."""

    kind: Literal["sft"] = "sft"
    dataset: Literal["direct", "chains"] = "chains"
    """chains = tagged chains; direct = answers without a thought (makes the base model)."""
    steps: Count = 500
    max_epochs: Annotated[float, Field(gt=0.0)] = 20.0
    """Few examples end the stage before `steps`: never more passes over them than this."""
    batch_size: Count = 16
    lr: Annotated[float, Field(gt=0.0)] = 3e-3
    warmup_steps: Annotated[int, Field(ge=0)] = 30
    betas: tuple[float, float] = (0.9, 0.98)
    weight_decay: NonNegative = 0.01
    max_grad_norm: Annotated[float, Field(gt=0.0)] = 1.0


class PrmuStage(TrainingStage):
    """Trains the personalization reward model with user embeddings."""

    kind: Literal["prmu"] = "prmu"
    backbone: str | None = None
    """A folder or hub name of another model to train instead of `init`'s weights; PRMU is given text, not tokens."""
    user: Literal["attention", "identity", "text", "generic"] = "attention"
    """Where PRMU looks for the user: the profile by attention; or a baseline: a table of training users (P-RLHF), the
    profile in the backbone's prompt, nowhere."""
    identity: bool = True
    """With `user: attention`: training users get a vector of their own beside the profile's."""
    steps: Count = 200
    max_epochs: Annotated[float, Field(gt=0.0)] = 10.0
    """Few pairs end the stage before `steps`: never more passes over them than this."""
    batch_size: Count = 16
    micro_batch_size: Count | None = None
    """Pairs per forward pass; None = the whole batch."""
    lr: Annotated[float, Field(gt=0.0)] = 1e-3
    """Of the backbone."""
    head_lr: Annotated[float, Field(gt=0.0)] = 1e-3
    warmup_steps: Annotated[int, Field(ge=0)] = 10
    individual_weight: Fraction = 0.8
    centre: NonNegative = 0.01
    user_dropout: Fraction = 0.5
    max_items: Count = 16
    user_shards: Count | None = None
    """Files that hold the rows of known users, in float16 and read through memory maps; None = in the model's file."""
    eval_every: Annotated[int, Field(ge=0)] = 50
    """Steps between accuracies on pairs of unseen users; 0 = only at the end."""
    patience: Annotated[int, Field(ge=0)] = 8
    """Stop after this many of them without a better one, and keep the best weights; 0 = never. Accuracy rises and
    falls while the learning rate is high: too small a number stops too soon."""
    policy_samples: Annotated[int, Field(ge=0)] = 0
    """Responses that the policy `init` writes to each of `policy_questions`: the better of two against the worse
    become pairs, as best-of-N and RL will compare them; 0 = none."""
    policy_questions: Count = 800
    probe_fraction: Fraction = 0.0
    """For this share of the pairs, two more against gaming: chosen against a copy of the user's own profile with a
    wrong answer, and against itself with a step said twice."""
    slip_fraction: Fraction = 0.0
    """For this share of the pairs, one more: chosen against itself with the answer of rejected (every other time with
    its last step, too), which does not follow from its thought. A policy's mistakes are often of this kind."""
    save_every: Count | None = None
    """Steps between checkpoints; null = none, so that an interrupted stage starts over."""
    keep_checkpoints: Count = 1
    """The newest checkpoints that stay on disk while the stage trains."""

    @model_validator(mode="after")
    def _evaluated(self) -> PrmuStage:
        if self.patience and not self.eval_every:
            raise ValueError("patience counts evaluations, and eval_every is 0; set eval_every, or patience: 0")
        if self.policy_samples == 1:
            raise ValueError("policy_samples is 1; a pair needs two responses to one question")
        return self


class EvaluateStage(StageBase):
    """Official metrics on held-out users, for several stages' weights, with controls."""

    kind: Literal["evaluate"] = "evaluate"
    models: tuple[str, ...] = Field(min_length=1)
    controls: tuple[Literal["shuffled", "empty"], ...] = ("shuffled", "empty")
    """Run on the last model: profiles swapped between users; no profile at all."""
    questions: Count | None = None
    """At most this many held-out questions, evenly spread (None = all)."""
    control_questions: Count | None = None
    temperature: NonNegative = 0.0
