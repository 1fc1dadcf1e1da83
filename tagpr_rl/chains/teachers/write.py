"""One chain per request: ask, segment, label (twice), check the form. Judging the answer comes after (build.py)."""

from __future__ import annotations

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


@dataclass(frozen=True, slots=True)
class Written:
    """A teacher's text after segmentation, labelling and the form checks."""

    request: TeacherRequest
    text: str
    """As the teacher wrote it."""
    reason: Rejection | None
    detail: str = ""
    """More on the reason, in words."""
    steps: tuple[str, ...] = ()
    """The thought in pieces, markup broken; joined, they are the thought."""
    tags: Tags = ()
    response: str = ""
    """Rendered; parses OK under the schema. Empty where the form is at fault (but for LOW_TAG_SCORE)."""
    answer: str = ""


@dataclass(frozen=True, slots=True)
class Batch:
    """What `write_chains` made: one `Written` per request, in order."""

    items: tuple[Written, ...]
    agreement: Agreement | None
    """None when chains are labelled once."""


def write_chains(
    requests: Sequence[TeacherRequest], teacher: Teacher, labeller: Labeller, schema: TagSchema, rules: KeepRules
) -> Batch:
    """Ask, segment, label and check the form (not the answer) of one chain per request.

    Only whole replies are labelled, and a second time only where the first labels are valid. Raises TagprError when
    a teacher or labeller breaks its contract (another number of replies).
    """
    replies = teacher.generate(requests)
    _one_each("the teacher", len(replies), len(requests), "requests")
    items = [_segmented(request, reply, rules) for request, reply in zip(requests, replies, strict=True)]
    items = _labelled(items, labeller, schema, 0)
    first = {i: item.tags for i, item in enumerate(items) if item.reason is None}
    agreement = None
    if rules.label_twice:
        items = _labelled(items, labeller, schema, 1)
        both = {i: (tags, items[i].tags) for i, tags in first.items() if items[i].reason is None}
        agreement = compare(both.values(), schema.names)
        for i, (one, two) in both.items():
            items[i] = _agreed(items[i], one, two, rules)
    return Batch(tuple(_formed(item, schema, rules) for item in items), agreement)


def _one_each(who: str, got: int, wanted: int, what: str) -> None:
    if got != wanted:
        raise TagprError(f"{who} gave {got} replies for {wanted} {what}; one each is needed")


def _segmented(request: TeacherRequest, reply: Reply, rules: KeepRules) -> Written:
    if reply.status is not ReplyStatus.OK:
        return Written(request, reply.text, NOT_OK[reply.status], reply.detail)
    parts = split_answer(reply.text)
    if parts is None:
        empty = not reply.text.strip()
        return Written(request, reply.text, Rejection.TEACHER_EMPTY if empty else Rejection.NO_ANSWER)
    # After splitting, so that a native <think> is recognised; before segmenting, so that reassembly is exact.
    thought, answer = clean(parts[0]), clean(parts[1])
    steps = segment(thought, rules.min_steps, rules.max_steps)
    if not reassembles(steps, thought) or not reassembles([answer], answer):
        return Written(request, reply.text, Rejection.REASSEMBLY)
    if len(steps) < rules.min_steps:
        return Written(request, reply.text, Rejection.TOO_FEW_STEPS, f"{len(steps)} steps")
    return Written(request, reply.text, None, steps=tuple(steps), answer=answer)


def _labelled(items: Sequence[Written], labeller: Labeller, schema: TagSchema, pass_number: int) -> list[Written]:
    """The items with the tags of one pass, or with the reason why there are none; rejected ones as they are."""
    asked = [item for item in items if item.reason is None]
    replies = labeller.label([item.steps for item in asked], schema, pass_number) if asked else []
    _one_each("the labeller", len(replies), len(asked), "chains")
    ready = iter(replies)
    return [_with_labels(item, next(ready), schema) if item.reason is None else item for item in items]


def _with_labels(item: Written, reply: Reply, schema: TagSchema) -> Written:
    if reply.status is ReplyStatus.BUDGET:
        return replace(item, reason=Rejection.NOT_LABELLED, detail=reply.detail)
    if reply.status is not ReplyStatus.OK:
        return replace(item, reason=Rejection.LABELLER_FAILED, detail=f"{reply.status.value}: {reply.detail}")
    tags = read_labels(reply.text, len(item.steps), schema)
    if tags is None:
        return replace(item, reason=Rejection.BAD_LABELS, detail=reply.text[:200])
    return replace(item, tags=tags)


def _agreed(item: Written, first: Tags, second: Tags, rules: KeepRules) -> Written:
    """The first pass's tags stand where the two agree on enough steps."""
    same = sum(a == b for a, b in zip(first, second, strict=True))
    if same < rules.min_agreement * len(first) - 1e-9:
        return replace(
            item, tags=first, reason=Rejection.LABELS_DISAGREE, detail=f"same tag at {same} of {len(first)} steps"
        )
    return replace(item, tags=first)


def _formed(item: Written, schema: TagSchema, rules: KeepRules) -> Written:
    """The item with its response rendered and parsed back."""
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
    """The answer in a reply, "" where the text has none, or why there is no text."""
    if reply.status is not ReplyStatus.OK:
        return NOT_OK[reply.status]
    parts = split_answer(reply.text)
    return clean(parts[1]) if parts else ""


def text_for_file(text: str) -> str:
    """`text` with what UTF-8 cannot write (half a surrogate pair) as "?"."""
    return text.encode("utf-8", "replace").decode("utf-8")
