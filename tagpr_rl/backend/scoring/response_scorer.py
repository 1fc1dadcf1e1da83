"""The reward of a response: asks the PRMU actor and the tag-checker actor, returns every component."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import ray

from tagpr_rl.backend.scoring.coalesce import Coalescer
from tagpr_rl.backend.scoring.prmu_client import ScorerPool
from tagpr_rl.prmu.serving.requests import ScoreReply, ScoreRequest


@dataclass(frozen=True, slots=True)
class Asked:
    """When PRMU was asked for a response's score and when it answered (Unix seconds), and why it gave none."""

    asked_at: float
    done_at: float
    reason: str = ""
    scored_at: float = 0.0
    """When every component was there."""

    def row(self) -> dict[str, float | str]:
        """As plain values, for a response's extra fields."""
        return asdict(self)


class ResponseScorer:
    """One response -> the flat reward row of `reward.rubric.breakdown_row`. Lives in an agent-loop worker.

    Responses that end close together share a call to each actor.
    """

    def __init__(self, checker: str, prmu: Sequence[str], prmu_timeout_s: float) -> None:
        """`checker` and `prmu` are actor names; an empty `prmu` switches that component off."""
        self._checker = ray.get_actor(checker)
        self._prmu = ScorerPool(prmu, prmu_timeout_s) if prmu else None
        self._check: Coalescer[tuple[Any, ...], dict[str, Any]] = Coalescer(self._call_checker)

    async def score(self, info: dict[str, Any], response: str) -> tuple[dict[str, Any], Asked]:
        """Every component of one response, and how PRMU was asked.

        Malformed text gets a status. A response that PRMU could not score has the status "masked": the trainer
        leaves it out of the update, and stops the stage when there are too many. A dead tag checker raises.

        Args:
            info: the record's `extra_info`, not changed (stages.prompts.extra_info).
            response: the decoded response, tags included.
        """
        asked_at = time.time()
        reply = await self._prmu_score(info, response)
        done_at = time.time()
        score = reply.score if reply else None
        status = "off" if reply is None else "masked" if reply.score is None else "scored"
        row = await self._check.submit((response, info["task"], info["gold"], score, status))
        return row, Asked(asked_at, done_at, reply.reason if reply else "", time.time())

    async def _prmu_score(self, info: dict[str, Any], response: str) -> ScoreReply | None:
        if self._prmu is None:
            return None
        request = ScoreRequest(
            user_id=info["user_id"],
            profile_texts=tuple(info["profile_texts"]),
            question=info["question"],
            response=response,
        )
        return await self._prmu.score(request)

    async def _call_checker(self, items: list[tuple[Any, ...]]) -> Sequence[dict[str, Any]]:
        return await self._checker.score_many.remote(items)
