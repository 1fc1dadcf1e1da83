"""Records and prompts -> tagged chains for SFT, with every rejection counted by its reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from tagpr_rl.chains.keep import ANSWER_REASONS, KeepRules, Rejection, judge_answer
from tagpr_rl.chains.label import Labeller, cohen_kappa, read_labels
from tagpr_rl.chains.segment import segment, split_answer
from tagpr_rl.chains.teacher import Teacher, TeacherRequest
from tagpr_rl.tags.constraints import tag_score
from tagpr_rl.tags.grammar import neutralise, parse, render
from tagpr_rl.tags.schema import TagSchema
from tagpr_rl.types import LampRecord, ParseStatus, Prompt, Step, TaggedTrace, TagprError


@dataclass(frozen=True, slots=True)
class ChainRow:
    """One tagged chain: an SFT example."""

    record_id: str
    task: str
    user_id: str
    messages: tuple[Mapping[str, str], ...]
    response: str
    """Rendered by tags.grammar.render; parses OK under the schema."""
    answer: str
    correct: bool
    """By `judge_answer`; False only where `wrong_fraction` let a wrong chain in."""
    item_ids: tuple[str, ...]
    """Profile items that the teacher saw; empty = without a profile."""
    sample: int


@dataclass(frozen=True, slots=True)
class RejectedChain:
    """A chain that was not kept, and why."""

    record_id: str
    task: str
    user_id: str
    sample: int
    reason: Rejection
    text: str
    """The teacher's text."""


@dataclass(frozen=True, slots=True)
class ChainSet:
    """What `build_chains` made."""

    rows: tuple[ChainRow, ...]
    rejected: tuple[RejectedChain, ...]
    wrong: tuple[ChainRow, ...]
    """Well-formed chains with a wrong answer, kept in `rows` or not: PRMU's `wrong` pairs draw on them."""
    counts: Mapping[str, int]
    """asked, kept, kept_wrong, and one key for each `Rejection`."""
    kappa: float | None
    """Cohen's kappa over all steps labelled twice; None when `label_twice` is off."""


@dataclass(frozen=True, slots=True)
class Written:
    """A teacher's text after segmentation, labelling and the form checks."""

    request: TeacherRequest
    text: str
    reason: Rejection | None
    response: str = ""
    answer: str = ""


def write_chains(
    requests: Sequence[TeacherRequest], teacher: Teacher, labeller: Labeller, schema: TagSchema, rules: KeepRules
) -> tuple[list[Written], float | None]:
    """Ask, segment, label and check the form (not the answer) of one chain per request; kappa when labelled twice."""
    texts = teacher.generate(requests)
    if len(texts) != len(requests):
        raise TagprError(f"the teacher gave {len(texts)} texts for {len(requests)} requests; one each is needed")
    parts = [_segmented(text, rules) for text in texts]
    chains = [part[0] for part in parts if not isinstance(part, Rejection)]
    replies = labeller.label(chains, schema)
    twice = labeller.label(chains, schema) if rules.label_twice else replies
    if not len(replies) == len(twice) == len(chains):
        raise TagprError(f"the labeller gave {len(replies)} replies for {len(chains)} chains; one each is needed")
    labels = iter(zip(replies, twice, strict=True))
    done: list[Written] = []
    pairs: list[tuple[str, str]] = []
    for request, text, part in zip(requests, texts, parts, strict=True):
        if isinstance(part, Rejection):
            done.append(Written(request, text, part))
            continue
        steps, answer = part
        first, second = (read_labels(reply, len(steps), schema) for reply in next(labels))
        if first is None or second is None:
            done.append(Written(request, text, Rejection.BAD_LABELS))
            continue
        pairs += zip(first, second, strict=True)
        trace = TaggedTrace(tuple(Step(t, s.strip()) for t, s in zip(first, steps, strict=True)), answer)
        reason = Rejection.LABELS_DISAGREE if first != second else _form_fault(trace, schema, rules)
        response = render(trace) if reason in (None, Rejection.LOW_TAG_SCORE) else ""
        done.append(Written(request, text, reason, response, answer))
    kappa = None
    if rules.label_twice and pairs:
        kappa = cohen_kappa([a for a, _ in pairs], [b for _, b in pairs])
    return done, kappa


def _segmented(text: str, rules: KeepRules) -> tuple[list[str], str] | Rejection:
    parts = split_answer(text)
    if parts is None:
        return Rejection.NO_ANSWER
    # After splitting, so that a native <think> is recognised; before segmenting, so that reassembly is exact.
    thought, answer = neutralise(parts[0]), neutralise(parts[1])
    steps = segment(thought, rules.min_steps)
    return (steps, answer) if len(steps) >= rules.min_steps else Rejection.TOO_FEW_STEPS


