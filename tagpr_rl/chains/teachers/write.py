"""Makes one chain per request: asks the teacher, cuts the steps, labels them and checks the form."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from tagpr_rl.chains.agreement import Agreement, compare
from tagpr_rl.chains.client.chat import Reply, ReplyStatus
from tagpr_rl.chains.keep import NOT_OK, KeepRules, Rejection
from tagpr_rl.chains.labellers.label import Labeller, read_labels
from tagpr_rl.chains.segment import reassembles, segment, split_answer
from tagpr_rl.chains.teachers.interface import Teacher, TeacherRequest
from tagpr_rl.prompts.prompt import clean
from tagpr_rl.tags.constraints import tag_score
from tagpr_rl.tags.grammar import parse, render
from tagpr_rl.tags.schema import TagSchema
from tagpr_rl.types import ParseStatus, Step, TaggedTrace, TagprError

Tags = tuple[str, ...]
TRIAL = 32
"""Requests that are asked first: if no reply is a chain, no more are paid for."""


@dataclass(frozen=True, slots=True)
class Draft:
    """A teacher's text after segmentation, labelling and the form checks."""

    request: TeacherRequest
    text: str
    """The teacher's text as it came."""
    reason: Rejection | None
    detail: str = ""
    """Details of the reason."""
    steps: tuple[str, ...] = ()
    """The pieces of the thought, without markup. Joined they are the whole thought."""
    tags: Tags = ()
    response: str = ""
    """The rendered chain, which parses OK under the schema. Empty if the form was rejected, except for
    LOW_TAG_SCORE."""
    answer: str = ""


@dataclass(frozen=True, slots=True)
class Batch:
    """The result of `write_chains`: one `Draft` per request, in order."""

    items: tuple[Draft, ...]
    agreement: Agreement | None
    """None if chains are labelled once."""


def write_chains(
    requests: Sequence[TeacherRequest], teacher: Teacher, labeller: Labeller, schema: TagSchema, rules: KeepRules
) -> Batch:
    """Make one chain per request and check its form, but not its answer.

    Only complete replies are labelled, and only chains with valid labels are labelled a second time. TagprError if the
    teacher or the labeller does not return one reply per request, or if none of the first `TRIAL` replies has a form.
    """
    items = _ask(requests[:TRIAL], teacher, rules)
    _require_a_use(items, teacher)
    items += _ask(requests[TRIAL:], teacher, rules) if requests[TRIAL:] else []
    items = _label(items, labeller, schema, 0)
    first = {i: item.tags for i, item in enumerate(items) if item.reason is None}
    agreement = None
    if rules.label_twice:
        items = _label(items, labeller, schema, 1)
        both = {i: (tags, items[i].tags) for i, tags in first.items() if items[i].reason is None}
        agreement = compare(both.values(), schema.names)
        for i, (one, two) in both.items():
            items[i] = _agree(items[i], one, two, rules)
    return Batch(tuple(_form(item, schema, rules) for item in items), agreement)


def _ask(requests: Sequence[TeacherRequest], teacher: Teacher, rules: KeepRules) -> list[Draft]:
    replies = teacher.generate(requests)
    _one_each("the teacher", len(replies), len(requests), "requests")
    return [_segment(request, reply, rules) for request, reply in zip(requests, replies, strict=True)]


def _require_a_use(items: Sequence[Draft], teacher: Teacher) -> None:
    """TagprError if the first `TRIAL` replies came and none is a chain: the rest would be paid for in vain."""
    reasons = Counter(item.reason for item in items)
    if len(items) < TRIAL or reasons[None] or reasons.keys() & {NOT_OK[ReplyStatus.BUDGET], NOT_OK[ReplyStatus.FAILED]}:
        return
    counts = ", ".join(f"{reason.value} {n}" for reason, n in reasons.most_common() if reason is not None)
    text = " ".join(items[0].text.split())
    raise TagprError(
        f"none of the first {TRIAL} replies of the teacher {teacher.name} is a chain ({counts}); the first: "
        f"{text[:200]!r}. No more were asked for, and these are kept. Check the model's name, its chat template and "
        "extra_body (a thinking model needs more max_tokens), then run again"
    )


