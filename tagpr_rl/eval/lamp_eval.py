"""Evaluates responses: official metrics, mean task score and parser statuses, in total and per question.

There are two views. *Lenient*: the answer is the text after the thought, the whole text without one, and empty while
the thought is open. Official metrics and task scores use it, so that a model without the grammar is not punished.
*Strict*: the shares of responses by parser status, and the task score with malformed responses counted as 0.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tagpr_rl.data.check import leaks_gold
from tagpr_rl.data.tasks import TASKS
from tagpr_rl.eval.metrics import (
    RESAMPLES,
    is_unparsable,
    mean_over_tasks,
    official_metrics,
    task_mean,
    user_macro_mean,
)
from tagpr_rl.reward.task import task_reward
from tagpr_rl.tags.grammar import final_answer, parse
from tagpr_rl.tags.schema import TagSchema
from tagpr_rl.tags.thoughts import split_thought
from tagpr_rl.types import LampRecord, MetricResult, ParseStatus, TagprError


@dataclass(frozen=True, slots=True)
class QuestionScore:
    """The result of one question."""

    key: str
    """`question_key`: unique over tasks."""
    id: str
    task: str
    user_id: str
    answer: str
    """The lenient answer."""
    score: float
    """Task score of the lenient answer, [0, 1]."""
    parse_status: str
    unparsable: bool
    """Whether the answer is no answer to this task: an unknown label, no number, or empty."""
    truncated: bool
    """Whether the response was cut at the token limit or ends inside its thought."""


@dataclass(frozen=True, slots=True)
class EvalResult:
    """The result of `evaluate`. Intervals are 95 % percentile bootstrap intervals over users."""

    metrics: tuple[MetricResult, ...]
    """Official metrics, task by task."""
    task_scores: Mapping[str, float]
    """Task -> mean task score, [0, 1]."""
    score: float
    """Mean over tasks of the mean task score."""
    score_low: float
    score_high: float
    strict_score: float
    """As `score`, with malformed responses counted as 0."""
    user_macro_score: float
    """Mean over users of each user's mean task score."""
    strict_rate: float
    """Share of responses that parse OK."""
    parse_counts: Mapping[str, int]
    """Every parser status -> number of responses."""
    truncated: float
    """Share of responses, [0, 1], that were cut at the token limit or end inside their thought."""
    n: int
    n_users: int
    n_unparsable: int
    n_leaks: int
    """Number of questions whose gold is verbatim in the user's own profile (`data.check.leaks_gold`)."""
    metrics_without_leaks: tuple[MetricResult, ...]
    """The official metrics without these questions, for the tasks that have some. They do not replace `metrics`."""
    questions: tuple[QuestionScore, ...]

    def scores(self) -> dict[str, float]:
        """Question key -> task score, for `paired_difference`."""
        return {question.key: question.score for question in self.questions}

    def users(self) -> dict[str, str]:
        """Question key -> user."""
        return {question.key: question.user_id for question in self.questions}

    def tasks(self) -> dict[str, str]:
        """Question key -> task."""
        return {question.key: question.task for question in self.questions}

    def answers(self, task: str) -> dict[str, str]:
        """Question id -> lenient answer of one task, for `write_predictions`."""
        return {question.id: question.answer for question in self.questions if question.task == task}

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


def question_key(record: LampRecord) -> str:
    """`LaMP_2/118`: question ids may repeat across tasks."""
    return f"{record.task}/{record.id}"


