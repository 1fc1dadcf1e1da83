"""The reward of a response: asks the PRMU actor and the tag-checker actor, returns every component."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import ray

from tagpr_rl.backend.coalesce import Coalescer
from tagpr_rl.prmu.requests import ScoreRequest


class ResponseScorer:
    """One response -> the flat reward row of `reward.rubric.breakdown_row`. Lives in an agent-loop worker.

    Responses that end close together share a call to each actor.
    """

    def __init__(self, checker: str, prmu: str, prmu_timeout_s: float) -> None:
        """`checker` and `prmu` are actor names; an empty `prmu` switches that component off."""
        self._checker = ray.get_actor(checker)
        self._prmu = ray.get_actor(prmu) if prmu else None
        self._timeout_s = prmu_timeout_s
        self._check: Coalescer[tuple[Any, ...], dict[str, Any]] = Coalescer(self._call_checker)
        self._rate: Coalescer[ScoreRequest, float] = Coalescer(self._call_prmu)

    async def score(self, info: dict[str, Any], response: str) -> dict[str, Any]:
        """Every component of one response. Malformed text gets a status; a dead or failing actor raises.

        Args:
            info: the record's `extra_info`, not changed (stages.prompts.extra_info).
            response: the decoded response, tags included.
        """
        score, status = await self._prmu_score(info, response)
        return await self._check.submit((response, info["task"], info["gold"], score, status))

    async def _prmu_score(self, info: dict[str, Any], response: str) -> tuple[float | None, str]:
        """The PRMU score in [0, 1] and its status: "scored", "off", or "masked" after a time-out."""
        if self._prmu is None:
            return None, "off"
        request = ScoreRequest(
            user_id=info["user_id"],
            profile_texts=tuple(info["profile_texts"]),
            question=info["question"],
            response=response,
        )
        try:
            score = await asyncio.wait_for(self._rate.submit(request), self._timeout_s)
        except TimeoutError:
            return None, "masked"
        return float(score), "scored"

    async def _call_checker(self, items: list[tuple[Any, ...]]) -> Sequence[dict[str, Any]]:
        return await self._checker.score_many.remote(items)

    async def _call_prmu(self, requests: list[ScoreRequest]) -> Sequence[float]:
        assert self._prmu is not None
        return await self._prmu.score_many.remote(requests)
