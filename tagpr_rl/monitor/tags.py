"""Metrics of a step by tag: how many responses use it, how many of its steps are sound, how long they are."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from tagpr_rl.reward.response import ResponseParts, StepPart


def tag_metrics(responses: Sequence[ResponseParts], names: Sequence[str]) -> dict[str, float]:
    """`tag/<tag>/use`, and for tags in use `tag/<tag>/valid` and `tag/<tag>/words`.

    `use` is the share of all responses that have the tag; malformed responses have none. `valid` is the share of the
    tag's steps without a fault, `words` the mean number of words of such a step.

    Args:
        responses: the tagged steps of every response of the step.
        names: the schema's tags.
    """
    users: dict[str, int] = defaultdict(int)
    steps: dict[str, list[StepPart]] = defaultdict(list)
    for response in responses:
        for tag in {step.tag for step in response.steps}:
            users[tag] += 1
        for step in response.steps:
            steps[step.tag].append(step)
    metrics = {f"tag/{name}/use": users[name] / len(responses) for name in names}
    for name, own in steps.items():
        metrics[f"tag/{name}/valid"] = sum(step.sound for step in own) / len(own)
        metrics[f"tag/{name}/words"] = sum(step.words for step in own) / len(own)
    return metrics
