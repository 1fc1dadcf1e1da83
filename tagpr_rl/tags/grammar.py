"""The response grammar: one parser and one renderer for `<think> step+ </think> answer`.

    response = "<think>" step+ "</think>" answer
    step     = "<" tag ">" text "</" tag ">"       tag in the schema, no nesting, text not empty
    answer   = text after </think>, stripped, not empty

*Markup* is anything of the shape `<name>` or `</name>` with an ASCII name, also with white space inside the
brackets. All else is plain text: `a < 3`, `<3`, `<br/>`, `<|im_end|>`, look-alike brackets. Names are
case-sensitive, so `<Think>` is unknown markup. A spaced spelling such as `< think >` is markup too, so no text can
contain it, but it is not the tag: the parser calls it unknown. White space around tags, step text and answer does
not matter.
"""

from __future__ import annotations

import re
from enum import Enum

from tagpr_rl.tags.schema import NAME_PATTERN, THINK, TagSchema
from tagpr_rl.tags.thoughts import split_thought
from tagpr_rl.types import Parsed, ParseStatus, Step, TaggedTrace

# Possessive quantifiers: a failed match never backtracks, and none crosses the next "<", so a scan is linear.
_MARKUP = re.compile(rf"<\s*+(/?+)\s*+({NAME_PATTERN}+)\s*+>")
_OPENING_THINK = re.compile(rf"\s*+<{THINK}>")
_THINK_OPENED, _THINK_CLOSES = f"{THINK}>", f"/{THINK}"
_NAME = re.compile(NAME_PATTERN)
_NOT_BLANK = re.compile(r"\S")
_SHOWN = 40  # characters of a response quoted in a reason


class _State(Enum):
    START = 0
    THOUGHT = 1
    STEP = 2


class _Mark(Enum):
    OPEN_THINK = 0
    CLOSE_THINK = 1
    OPEN = 2
    CLOSE = 3
    UNKNOWN = 4


def parse(response: str, schema: TagSchema, *, prefilled: bool = False) -> Parsed:
    """Parse one response. Linear in its length; the verdict is the first fault from the left.

    Args:
        response: the decoded response alone, never the prompt. The caller removes trailing special
            tokens such as `<|im_end|>` first (decode with special tokens skipped): they are plain text
            here and would become part of the answer.
        schema: the tags that exist.
        prefilled: the chat template has already emitted `<think>`, so the thought is open when the
            response begins. A response that opens with one `<think>` of its own is accepted too,
            because some templates and servers give the pre-filled tag back with the response.

    Returns:
        A status with, if and only if OK, the trace; else a reason and the character offset of the fault.
    """
    trace = _parse_plain(response, schema, prefilled)
    if trace is not None:
        return Parsed(ParseStatus.OK, trace, "", 0)
    state, cursor = _State.START, 0
    if prefilled:
        state = _State.THOUGHT
        if opening := _OPENING_THINK.match(response):
            cursor = opening.end()
    steps: list[Step] = []
    tag = ""
    for match in _MARKUP.finditer(response, cursor):
        text = response[cursor : match.start()]
        kind, name = _classify(match, schema)
        if state is _State.STEP:
            if kind is not _Mark.CLOSE or name != tag:
                return _fault_in_step(tag, kind, match)
            stripped = text.strip()
            if not stripped:
                return _fail(ParseStatus.EMPTY_STEP, f"the step <{tag}> holds no text", match.start())
            steps.append(Step(tag, stripped))
            state = _State.THOUGHT
        elif state is _State.THOUGHT:
            if kind is _Mark.CLOSE_THINK and steps and not text.strip():
                return _parse_answer(response, match.end(), steps, schema)
            if kind is not _Mark.OPEN or text.strip():
                return _fault_in_thought(text, cursor, kind, match)
            state, tag = _State.STEP, name
        else:
            if kind is not _Mark.OPEN_THINK or text.strip():
                return _fault_at_start(text, kind, match)
            state = _State.THOUGHT
        cursor = match.end()
    return _fault_at_end(response, cursor, state, tag)


def step_spans(response: str, trace: TaggedTrace) -> list[tuple[int, int]]:
    """Where each step stands in the response: characters [start, end) from its opening to its closing tag.

    `trace` is `parse`'s for this response. There a step's tag and text occur in order and hold no markup, so the
    next occurrence of a step's opening tag is that step's.
    """
    spans = []
    cursor = 0
    for step in trace.steps:
        start = response.index(f"<{step.tag}>", cursor)
        closing = f"</{step.tag}>"
        cursor = response.index(closing, start) + len(closing)
        spans.append((start, cursor))
    return spans


