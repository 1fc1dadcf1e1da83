"""One response, parsed once: what every component sees of it, and its tagged steps for credit and monitoring."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tagpr_rl.reward.repetition import step_penalties
from tagpr_rl.reward.spans import tokens_of
from tagpr_rl.tags.constraints import TagParts, tag_parts
from tagpr_rl.tags.grammar import parse, step_spans
from tagpr_rl.tags.schema import TagSchema
from tagpr_rl.tags.words import Plain, plain_tokens
from tagpr_rl.types import ParseStatus, TaggedTrace


@dataclass(frozen=True, slots=True)
class Response:
    """What a reward component may look at. A user's function gets one of these and returns a number in [-1, 1]."""

    text: str
    """The decoded response, tags included, without special tokens."""
    task: str
    """LaMP task name."""
    gold: str
    """The gold answer."""
    status: ParseStatus
    trace: TaggedTrace | None
    """Steps and answer; None if and only if the response is malformed."""
    prmu: float
    """PRMU's score in [0, 1]; 0 if PRMU gave none."""
    tags: TagParts | None
    """How far the chain meets the tag schema; None if the response is malformed."""
    plain: Plain | None
    """Tokens of the steps' texts (`tags.words.plain_tokens`); None if the texts are not plain ASCII."""


@dataclass(frozen=True, slots=True)
class StepPart:
    """What one tagged step earns by itself."""

    tag: str
    start: int
    end: int
    """The step's characters [start, end) in the response, tags included; tokens after `to_tokens`."""
    sound: bool
    """The step has no fault (tags.constraints)."""
    repetition: float
    """In [-1, 0]: minus the share of its 4-grams that occurred before."""
    words: int = 0
    """Words of its text, split at white space."""


@dataclass(frozen=True, slots=True)
class ResponseParts:
    """A response's steps; a malformed response has none."""

    coverage: float
    """In [0, 1]: share of the required tags that are there; 0 if the response is malformed."""
    steps: tuple[StepPart, ...]

    @property
    def sound(self) -> float:
        """In [0, 1]: share of the steps without a fault; 0 without steps."""
        return sum(step.sound for step in self.steps) / len(self.steps) if self.steps else 0.0

    def as_row(self) -> dict[str, Any]:
        """The parts as plain values, for a response's extra fields."""
        steps = [[s.tag, s.start, s.end, s.sound, s.repetition, s.words] for s in self.steps]
        return {"coverage": self.coverage, "steps": steps}

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> ResponseParts:
        """Inverse of `as_row`."""
        return cls(float(row["coverage"]), tuple(StepPart(*step) for step in row["steps"]))


def read_response(
    text: str, schema: TagSchema, *, task: str = "", gold: str = "", prmu: float = 0.0, prefilled: bool = False
) -> Response:
    """Parse and judge a response. This is the one place of the reward that calls the parser.

    Args:
        text: the decoded response without special tokens.
        prefilled: see `tags.grammar.parse`.
    """
    parsed = parse(text, schema, prefilled=prefilled)
    trace = parsed.trace
    if trace is None:
        return Response(text, task, gold, parsed.status, None, prmu, None, None)
    plain = plain_tokens([step.text for step in trace.steps])
    return Response(text, task, gold, parsed.status, trace, prmu, tag_parts(trace, schema, plain), plain)


def response_parts(response: Response) -> ResponseParts:
    """The tagged steps of a response, each with its characters and with what it earns by itself."""
    trace, tags = response.trace, response.tags
    if trace is None or tags is None:
        return ResponseParts(0.0, ())
    penalties = step_penalties([step.text for step in trace.steps], response.plain)
    columns = zip(trace.steps, step_spans(response.text, trace), tags.faults, penalties, strict=True)
    return ResponseParts(
        tags.coverage,
        tuple(
            StepPart(step.tag, *span, fault is None, penalty, len(step.text.split()))
            for step, span, fault, penalty in columns
        ),
    )


def to_tokens(parts: ResponseParts, starts: Sequence[int]) -> ResponseParts:
    """The same parts with spans in tokens; `starts` is `spans.token_starts` of the response's ids `[T]`."""
    spans = tokens_of(starts, [(step.start, step.end) for step in parts.steps])
    steps = zip(parts.steps, spans, strict=True)
    return ResponseParts(parts.coverage, tuple(replace(step, start=first, end=end) for step, (first, end) in steps))
