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


RESPONSES: tuple[MetricName, ...] = (
    MetricName("response_length/mean", "response length", "tokens per response, mean of the step"),
    MetricName(
        "groups/zero_variance_fraction",
        "silent groups",
        "share of groups whose responses all got one reward: their advantage is 0",
        "down",
    ),
    MetricName(
        "rollout/failed", "failed responses", "number that could not be generated in three attempts; no rows", "down"
    ),
    MetricName("rollout/retried", "repeated responses", "number that came at a second or third attempt", "down"),
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
)

LEARNING: tuple[MetricName, ...] = (
    MetricName("actor/entropy", "entropy", "mean entropy of the policy's next-token distribution, in nats"),
    MetricName("actor/pg_loss", "policy loss", "the clipped policy-gradient loss; near 0 on-policy"),
    MetricName("actor/grad_norm", "gradient norm", "before clipping"),
    MetricName("actor/ppo_kl", "KL to the sampler", "mean log-ratio between sampling and updated policy"),
    MetricName("algo/advantage_abs", "size of the advantages", "mean absolute advantage of the responses used"),
    MetricName(
        "algo/step_advantage_abs", "size of the steps' advantages", "mean absolute advantage of a thought's steps"
    ),
    MetricName("algo/dropped_groups_total", "groups dropped", "number of silent groups left out of the step", "down"),
    MetricName("algo/dropped_groups_fraction", "share of groups dropped", "silent groups left out of the step", "down"),
    MetricName("algo/left_out_fraction", "responses left out", "share that took no part in the update", "down"),
    MetricName(
        "training/rollout_probs_diff_max",
        "sampler and trainer apart",
        "greatest difference of a token's probability between the rollout engine and the policy",
        "down",
    ),
    MetricName("validation/score", "validation score", "mean task score on users who train nothing, greedy", "up"),
    MetricName("staleness/mean", "staleness", "updates between sampling a response and learning from it", "down"),
)

TIMING: tuple[MetricName, ...] = (
    MetricName("timing_s/step", "seconds per step", "wall clock of one whole step", "down"),
    MetricName("timing_s/gen", "seconds generating", "wall clock of sampling within one step", "down"),
    MetricName(
        "driver/share",
        "driver-only time",
        "share of a step outside generation, log-probabilities, update, weight sync and scoring",
        "down",
    ),
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
    "shuffled": "the model reads another user's profile: what it still gets right is not personal",
    "empty": "the model reads no profile",
}

HELD_OUT: Mapping[str, tuple[str, str]] = {
    "user": ("held-out users", "users of whom no model saw anything in training"),
    "time": ("users, later questions", "users whose earlier questions are in training; asked is what came later"),
}
"""Whose questions are evaluated, and what that means, by `data.split`."""

SFT_DATA: Mapping[str, str] = {
    "direct": "answers alone",
    "answers": "the answers alone to the chains' questions",
    "chains": "tagged chains (imitation)",
    "both": "tagged chains and the answers alone to their questions",
}

PROMPTS: Mapping[str, str] = {
    "direct": "the answer only, thinking off",
    "thinking": "a thought in the model's own way, then the answer",
    "reasoning": "the prompt with the tags",
}
"""Prompts that a base model is asked with. The best one on training questions stands under the model's own name."""

BASELINES: Mapping[str, str] = {
    "majority": "no model: the most frequent answer of the training users",
    "random": "no model: a random label, or the answer to a random training question",
    "nearest": "no model: the user's own label or title of the most similar item of the profile",
}

BOUNDS: Mapping[str, str] = {
    "blind": "ceiling: the best expected score without the profile, given the world's rules",
    "oracle": "ceiling: the best expected score with the whole profile, given the world's rules",
}

TERMS: Mapping[str, str] = {
    "profile": "the items of a user's history that stand in the prompt",
    "task score": "in [0, 1]: exact match (LaMP-1, 2, 2N), closeness of the rating (LaMP-3), mean of ROUGE-1 and "
    "ROUGE-L F (LaMP-4 to 7). The answer is what follows the thought, whether or not the thought parses",
    "interval": "in brackets: 95 % bootstrap over users",
    "well formed": "share of responses that the parser accepts: a thought of tagged steps, then an answer",
    "cut off": "share of responses that the token limit cut, or that end inside their thought",
    "PRMU": "the personalization reward model: it scores how well a response fits this user",
}
"""Words of the page that it explains before it uses them."""

PAIR_KINDS: Mapping[str, str] = {
    "cross_profile": "against a response to another user's profile",
    "no_profile": "against a response written without a profile",
    "wrong": "against a wrong answer",
    "no_evidence": "against a right answer whose thought does not use the profile",
    "copied": "against a copy of the profile with a wrong answer",
    "padded": "against the same response with a step said twice",
    "slipped": "against an answer that does not follow from the thought",
    "malformed": "against the same response with a fault of form",
    "user_only": "pairs that differ only in the user",
}
"""What the rejected response of a preference pair is."""

EVIDENCE: Mapping[str, str] = {
    "tested": "right chains with a profile that were tested",
    "shown": "of them, chains with more words of the own profile alone than of the other user's alone",
    "own_steps": "share of steps with words of the own profile",
    "other_steps": "share of steps with words of the other user's profile",
    "specific_steps": "share of steps with words that the own profile alone has",
    "answers_compared": "questions that the teacher answered again with the other user's profile",
    "answers_changed": "share of them with another answer",
}
"""Figures of the chains' test for use of the profile: with the user's own history, beside another user's."""

TAG_PARTS: Mapping[str, str] = {
    "coverage": "part of the tag score: share of the required steps that are there and useful",
    "sound": "part of the tag score: share of the steps without a fault (empty, repeated, out of order or too many)",
}

STAGE_KINDS: Mapping[str, str] = {
    "data": "questions, user split, prompts",
    "model": "start weights and tokenizer",
    "prompts": "prompts within the limit, as rows for training",
    "chains": "teacher chains, labelled and filtered",
    "sft": "supervised fine-tuning",
    "prmu": "personalization reward model",
    "grpo": "reinforcement learning",
    "evaluate": "held-out questions, official metrics",
}

_BY_KEY = {name.key: name for name in (*RESPONSES, *LEARNING, *TIMING, *SFT, *PRMU, *OFFICIAL)}


def metric_name(key: str) -> MetricName:
    """The entry of `key` (official metric names in any case); an unknown key is shown in words."""
    return _BY_KEY.get(key) or _BY_KEY.get(key.lower()) or MetricName(key, words(key), "")


def words(key: str) -> str:
    """A key of a file for people: `unseen/user_macro` -> `unseen: user macro`, `LaMP_2` -> `LaMP-2`."""
    parts = [part if part.startswith("LaMP_") else part.replace("_", " ") for part in key.split("/")]
    return ": ".join(map(task_label, parts))


def task_label(task: str) -> str:
    """`LaMP_2N` -> `LaMP-2N`."""
    return task.replace("_", "-")