def _parse_plain(response: str, schema: TagSchema, prefilled: bool) -> TaggedTrace | None:
    """The trace of a response in which every "<" begins a tag of its grammar; None for any other, good or bad.

    Most responses of a trained policy are of this kind, and cutting them at "<" is several times faster than
    matching markup. What is None here is for `parse` to judge.
    """
    pieces = response.split("<")
    first = 0
    if not prefilled or (len(pieces) > 1 and pieces[1].startswith(_THINK_OPENED) and not pieces[0].strip()):
        if len(pieces) < 2 or pieces[0].strip() or not pieces[1].startswith(_THINK_OPENED):
            return None
        first, between = 1, pieces[1][len(_THINK_OPENED) :]
    else:
        between = pieces[0]
    # Then: opening and closing tag of each step, and </think> with the answer.
    if len(pieces) < first + 4 or (len(pieces) - first) % 2 or between.strip():
        return None
    steps = []
    tags = schema.by_name
    for at in range(first + 1, len(pieces) - 1, 2):
        tag, _, text = pieces[at].partition(">")
        closing, mark, between = pieces[at + 1].partition(">")
        text = text.strip()
        if not text or tag not in tags or closing != "/" + tag or not mark or between.strip():
            return None
        steps.append(Step(tag, text))
    closing, mark, answer = pieces[-1].partition(">")
    answer = answer.strip()
    if closing != _THINK_CLOSES or not mark or not answer:
        return None
    return TaggedTrace(tuple(steps), answer)


def _classify(match: re.Match[str], schema: TagSchema) -> tuple[_Mark, str]:
    slash, name = match.groups()
    if match.end() - match.start() != len(name) + len(slash) + 2:  # white space inside the brackets
        return _Mark.UNKNOWN, name
    if name == THINK:
        return (_Mark.CLOSE_THINK if slash else _Mark.OPEN_THINK), name
    if name in schema.by_name:
        return (_Mark.CLOSE if slash else _Mark.OPEN), name
    return _Mark.UNKNOWN, name


def _parse_answer(response: str, start: int, steps: list[Step], schema: TagSchema) -> Parsed:
    answer = response[start:].strip()
    if not answer:
        return _fail(ParseStatus.NO_ANSWER, "nothing follows </think>", start)
    if match := _tag_in_answer(response, schema, start):
        reason = f"the answer holds the tag {_shown(match[0])}"
        return _fail(ParseStatus.MARKUP_IN_ANSWER, reason, match.start())
    return Parsed(ParseStatus.OK, TaggedTrace(tuple(steps), answer), "", 0)


def _tag_in_answer(text: str, schema: TagSchema, start: int = 0) -> re.Match[str] | None:
    """The first think tag or schema tag; other markup (a title's `<sub>`) is an answer's own business."""
    for match in _MARKUP.finditer(text, start):
        if match[2] == THINK or match[2] in schema.by_name:
            return match
    return None


def _fail(status: ParseStatus, reason: str, offset: int) -> Parsed:
    return Parsed(status, None, reason, offset)


def _fault_in_step(tag: str, kind: _Mark, match: re.Match[str]) -> Parsed:
    shown, offset = _shown(match[0]), match.start()
    if kind is _Mark.UNKNOWN:
        return _fail(ParseStatus.UNKNOWN_TAG, f"{shown} in the step <{tag}> is no tag of the schema", offset)
    if kind in (_Mark.OPEN, _Mark.OPEN_THINK):
        return _fail(ParseStatus.NESTED, f"{shown} opens inside the step <{tag}>", offset)
    return _fail(ParseStatus.UNCLOSED, f"{shown} comes before </{tag}>", offset)


def _fault_in_thought(text: str, start: int, kind: _Mark, match: re.Match[str]) -> Parsed:
    shown, offset = _shown(match[0]), match.start()
    if text.strip():
        return _text_between_steps(text, start)
    if kind is _Mark.UNKNOWN:
        return _fail(ParseStatus.UNKNOWN_TAG, f"{shown} is no tag of the schema", offset)
    if kind is _Mark.OPEN_THINK:
        return _fail(ParseStatus.NESTED, "<think> opens inside the thought", offset)
    if kind is _Mark.CLOSE_THINK:
        return _fail(ParseStatus.NO_STEPS, "the thought holds no step", offset)
    return _fail(ParseStatus.UNCLOSED, f"{shown} closes a step that is not open", offset)


def _text_between_steps(text: str, start: int) -> Parsed:
    offset = start + _first_not_blank(text)
    return _fail(ParseStatus.TEXT_OUTSIDE, f"text outside the steps: {_shown(text.strip())}", offset)


