"""Figures of a step by tag: how many responses use it, how many of its steps are sound, how long they are."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from tagpr_rl.tags.constraints import tag_parts
from tagpr_rl.tags.grammar import parse
from tagpr_rl.tags.schema import TagSchema


@dataclass(frozen=True, slots=True)
class TagsSeen:
    """The tagged steps of one well-formed response."""

    steps: tuple[tuple[str, int, bool], ...]
    """(tag, words, without a fault) of each step."""
    parts: dict[str, float]
    """coverage and sound of tags.constraints.tag_parts."""


def tags_seen(response: str, schema: TagSchema, *, prefilled: bool) -> TagsSeen | None:
    """The response's tagged steps; None where it does not parse."""
    trace = parse(response, schema, prefilled=prefilled).trace
    if trace is None:
        return None
    parts = tag_parts(trace, schema)
    steps = zip(trace.steps, parts.faults, strict=True)
    return TagsSeen(
        tuple((step.tag, len(step.text.split()), fault is None) for step, fault in steps),
        {"coverage": parts.coverage, "sound": parts.sound},
    )


def tag_metrics(seen: Sequence[TagsSeen | None], names: Sequence[str]) -> dict[str, float]:
    """`tag/<tag>/use` (share of all responses that have the tag; the malformed have none), and where it is used
    `tag/<tag>/valid` (share of its steps without a fault) and `tag/<tag>/words` (mean words of a step).

    Args:
        seen: `tags_seen` of every response of the step.
        names: the schema's tags.
    """
    users: dict[str, int] = defaultdict(int)
    steps: dict[str, list[tuple[int, bool]]] = defaultdict(list)
    for response in seen:
        for tag in {tag for tag, _, _ in response.steps} if response else ():
            users[tag] += 1
        for tag, words, sound in response.steps if response else ():
            steps[tag].append((words, sound))
    metrics = {f"tag/{name}/use": users[name] / len(seen) for name in names}
    for name, found in steps.items():
        metrics[f"tag/{name}/valid"] = sum(sound for _, sound in found) / len(found)
        metrics[f"tag/{name}/words"] = sum(words for words, _ in found) / len(found)
    return metrics
