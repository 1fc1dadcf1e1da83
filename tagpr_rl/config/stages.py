"""The blocks of all stages but GRPO: what may be set, its type, range and default."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from tagpr_rl.config.base import Count, Fraction, NonNegative, Once, PathText, UserPath
from tagpr_rl.config.endpoints import EndpointBlock, LabellerChoice, TeacherChoice
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
    """Who writes the chains: a name, or the block of a language model. auto = scripted for the embedded world, and
    heuristic for LaMP files; grounded = rules that know the gold and lead to it by facts of the history;
    self = the weights of `init`, sampled `samples` times."""
    init: str | None = None
    """With `teacher: self`: the earlier stage whose weights write the chains."""
    labeller: LabellerChoice = "scripted"
    """Who tags the steps: scripted = by cue words; or the block of a language model of kind openai or vllm."""
    answers: UserPath | None = None
    """File of the answers that models gave, shared by runs; null = `<out>/answers.sqlite`."""
    questions: Count | None = None
    """Most training questions that chains are written for, evenly spread; null = all of them."""
    samples: Count = 1
    """Chains that the teacher writes for each question."""
    error_rate: Fraction = 0.0
    """Share of questions that the scripted teacher answers wrongly on purpose."""
    keep_wrong_fraction: Fraction = 0.0
    """Share of the SFT set that may be chains with a wrong answer; it leaves RL something to correct."""
    empty_profile_fraction: Fraction = 0.0
    """Share of questions that are also taught without a profile, so that the generic user is trained."""
    max_pairs: Count = 3000
    """Most preference pairs that are made from the chains for PRMU."""
    keep: KeepBlock = KeepBlock()
    """Which chains stay in the SFT set."""
    accept_partial: bool = False
    """true = continue with the answers at hand if a model's budget is spent; false = stop, so that a larger budget can
    continue."""

    @model_validator(mode="after")
    def _labeller_fits(self) -> ChainsStage:
        if not isinstance(self.labeller, str) and self.labeller.kind in ("heuristic", "grounded", "auto", "self"):
            raise ValueError(f"labeller.kind is {self.labeller.kind}; use scripted, openai or vllm")
        return self

    def blocks(self) -> dict[str, EndpointBlock]:
        """Role (teacher, labeller) -> its block, of those that are language models."""
        roles = {"teacher": self.teacher, "labeller": self.labeller}
        return {
            role: block
            for role, block in roles.items()
            if isinstance(block, EndpointBlock) and block.kind in ("openai", "vllm", "self")
        }

    @property
    def teacher_kind(self) -> str:
        """The kind of the teacher, whether it is named or has a block."""
        return self.teacher if isinstance(self.teacher, str) else self.teacher.kind

    @model_validator(mode="after")
    def _init_is_the_teacher(self) -> ChainsStage:
        if (self.init is not None) != (self.teacher_kind == "self"):
            raise ValueError(f"teacher is {self.teacher_kind} and init {self.init}: init belongs to teacher: self")
        return self


class SftStage(TrainingStage):
    """Supervised fine-tuning with verl's SFT trainer."""

    kind: Literal["sft"] = "sft"
    dataset: Literal["direct", "chains", "answers", "both"] = "chains"
    """chains = tagged chains; answers = the golds of the chains' questions without a thought, the arm beside `chains`;
    both = chains and answers; direct = the golds of all training questions without a thought, which makes the demo's
    base model."""
    steps: Count = 500
    """Updates of the weights."""
    max_epochs: Annotated[float, Field(gt=0.0)] = 20.0
    """Most passes over the examples: with few examples the stage ends before `steps`."""
    batch_size: Count = 16
    """Examples in one update of the weights."""
    lr: Annotated[float, Field(gt=0.0)] = 3e-3
    """Highest learning rate of AdamW, reached after `warmup_steps`."""
    warmup_steps: Annotated[int, Field(ge=0)] = 30
    """Steps in which the learning rate rises from 0."""
    betas: tuple[float, float] = (0.9, 0.98)
    """AdamW's decay rates of the gradient's mean and square."""
    weight_decay: NonNegative = 0.01
    """AdamW's decoupled weight decay, per step and learning rate."""
    max_grad_norm: Annotated[float, Field(gt=0.0)] = 1.0
    """Larger gradients are scaled to this norm."""