def _fault_at_start(text: str, kind: _Mark, match: re.Match[str]) -> Parsed:
    if text.strip():
        offset = _first_not_blank(text)
        if kind is _Mark.OPEN_THINK:
            return _fail(ParseStatus.TEXT_OUTSIDE, f"text before <think>: {_shown(text.strip())}", offset)
        return _fail(ParseStatus.NO_THOUGHT, "the response does not open with <think>", offset)
    if kind is _Mark.UNKNOWN:
        reason = f"{_shown(match[0])} stands where <think> must open and is no tag of the schema"
        return _fail(ParseStatus.UNKNOWN_TAG, reason, match.start())
    return _fail(ParseStatus.NO_THOUGHT, f"{_shown(match[0])} stands where <think> must open", match.start())


def _fault_at_end(response: str, cursor: int, state: _State, tag: str) -> Parsed:
    rest = response[cursor:]
    if state is _State.START:
        reason = "the response does not open with <think>" if rest.strip() else "the response is empty"
        return _fail(ParseStatus.NO_THOUGHT, reason, _first_not_blank(rest))
    if state is _State.THOUGHT and rest.strip() and not _may_be_cut_markup(rest.strip()):
        return _text_between_steps(rest, cursor)
    where = f"inside the step <{tag}>" if state is _State.STEP else "inside the thought"
    return _fail(ParseStatus.TRUNCATED, f"the response ends {where}", len(response))


def _may_be_cut_markup(text: str) -> bool:
    """Whether `text` is the beginning of markup that the length limit cut: `<`, `</`, `<concl`."""
    body = text[1:].removeprefix("/")
    return text[0] == "<" and (not body or _NAME.fullmatch(body) is not None)


def _first_not_blank(text: str) -> int:
    match = _NOT_BLANK.search(text)
    return match.start() if match else 0


def _shown(text: str) -> str:
    return repr(text if len(text) <= _SHOWN else text[:_SHOWN] + "...")


def render(trace: TaggedTrace, *, schema: TagSchema | None = None, prefilled: bool = False) -> str:
    """Write a trace as a response; `parse(render(t), schema).trace == t`, one step a line.

    Args:
        trace: what to write.
        schema: with it, tags are checked against the schema, and the answer may hold markup that is no
            tag of it (a title's `<sub>`), as in `parse`. Without it, the answer may hold no markup at all.
        prefilled: leave the opening `<think>` to the chat template.

    Raises:
        ValueError: the trace cannot be written so that it parses back to itself.
    """
    if not trace.steps:
        raise ValueError("a trace needs at least one step")
    lines = [] if prefilled else [f"<{THINK}>"]
    for index, step in enumerate(trace.steps):
        where = f"step {index}"
        if not _NAME.fullmatch(step.tag) or step.tag == THINK:
            raise ValueError(f"{where}: {_shown(step.tag)} is no tag name")
        if schema is not None and step.tag not in schema.by_name:
            raise ValueError(f"{where}: {_shown(step.tag)} is no tag of the schema {schema.version!r}")
        _check_text(step.text, where)
        if is_markup(step.text):
            raise ValueError(f"{where}: the text holds markup; neutralise() it first")
        lines.append(f"<{step.tag}>{step.text}</{step.tag}>")
    _check_text(trace.answer, "answer")
    if is_markup(trace.answer) if schema is None else _tag_in_answer(trace.answer, schema):
        raise ValueError("answer: the text holds markup; neutralise() it first")
    return "\n".join([*lines, f"</{THINK}>", trace.answer])


def _check_text(text: str, where: str) -> None:
    if not text.strip():
        raise ValueError(f"{where}: empty text")
    if text != text.strip():
        raise ValueError(f"{where}: the text has white space around it; strip() it first")


def is_markup(text: str) -> bool:
    """Whether `text` holds markup anywhere (the module docstring says what markup is)."""
    return _MARKUP.search(text) is not None


def neutralise(text: str) -> str:
    """Return `text` with the `<` of every markup replaced by `\\u2039` (single left angle quotation mark).

    The result holds no markup; text without markup comes back unchanged; idempotent. Two harmless halves
    (`"<con"` and `"clude>"`) can join to markup, so neutralise the text *after* joining its parts.
    """
    return _MARKUP.sub(lambda match: "\u2039" + match[0][1:], text)


def final_answer(response: str, *, prefilled: bool = False) -> str:
    """The text after the thought, stripped; all of it without a thought; "" while a thought is open.

    A response whose thought was cut has no answer, as a server's reasoning parser has it. Lenient, for the official
    metrics only (a response is scored there whatever its format). Never a reward: rewards use `parse`.
    `prefilled` as in `thoughts.split_thought`.
    """
    parts = split_thought(response, prefilled=prefilled)
    return parts[1].strip() if parts is not None else ""
