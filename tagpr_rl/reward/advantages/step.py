"""Credit per tagged step (process supervision): each step's own reward, and what it adds to its tokens' advantage.

What a response's reward says of its steps is split. Soundness and repetition are a step's own doing, so they are paid
on the step's tokens. What the chain lacks (a required tag) has no tokens, so coverage stays with the response, next
to the task reward and PRMU. (The split is ours.)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tagpr_rl.reward.advantages.group import group_advantages
from tagpr_rl.reward.repetition import step_penalties
from tagpr_rl.reward.spans import tokens_of
from tagpr_rl.tags.constraints import tag_parts
from tagpr_rl.tags.grammar import parse, step_spans
from tagpr_rl.tags.schema import TagSchema
from tagpr_rl.tags.words import plain_tokens

PARTS = "step_parts"
"""Key of a response's extra fields under which its worker puts `parts_row`."""


@dataclass(frozen=True, slots=True)
class StepPart:
    """What one tagged step earns by itself."""

    tag: str
    start: int
    end: int
    """The step's characters [start, end) in the response, tags included; tokens after `to_tokens`."""
    sound: bool
    """No fault (tags.constraints)."""
    repetition: float
    """[-1, 0]: minus the share of its 4-grams that have occurred before."""


@dataclass(frozen=True, slots=True)
class ResponseParts:
    """A response's steps; none where it is malformed."""

    coverage: float
    """[0, 1]: the required tags that are there; 0 where malformed."""
    steps: tuple[StepPart, ...]


def response_parts(response: str, schema: TagSchema, *, prefilled: bool = False) -> ResponseParts:
    """The parts of a decoded response. A malformed one has none, and its reward stays whole."""
    trace = parse(response, schema, prefilled=prefilled).trace
    if trace is None:
        return ResponseParts(0.0, ())
    texts = [step.text for step in trace.steps]
    plain = plain_tokens(texts)
    parts = tag_parts(trace, schema)
    steps = zip(trace.steps, step_spans(response, trace), parts.faults, step_penalties(texts, plain), strict=True)
    return ResponseParts(
        parts.coverage, tuple(StepPart(step.tag, *span, fault is None, rep) for step, span, fault, rep in steps)
    )


def to_tokens(parts: ResponseParts, starts: Sequence[int]) -> ResponseParts:
    """The same parts with spans in tokens; `starts` is `spans.token_starts` of the response's ids `[T]`."""
    spans = tokens_of(starts, [(step.start, step.end) for step in parts.steps])
    steps = [
        StepPart(step.tag, first, end, step.sound, step.repetition)
        for step, (first, end) in zip(parts.steps, spans, strict=True)
    ]
    return ResponseParts(parts.coverage, tuple(steps))


def step_reward(step: StepPart, alpha: float, gamma: float) -> float:
    """A step's reward in [-1, 0]: its faults and its repetition, weighted as in the composite reward.

    `(alpha * (sound - 1) + gamma * repetition) / (alpha + gamma)`. A sound step without repetition earns 0, the most
    there is, and so do all of them: no step is worth writing for its own sake.
    """
    return (alpha * (step.sound - 1.0) + gamma * step.repetition) / (alpha + gamma)


def response_reward(
    total: float, tag: float, repetition: float, parts: ResponseParts, alpha: float, gamma: float
) -> float:
    """What stays with the response: `total` with coverage for `tag`, and without the repetition of parsed steps."""
    if not parts.steps:
        return total
    return total + alpha * (parts.coverage - tag) - gamma * repetition


def step_advantages(rewards: Sequence[Sequence[float]], *, norm_std: bool, following: bool) -> list[list[float]]:
    """Step advantages of one group: step rewards `[G][K_i]` -> `[G][K_i]`.

    As DeepSeekMath's process supervision (arXiv 2402.03300, section 4.1.3), rewards are normalised over all steps of
    all responses of the group: `(r - mean) / (std + eps)`, here with the sample deviation, as for responses, or
    centred alone (`norm_std=False`). There a token's advantage is the sum over its own and the *following* steps.
    That sum grows with the number of steps left, so a chain of ordinary steps gains by being longer wherever some
    other step of the group is bad. Without `following`, a step's normalised reward lands on its own tokens alone,
    and the number of steps cannot matter: the default.
    """
    flat = group_advantages([reward for steps in rewards for reward in steps], norm_std=norm_std)
    found = []
    at = 0
    for steps in rewards:
        own = flat[at : at + len(steps)]
        at += len(steps)
        found.append([sum(own[k:]) for k in range(len(own))] if following else own)
    return found


def parts_row(parts: ResponseParts) -> dict[str, Any]:
    """The parts as plain values, for a response's extra fields."""
    steps = [[step.tag, step.start, step.end, step.sound, step.repetition] for step in parts.steps]
    return {"coverage": parts.coverage, "steps": steps}


def parts_of(row: Mapping[str, Any]) -> ResponseParts:
    """Inverse of `parts_row`."""
    steps = tuple(
        StepPart(str(tag), int(start), int(end), bool(sound), float(repetition))
        for tag, start, end, sound, repetition in row["steps"]
    )
    return ResponseParts(float(row["coverage"]), steps)
