"""verl's agent-loop worker with this project's rewards, scored in the worker where the response arrives.

verl would send every response to a reward worker in a process of its own, which would then ask the scoring
actors; asking them from here saves that hop. Named in `rollout.agent.agent_loop_manager_class`
(verl 0.9.1 main_ppo.py:120); `reward.num_workers` is 0, so no idle reward worker is started.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import ray
from verl.experimental.agent_loop.agent_loop import AgentLoopBase, AgentLoopMetrics, AgentLoopOutput, register
from verl.trainer.ppo.v1 import agent_loop_tq
from verl.utils.profiler import simple_timer
from verl.workers.rollout.llm_server import LLMServerClient

from tagpr_rl.backend.rollout.saved import SAVED_STEP, read_tokens, step_file
from tagpr_rl.backend.scoring.response_scorer import ResponseScorer
from tagpr_rl.reward.advantages.step import PARTS, ResponseParts, parts_row, response_parts, to_tokens
from tagpr_rl.reward.spans import starts_by_encoding, token_starts
from tagpr_rl.tags.schema import default_schema, load_schema

_Worker = agent_loop_tq.AgentLoopWorkerTQ.__ray_metadata__.modified_class


class TagprAgentLoopWorker(_Worker):
    """AgentLoopWorkerTQ whose reward is `ResponseScorer`'s."""

    def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)
        settings = config.reward.reward_kwargs
        self.scorer = ResponseScorer(settings.tag_checker, list(settings.prmu), float(settings.prmu_timeout_s))
        self.steps = StepFinder(self.tokenizer, settings) if settings.advantage.credit == "step" else None

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
        final.extra_fields["text"] = response  # so that the trainer neither reads its tokens nor decodes them
        if self.steps is not None:
            final.extra_fields[PARTS] = parts_row(self.steps.find(final.response_ids, response))
        final.metrics.compute_score = timing["compute_score"]


class StepFinder:
    """The tagged steps of a response, with their tokens; here, where it costs no time of the trainer's."""

    def __init__(self, tokenizer: Any, settings: Any) -> None:
        self.tokenizer = tokenizer
        self.special = frozenset(tokenizer.all_special_ids)
        self.schema = load_schema(Path(settings.schema_file)) if settings.schema_file else default_schema()
        self.prefilled = bool(settings.prefilled)
        self.decode = functools.partial(tokenizer.decode, skip_special_tokens=True)

    def find(self, ids: list[int], response: str) -> ResponseParts:
        """Parts of a response given as ids and as its decoded text."""
        parts = response_parts(response, self.schema, prefilled=self.prefilled)
        if not parts.steps:
            return parts
        starts = starts_by_encoding(ids, response, self._encode, self.special)
        return to_tokens(parts, token_starts(ids, self.decode) if starts is None else starts)

    def _encode(self, text: str) -> tuple[list[int], list[int]]:
        encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        return encoded["input_ids"], [start for start, _ in encoded["offset_mapping"]]


@register("saved_rollouts")
class SavedRolloutLoop(AgentLoopBase):
    """Gives the saved response of a step instead of generating one (recipe key `rollouts_from`)."""

    async def run(self, sampling_params: dict[str, Any], **kwargs: Any) -> AgentLoopOutput:
        """The response whose place in its group is this session's."""
        info = kwargs["extra_info"]
        path = step_file(Path(self.config.reward.reward_kwargs.saved_rollouts), int(info[SAVED_STEP]))
        row = read_tokens(path)[info["task"], info["record_id"], int(kwargs["session_id"])]
        version = int(kwargs["global_steps"]) - 1  # of the weights, as if they had written it
        return AgentLoopOutput(
            prompt_ids=row["prompt_ids"],
            response_ids=row["response_ids"],
            response_mask=[1] * len(row["response_ids"]),
            response_logprobs=row["logprobs"],
            num_turns=2,
            metrics=AgentLoopMetrics(),
            extra_fields={
                "turn_scores": [], "tool_rewards": [], "min_global_steps": version, "max_global_steps": version,
            },
        )  # fmt: skip


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
