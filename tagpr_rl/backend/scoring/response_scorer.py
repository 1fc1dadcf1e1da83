"""The reward of a response: a tag-checker actor that parses and scores, PRMU's actors, and the worker that asks both.

The tag checker is a process of its own, on CPU only, so that parsing and ROUGE neither slow the event loops of the
agent-loop workers nor run on accelerator nodes. It parses each response once; its answer goes with the response to the
trainer.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import ray

from tagpr_rl.backend.scoring.coalesce import Coalescer, Gatherer, Turn
from tagpr_rl.backend.scoring.prmu_client import ScorerPool
from tagpr_rl.monitor.phases import ScoringTimes
from tagpr_rl.prmu.serving.requests import ScoreReply, ScoreRequest
from tagpr_rl.reward.components import Term
from tagpr_rl.reward.response import ResponseParts
from tagpr_rl.reward.rubric import RewardOutput, Rubric
from tagpr_rl.tags.schema import schema_from


@dataclass(frozen=True, slots=True)
class CheckRequest:
    """What the tag checker needs of one response."""

    response: str
    task: str
    gold: str
    prmu: float | None
    prmu_status: str


class TagChecker:
    """Parses and scores responses. Bad text yields a status; anything else raises."""

    def __init__(self, schema_file: str | None, terms: Sequence[Term], folder: str) -> None:
        """`folder` is where users' reward modules are."""
        schema = schema_from(schema_file)
        self.rubric = Rubric(schema, tuple(terms), folder=Path(folder))

    def score_many(self, requests: Sequence[CheckRequest]) -> list[RewardOutput]:
        """The reward of each response."""
        score = self.rubric.score
        return [score(r.response, task=r.task, gold=r.gold, prmu=r.prmu, prmu_status=r.prmu_status) for r in requests]

    def health(self) -> dict[str, Any]:
        """Process id, for tests and monitoring."""
        return {"pid": os.getpid()}


def start_checker(name: str, **kwargs: Any) -> Any:
    """Start the named tag checker (one per stage) and return its handle."""
    return ray.remote(TagChecker).options(name=name, num_cpus=0, max_restarts=3, max_task_retries=3).remote(**kwargs)


@dataclass(frozen=True, slots=True)
class ScoredResponse:
    """One response with its reward, as it travels from its agent-loop worker to the trainer."""

    text: str
    """Decoded, without special tokens."""
    row: Mapping[str, Any]
    """`RewardOutput.row`."""
    parts: ResponseParts
    """Its tagged steps; spans are in tokens under `credit: step`, else in characters."""
    times: ScoringTimes

    def extra_fields(self) -> dict[str, Any]:
        """Keys of the response's extra fields in verl. `reward_extra_info` is verl's name, the others are not."""
        row, times = dict(self.row), asdict(self.times)
        return {"reward_extra_info": row, "text": self.text, "step_parts": self.parts.as_row(), "prmu": times}

    @classmethod
    def from_extra_fields(cls, fields: Mapping[str, Any]) -> ScoredResponse:
        """Inverse of `extra_fields`."""
        parts, times = ResponseParts.from_row(fields["step_parts"]), ScoringTimes(**fields["prmu"])
        return cls(fields["text"], dict(fields["reward_extra_info"]), parts, times)


class ResponseScorer:
    """One response -> its reward. Lives in an agent-loop worker.

    Responses that end close together share a call to each actor. PRMU's scores round by the batch that they are
    computed in, so responses with a turn wait for all of theirs, and are scored in that order.
    """

    def __init__(self, checker: str, prmu: Sequence[str], prmu_timeout_s: float) -> None:
        """`checker` and `prmu` are actor names; an empty `prmu` switches PRMU off."""
        self._checker = ray.get_actor(checker)
        self._prmu = ScorerPool(prmu, prmu_timeout_s) if prmu else None
        if self._prmu is not None:
            self._together: Gatherer[ScoreRequest, ScoreReply] = Gatherer(self._prmu.score_together)
        self._check: Coalescer[CheckRequest, RewardOutput] = Coalescer(self._call_checker)

    async def score(
        self, info: Mapping[str, Any], response: str, turn: Turn | None = None
    ) -> tuple[RewardOutput, ScoringTimes]:
        """The reward of one response, and when its scores were asked for and came.

        Malformed text gets a status. A response that PRMU could not score has the status "masked": the trainer
        leaves it out of the update, and stops the stage if there are too many. A dead tag checker raises.

        Args:
            info: the record's `extra_info`, not changed (prompts.rows).
            response: the decoded response, tags included.
            turn: the response's, among those that PRMU scores in one batch; None = with whoever comes.
        """
        sent_at = time.time()
        reply = await self._prmu_score(info, response, turn)
        done_at = time.time()
        score = reply.score if reply else None
        status = "off" if reply is None else "masked" if reply.score is None else "scored"
        output = await self._check.submit(CheckRequest(response, info["task"], info["gold"], score, status))
        return output, ScoringTimes(sent_at, done_at, time.time(), reply.reason if reply else "")

    def leave(self, turn: Turn) -> None:
        """The response of this turn will not come."""
        if self._prmu is not None:
            self._together.leave(turn)

    async def _prmu_score(self, info: Mapping[str, Any], response: str, turn: Turn | None) -> ScoreReply | None:
        if self._prmu is None:
            return None
        request = ScoreRequest(
            user_id=info["user_id"],
            profile_texts=tuple(info["profile_texts"]),
            question=info["question"],
            response=response,
        )
        return await (self._together.submit(turn, request) if turn else self._prmu.score(request))

    async def _call_checker(self, requests: list[CheckRequest]) -> Sequence[RewardOutput]:
        return await self._checker.score_many.remote(requests)
