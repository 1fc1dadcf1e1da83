"""The label, meaning and direction of every metric in the report."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from tagpr_rl.reward.components import COMPONENTS, TOTAL, Term, component_names


@dataclass(frozen=True, slots=True)
class MetricName:
    """How one metric is shown."""

    key: str
    """As in metrics.jsonl, eval.json or a rollout row."""
    label: str
    meaning: str
    """One line, plain text."""
    direction: str = ""
    """"up" (higher is better), "down", or "" if neither is better by itself."""

    @property
    def arrow(self) -> str:
        """Direction as one character; empty without a direction."""
        return {"up": "↑", "down": "↓"}.get(self.direction, "")


def reward_names(terms: Iterable[Term]) -> tuple[MetricName, ...]:
    """The total and every reward component of stages with these terms, with its key in rows and metrics."""
    terms = list(terms)
    own = {term.component: f"a component of this run's own: {term.fn}" for term in terms if term.fn}
    meanings = {name: component.meaning for name, component in COMPONENTS.items()} | own
    total = MetricName(TOTAL, TOTAL, "what GRPO maximises: the weighted sum of the terms below", "up")
    return (total, *(MetricName(name, name, meanings[name], "up") for name in component_names(terms)))


TRAINING: tuple[MetricName, ...] = (
    MetricName("response_length/mean", "response length", "tokens per response, mean of the step"),
    MetricName("actor/entropy", "entropy", "mean entropy of the policy's next-token distribution, in nats"),
    MetricName("actor/pg_loss", "policy loss", "the clipped policy-gradient loss; near 0 on-policy"),
    MetricName("actor/grad_norm", "gradient norm", "before clipping"),
    MetricName("actor/ppo_kl", "KL to the sampler", "mean log-ratio between sampling and updated policy"),
    MetricName(
        "groups/zero_variance_fraction",
        "silent groups",
        "share of groups whose responses all got one reward: their advantage is 0",
        "down",
    ),
    MetricName(
        "prmu/masked_fraction",
        "masked by PRMU",
        "share of responses without a PRMU score in time; left out of the update",
        "down",
    ),
    MetricName(
        "prmu/task_correlation",
        "PRMU and task",
        "correlation of the PRMU score with the task reward over the step's responses",
        "up",
    ),
    MetricName(
        "training/rollout_probs_diff_max",
        "sampler and trainer apart",
        "greatest difference of a token's probability between the rollout engine and the policy",
        "down",
    ),
    MetricName("staleness/mean", "staleness", "updates between sampling a response and learning from it", "down"),
    MetricName(
        "driver/share",
        "driver-only time",
        "share of a step outside generation, log-probabilities, update, weight sync and scoring",
        "down",
    ),
    MetricName("timing_s/step", "seconds per step", "wall clock of one whole step", "down"),
    MetricName("timing_s/gen", "seconds generating", "wall clock of sampling within one step", "down"),
)

SFT: tuple[MetricName, ...] = (MetricName("train/loss", "SFT loss", "cross-entropy per target token, in nats", "down"),)

PRMU: tuple[MetricName, ...] = (
    MetricName("prmu/loss", "PRMU loss", "weighted individual and generic Bradley-Terry loss", "down"),
    MetricName("prmu/accuracy", "PRMU pair accuracy", "share of training pairs ranked right", "up"),
)

OFFICIAL: tuple[MetricName, ...] = (
    MetricName("accuracy", "accuracy", "share of exact matches", "up"),
    MetricName("f1", "F1", "macro F1 over the task's full label list", "up"),
    MetricName("mae", "MAE", "mean absolute error of the rating", "down"),
    MetricName("rmse", "RMSE", "root of the mean squared error of the rating", "down"),
    MetricName("rouge-1", "ROUGE-1", "unigram overlap with the reference, F measure", "up"),
    MetricName("rouge-l", "ROUGE-L", "longest common subsequence with the reference, F measure", "up"),
)

PARSE_STATUS: Mapping[str, str] = {
    "OK": "well formed",
    "NO_THOUGHT": "no <think> where one must open",
    "TRUNCATED": "ends inside the thought",
    "UNCLOSED": "closes with another element's tag",
    "UNKNOWN_TAG": "a tag that is not in the schema",
    "NESTED": "a step opens inside a step",
    "TEXT_OUTSIDE": "text before <think> or between steps",
    "EMPTY_STEP": "a step without text",
    "NO_STEPS": "a thought without steps",
    "NO_ANSWER": "nothing after </think>",
    "MARKUP_IN_ANSWER": "a tag in the answer",
}

CONTROLS: Mapping[str, str] = {
    "shuffled": "every question with another user's profile: what is left is not personal",
    "empty": "every question without a profile",
}

BOUNDS: Mapping[str, str] = {
    "blind": "best expected score without the profile, given the world's rules",
    "oracle": "best expected score with the whole profile, given the world's rules",
}

STAGE_KINDS: Mapping[str, str] = {
    "data": "questions, user split, prompts",
    "model": "start weights and tokenizer",
    "prompts": "prompts within the limit, as rows for training",
    "chains": "teacher chains, labelled and filtered",
    "sft": "supervised fine-tuning",
    "prmu": "personalization reward model",
    "grpo": "reinforcement learning",
    "evaluate": "held-out users, official metrics",
}

_BY_KEY = {name.key: name for name in (*TRAINING, *SFT, *PRMU, *OFFICIAL)}


def metric_name(key: str) -> MetricName:
    """The entry of `key` (official metric names in any case); an unknown key is shown as it is."""
    return _BY_KEY.get(key) or _BY_KEY.get(key.lower()) or MetricName(key, key, "")


def task_label(task: str) -> str:
    """`LaMP_2N` -> `LaMP-2N`."""
    return task.replace("_", "-")