def evaluate(
    records: Sequence[LampRecord],
    responses: Mapping[str, str],
    schema: TagSchema,
    *,
    prefilled: bool = False,
    thoughts: bool = True,
    cut: Collection[str] = (),
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> EvalResult:
    """Score one response per record.

    Args:
        responses: `question_key` -> the model's text. The plain id is enough if ids are unique over the records.
        prefilled: the chat template has already written `<think>` (see tags.grammar).
        thoughts: False = the texts are answers without thoughts, as in a predictions file, and are scored whole.
        cut: `question_key` of the responses that the token limit cut.

    Raises:
        TagprError: a record has no gold, or a response is missing or belongs to no record.
    """
    texts = _match(records, responses)
    pairs = zip(records, texts, strict=True)
    questions = tuple(_score_question(record, text, schema, prefilled, thoughts, cut) for record, text in pairs)
    users, tasks = [q.user_id for q in questions], [q.task for q in questions]
    scores = [question.score for question in questions]
    strict = [q.score if q.parse_status == ParseStatus.OK else 0.0 for q in questions]
    counts = Counter(q.parse_status for q in questions)
    score, low, high = task_mean(scores, tasks, users, seed=seed, resamples=resamples)
    leaky = [leaks_gold(record) for record in records]
    metrics: list[MetricResult] = []
    metrics_without_leaks: list[MetricResult] = []
    task_scores: dict[str, float] = {}
    for task in dict.fromkeys(tasks):
        members = [item for item in zip(questions, records, leaky, strict=True) if item[0].task == task]
        clean = [item for item in members if not item[2]]
        task_scores[task] = sum(question.score for question, *_ in members) / len(members)
        metrics += _official(task, members, seed, resamples)
        if 0 < len(clean) < len(members):
            metrics_without_leaks += _official(task, clean, seed, resamples)
    return EvalResult(
        metrics=tuple(metrics),
        task_scores=task_scores,
        score=score,
        score_low=low,
        score_high=high,
        strict_score=mean_over_tasks(strict, tasks),
        user_macro_score=user_macro_mean(scores, users),
        strict_rate=counts[ParseStatus.OK] / len(questions),
        parse_counts={status.value: counts[status.value] for status in ParseStatus},
        truncated=sum(question.truncated for question in questions) / len(questions),
        n=len(questions),
        n_users=len(set(users)),
        n_unparsable=sum(question.unparsable for question in questions),
        n_leaks=sum(leaky),
        metrics_without_leaks=tuple(metrics_without_leaks),
        questions=questions,
    )


def _official(
    task: str, members: Sequence[tuple[QuestionScore, LampRecord, bool]], seed: int, resamples: int
) -> list[MetricResult]:
    """The task's official metrics over (question, record, whether it is leaky)."""
    answers = [question.answer for question, *_ in members]
    golds = [str(record.gold) for _, record, _ in members]
    users = [question.user_id for question, *_ in members]
    return official_metrics(task, answers, golds, users, seed=seed, resamples=resamples)


def _score_question(
    record: LampRecord, text: str, schema: TagSchema, prefilled: bool, thoughts: bool, cut: Collection[str]
) -> QuestionScore:
    answer = final_answer(text, prefilled=prefilled) if thoughts else text.strip()
    unfinished = thoughts and split_thought(text, prefilled=prefilled) is None
    return QuestionScore(
        key=question_key(record),
        id=record.id,
        task=record.task,
        user_id=record.user_id,
        answer=answer,
        score=task_reward(record.task, answer, str(record.gold)),
        parse_status=parse(text, schema, prefilled=prefilled).status.value,
        unparsable=is_unparsable(record.task, answer),
        truncated=unfinished or question_key(record) in cut,
    )


def _match(records: Sequence[LampRecord], responses: Mapping[str, str]) -> list[str]:
    """The response of each record, in order."""
    if not records:
        raise TagprError("evaluation: no records; name a split and tasks that have some")
    for record in records:
        if record.task not in TASKS:
            raise TagprError(f"evaluation: record {record.id!r} has the unknown task {record.task!r}")
        if record.gold is None:
            raise TagprError(
                f"evaluation: {question_key(record)} has no gold (LaMP withholds those of its test split); use dev"
            )
    keys = [question_key(record) for record in records]
    repeated = [key for key, count in Counter(keys).items() if count > 1]
    if repeated:
        raise TagprError(f"evaluation: record {repeated[0]!r} occurs twice; evaluate each question once")
    ids = Counter(record.id for record in records)
    texts: list[str] = []
    used: set[str] = set()
    missing: list[str] = []
    for record, key in zip(records, keys, strict=True):
        response_key = key if key in responses else record.id
        if response_key not in responses:
            missing.append(key)
            continue
        if response_key == record.id and ids[record.id] > 1:
            raise TagprError(
                f"evaluation: id {record.id!r} is in several tasks; key the responses like {key!r} (question_key)"
            )
        used.add(response_key)
        texts.append(responses[response_key])
    if missing:
        raise TagprError(
            f"evaluation: {len(missing)} of {len(records)} questions have no response, first {missing[0]!r}; "
            "an empty text counts as a response, a missing one does not"
        )
    extra = [key for key in responses if key not in used]
    if extra:
        raise TagprError(
            f"evaluation: {len(extra)} responses belong to no record, first {extra[0]!r}; use the same split"
        )
    return texts