class PrmuStage(TrainingStage):
    """Trains the personalization reward model with user embeddings."""

    kind: Literal["prmu"] = "prmu"
    backbone: PathText | None = None
    """Folder or hub name of a model to train in place of `init`'s weights. Any tokenizer fits: PRMU reads text."""
    user: Literal["attention", "identity", "text", "generic"] = "attention"
    """Where PRMU gets the user from. attention = from the profile, by attention. The baselines: identity = a table of
    training users (P-RLHF), text = the profile in the backbone's prompt, generic = nowhere."""
    identity: bool | None = None
    """With `user: attention`: training users also have a learned vector of their own. null = if most of them have
    several questions; true is refused if they do not, since the vector would stand for the question."""
    steps: Count = 200
    """Updates of the weights."""
    max_epochs: Annotated[float, Field(gt=0.0)] = 10.0
    """Most passes over the pairs: with few pairs the stage ends before `steps`."""
    batch_size: Count = 16
    """Pairs in one update of the weights."""
    micro_batch_size: Count | None = None
    """Pairs in one forward pass; null = the whole batch."""
    lr: Annotated[float, Field(gt=0.0)] = 1e-3
    """Highest learning rate of the backbone."""
    head_lr: Annotated[float, Field(gt=0.0)] = 1e-3
    """Highest learning rate of all weights that PRMU adds to the backbone."""
    warmup_steps: Annotated[int, Field(ge=0)] = 10
    """Steps in which the learning rates rise from 0."""
    individual_weight: Fraction = 0.8
    """Weight of the loss with the user in the total; the rest is the loss for the generic user."""
    centre: NonNegative = 0.01
    """Weight of the penalty on the square of a pair's summed scores, which keeps scores from drifting."""
    user_dropout: Fraction = 0.5
    """Probability that a training pair's user counts as unknown, so that PRMU learns to rely on the profile."""
    max_items: Count = 16
    """Most profile items that PRMU reads."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Number format of the backbone's forward pass, in training and scoring; weights stay in float32."""
    user_shards: Count | None = None
    """Number of files that hold the vectors of known users, in float16 and read through memory maps; null = they are
    part of the model's file."""
    eval_every: Annotated[int, Field(ge=0)] = 50
    """Steps between measurements of the accuracy on pairs of unseen users; 0 = only at the end."""
    patience: Annotated[int, Field(ge=0)] = 8
    """Stop after this many measurements without a better accuracy, and keep the best weights; 0 = never. Accuracy
    rises and falls while the learning rate is high, so a small number stops too soon."""
    policy_samples: Annotated[int, Field(ge=0)] = 0
    """Responses that the policy `init` writes to each of `policy_questions`. Of two responses the better against the
    worse becomes a pair, as best-of-N and RL compare them; 0 = no such pairs."""
    policy_questions: Count = 800
    """Training questions that `policy_samples` are written for, evenly spread."""
    probe_fraction: Fraction = 0.0
    """For this share of the pairs, two more pairs against gaming: the chosen response against a copy of the user's own
    profile with a wrong answer, and against itself with one step repeated."""
    slip_fraction: Fraction = 0.0
    """For this share of the pairs, one more pair: the chosen response against itself with the answer of the rejected
    one (every other time with its last step, too), which does not follow from the thought."""
    malformed_fraction: Fraction = 0.0
    """For this share of the pairs, one more pair: the chosen response against itself with a fault of form (cut,
    unclosed, nested, text outside a step, unknown tag, no thought, no answer), so that PRMU scores malformed responses
    low."""
    save_every: Count | None = None
    """Steps between checkpoints; null = none, so that an interrupted stage starts over."""
    keep_checkpoints: Count = 1
    """The newest checkpoints that stay on disk while the stage trains."""

    @property
    def asks_for_vectors(self) -> bool:
        """Whether the recipe says that a training user has a learned vector of their own."""
        return self.user == "identity" or (self.user == "attention" and self.identity is True)

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
    models: Annotated[tuple[str, ...], Once] = Field(min_length=1)
    """Stages whose weights answer the held-out questions; the first one is the base of comparison."""
    base_prompts: Annotated[tuple[Literal["direct", "thinking", "reasoning"], ...], Once] | None = Field(
        default=None, min_length=1
    )
    """Prompts that the base is asked with: direct = the answer only, the template's thinking off; thinking = a thought
    in the model's own way, thinking on; reasoning = the prompt with the tags. The one with the best score on 200
    training questions counts, the others are reported beside it. null = all three for the model of `model.path`, which
    was trained on none of them, and for other weights the prompt that they were trained with."""
    thinking_tokens: Count = 4096
    """Longest response to the prompt `thinking`; less if the model has fewer positions. A thought that is still open
    there is closed, and the model goes on with its answer."""
    controls: Annotated[tuple[Literal["shuffled", "empty"], ...], Once] = ("shuffled", "empty")
    """Controls on the last of `models`: shuffled = profiles are swapped between users; empty = no profile at all."""
    questions: Count | None = None
    """Most held-out questions, evenly spread; null = all of them."""
    control_questions: Count | None = None
    """Most questions of a control, evenly spread; null = as many as `questions`."""
    temperature: NonNegative = 0.0
    """Sampling temperature of the answers; 0 = greedy."""
