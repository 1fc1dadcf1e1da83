"""verl's agent-loop worker with this project's rewards, scored in the worker where the response arrives.

verl would send every response to a reward worker in a process of its own, which would then ask the scoring
actors; asking them from here saves that hop. Named in `rollout.agent.agent_loop_manager_class`
(verl 0.9.1 main_ppo.py:120); `reward.num_workers` is 0, so no idle reward worker is started.
"""

from __future__ import annotations

from typing import Any

import ray
from verl.trainer.ppo.v1 import agent_loop_tq
from verl.utils.profiler import simple_timer
from verl.workers.rollout.llm_server import LLMServerClient

from tagpr_rl.backend.response_scorer import ResponseScorer

_Worker = agent_loop_tq.AgentLoopWorkerTQ.__ray_metadata__.modified_class


class TagprAgentLoopWorker(_Worker):
    """AgentLoopWorkerTQ whose reward is `ResponseScorer`'s."""

    def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)
        settings = config.reward.reward_kwargs
        self.scorer = ResponseScorer(settings.tag_checker, list(settings.prmu), float(settings.prmu_timeout_s))

    async def _compute_score(self, outputs: list[Any], kwargs: dict[str, Any]) -> None:
        """Set the last output's reward and reward row (overrides verl's agent_loop.py:967)."""
        final = outputs[-1]
        timing: dict[str, float] = {}
        with simple_timer("compute_score", timing):
            # verl's own managers decode the same way; our tags are ordinary tokens, so they survive it.
            response = self.tokenizer.decode(final.response_ids, skip_special_tokens=True)
            row, asked = await self.scorer.score(kwargs["extra_info"], response)
        final.reward_score = row["total"]
        final.extra_fields["reward_extra_info"] = row
        final.extra_fields["prmu"] = asked.row()
        final.metrics.compute_score = timing["compute_score"]


class TagprAgentLoopManager(agent_loop_tq.AgentLoopManagerTQ):
    """verl's manager with `TagprAgentLoopWorker`s."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.agent_loop_workers_class = ray.remote(TagprAgentLoopWorker)


class OneServerClient(LLMServerClient):
    """A client of a run that has one rollout server: asks the load balancer once, not for every response."""

    _server: tuple[str, Any] | None = None

    async def _acquire_server(self, request_id: str, **extra: Any) -> tuple[str, Any]:
        if self._server is None:
            self._server = await super()._acquire_server(request_id, **extra)
        return self._server

    def _release_server(self, server_id: str, request_id: str | None = None) -> None:
        """Nothing to give back: with one server there is no load to balance."""