def _form_fault(trace: TaggedTrace, schema: TagSchema, rules: KeepRules) -> Rejection | None:
    try:
        parsed = parse(render(trace), schema)
    except ValueError:  # render refuses a trace that cannot be written (an answer with markup)
        return Rejection.UNPARSABLE
    if parsed.status is not ParseStatus.OK or parsed.trace != trace:
        return Rejection.UNPARSABLE
    return None if tag_score(trace, schema) >= rules.min_tag_score else Rejection.LOW_TAG_SCORE


def build_chains(
    records: Sequence[LampRecord],
    prompts: Sequence[Prompt],
    teacher: Teacher,
    labeller: Labeller,
    schema: TagSchema,
    rules: KeepRules,
    *,
    samples: int = 1,
    seed: int = 0,
    empty_prompts: Mapping[str, Prompt] | None = None,
) -> ChainSet:
    """Tagged chains for `records[i]` read through `prompts[i]`, `samples` each.

    `empty_prompts`: record id -> its prompt without a profile, for generation tasks' "better than without the
    profile" rule (without it that answer counts as scoring 0). `seed` decides which wrong chains
    `wrong_fraction` lets in. Order of rows = order of records. Raises TagprError when records and prompts do not
    belong together.
    """
    if len(records) != len(prompts):
        raise TagprError(f"chains: {len(records)} records but {len(prompts)} prompts; give one prompt per record")
    for record, prompt in zip(records, prompts, strict=True):
        if prompt.record_id != record.id:
            raise TagprError(f"chains: record {record.id!r} came with the prompt of {prompt.record_id!r}; align them")
    requests = [
        TeacherRequest(record, prompt, sample)
        for record, prompt in zip(records, prompts, strict=True)
        for sample in range(samples)
    ]
    written, kappa = write_chains(requests, teacher, labeller, schema, rules)
    plain = _answers_without_profile(requests, empty_prompts or {}, teacher)
    judged = [_judged(item, rules, plain) for item in written]
    judged = _without_repeats(judged)
    wrong = [i for i, (item, reason) in enumerate(judged) if reason in ANSWER_REASONS and item.response]
    right = sum(reason is None for _, reason in judged)
    room = int(rules.wrong_fraction / (1 - rules.wrong_fraction) * right + 0.5)
    let_in = set(Random(f"wrong/{seed}").sample(wrong, min(room, len(wrong))))
    rows, rejected, counts = [], [], Counter[str]()
    for i, (item, reason) in enumerate(judged):
        if reason is None or i in let_in:
            rows.append(_row(item, reason is None))
        else:
            rejected.append(_rejected(item, reason))
            counts[reason.value] += 1
    tally = {"asked": len(requests), "kept": len(rows), "kept_wrong": len(let_in)}
    tally |= {reason.value: counts[reason.value] for reason in Rejection}
    wrong_rows = tuple(_row(judged[i][0], False) for i in wrong)
    return ChainSet(tuple(rows), tuple(rejected), wrong_rows, tally, kappa)


def _answers_without_profile(
    requests: Sequence[TeacherRequest], prompts: Mapping[str, Prompt], teacher: Teacher
) -> dict[str, str]:
    """Record id -> the teacher's answer without the profile, where a prompt for it was given."""
    first = {r.record.id: r.record for r in requests if r.record.id in prompts}
    asked = [TeacherRequest(record, prompts[record_id]) for record_id, record in first.items()]
    answers = {}
    for request, text in zip(asked, teacher.generate(asked) if asked else [], strict=True):
        parts = split_answer(text)
        answers[request.record.id] = parts[1] if parts else ""
    return answers


def _judged(item: Written, rules: KeepRules, plain: Mapping[str, str]) -> tuple[Written, Rejection | None]:
    if item.reason is not None:
        return item, item.reason
    record = item.request.record
    return item, judge_answer(rules, record, item.answer, plain.get(record.id))


def _without_repeats(
    judged: Sequence[tuple[Written, Rejection | None]],
) -> list[tuple[Written, Rejection | None]]:
    """Only the first of equal responses to one prompt stays."""
    seen: set[Any] = set()
    result = []
    for item, reason in judged:
        key = (item.request.record.id, item.request.prompt.item_ids, item.response)
        repeat = bool(item.response) and key in seen
        seen.add(key)
        result.append((item, Rejection.DUPLICATE if repeat else reason))
    return result


def _row(item: Written, correct: bool) -> ChainRow:
    request = item.request
    record = request.record
    return ChainRow(
        record.id,
        record.task,
        record.user_id,
        request.prompt.messages,
        item.response,
        item.answer,
        correct,
        request.prompt.item_ids,
        request.sample,
    )


def _rejected(item: Written, reason: Rejection) -> RejectedChain:
    record = item.request.record
    return RejectedChain(record.id, record.task, record.user_id, item.request.sample, reason, item.text)
