"""Ray actor that parses responses and scores the rubric's text-only components.

A separate process, so that parsing and ROUGE neither slow the agent-loop workers' event loops nor run
on accelerator nodes; CPU only.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray

from tagpr_rl.reward.rubric import Rubric, Weights, breakdown_row
from tagpr_rl.tags.schema import default_schema, load_schema


class TagChecker:
    """Parses and scores responses. Bad text yields a status; anything else raises."""

    def __init__(self, schema_file: str | None, alpha: float, beta: float, gamma: float, prefilled: bool) -> None:
        schema = load_schema(Path(schema_file)) if schema_file else default_schema()
        self.rubric = Rubric(schema, Weights(alpha=alpha, beta=beta, gamma=gamma), prefilled=prefilled)

    def score_many(self, items: Sequence[tuple[str, str, str, float | None, str]]) -> list[dict[str, Any]]:
        """Every reward component of each response, as the flat rows of `reward.rubric.breakdown_row`.

        An item is (response, task, gold, PRMU score or None, PRMU status).
        """
        score = self.rubric.score
        return [
            breakdown_row(score(response, task=task, gold=gold, prmu=prmu, prmu_status=status))
            for response, task, gold, prmu, status in items
        ]

    def health(self) -> dict[str, Any]:
        """Process id, for tests and monitoring."""
        return {"pid": os.getpid()}


def start(name: str, **kwargs: Any) -> Any:
    """Start the named actor (one per stage) and return its handle."""
    return ray.remote(TagChecker).options(name=name, num_cpus=0, max_restarts=3, max_task_retries=3).remote(**kwargs)