def _one_each(who: str, replies: int, requests: int, what: str) -> None:
    if replies != requests:
        raise TagprError(f"{who} gave {replies} replies for {requests} {what}; one each is needed")


def _segment(request: TeacherRequest, reply: Reply, rules: KeepRules) -> Draft:
    if reply.status is not ReplyStatus.OK:
        return Draft(request, reply.text, NOT_OK[reply.status], reply.detail)
    parts = split_answer(reply.text)
    if parts is None:
        empty = not reply.text.strip()
        return Draft(request, reply.text, Rejection.TEACHER_EMPTY if empty else Rejection.NO_ANSWER)
    # Clean after splitting, so that a native <think> is recognised, and before segmenting, so that reassembly is exact.
    thought, answer = clean(parts[0]), clean(parts[1])
    steps = segment(thought, rules.min_steps, rules.max_steps)
    if not reassembles(steps, thought) or not reassembles([answer], answer):
        return Draft(request, reply.text, Rejection.REASSEMBLY)
    if len(steps) < rules.min_steps:
        return Draft(request, reply.text, Rejection.TOO_FEW_STEPS, f"{len(steps)} steps")
    return Draft(request, reply.text, None, steps=tuple(steps), answer=answer)


def _label(items: Sequence[Draft], labeller: Labeller, schema: TagSchema, pass_number: int) -> list[Draft]:
    """The items with the tags of one pass, or with the reason why there are none. Rejected items do not change."""
    chains = [item.steps for item in items if item.reason is None]
    replies = labeller.label(chains, schema, pass_number) if chains else []
    _one_each("the labeller", len(replies), len(chains), "chains")
    rest = iter(replies)
    return [_with_labels(item, next(rest), schema) if item.reason is None else item for item in items]


def _with_labels(item: Draft, reply: Reply, schema: TagSchema) -> Draft:
    if reply.status is ReplyStatus.BUDGET:
        return replace(item, reason=Rejection.NOT_LABELLED, detail=reply.detail)
    if reply.status is not ReplyStatus.OK:
        return replace(item, reason=Rejection.LABELLER_FAILED, detail=f"{reply.status.value}: {reply.detail}")
    tags = read_labels(reply.text, len(item.steps), schema)
    if tags is None:
        return replace(item, reason=Rejection.BAD_LABELS, detail=reply.text[:200])
    return replace(item, tags=tags)


def _agree(item: Draft, first: Tags, second: Tags, rules: KeepRules) -> Draft:
    """The item with the first pass's tags, rejected if the two passes agree on too few steps."""
    same = sum(a == b for a, b in zip(first, second, strict=True))
    if same < rules.min_agreement * len(first) - 1e-9:
        return replace(
            item, tags=first, reason=Rejection.LABELS_DISAGREE, detail=f"same tag at {same} of {len(first)} steps"
        )
    return replace(item, tags=first)


def _form(item: Draft, schema: TagSchema, rules: KeepRules) -> Draft:
    """The item with its rendered response, which is parsed back as a check."""
    if item.reason is not None:
        return item
    texts = [step.strip() for step in item.steps]
    trace = TaggedTrace(tuple(Step(tag, text) for tag, text in zip(item.tags, texts, strict=True)), item.answer)
    try:
        response = render(trace)
    except ValueError as error:  # a trace that cannot be written (an answer with markup)
        return replace(item, reason=Rejection.UNPARSABLE, detail=str(error))
    parsed = parse(response, schema)
    if parsed.status is not ParseStatus.OK or parsed.trace != trace:
        return replace(item, reason=Rejection.UNPARSABLE, detail=parsed.reason)
    low = tag_score(trace, schema) < rules.min_tag_score
    return replace(item, response=response, reason=Rejection.LOW_TAG_SCORE if low else None)


def answer_of(reply: Reply) -> str | Rejection:
    """The answer in a reply; "" if the text has none; the reason if there is no text."""
    if reply.status is not ReplyStatus.OK:
        return NOT_OK[reply.status]
    parts = split_answer(reply.text)
    return clean(parts[1]) if parts else ""


def text_for_file(text: str) -> str:
    """`text` with "?" for what UTF-8 cannot encode (half a surrogate pair)."""
    return text.encode("utf-8", "replace").decode("utf-8")
