"""verl's agent-loop worker with this project's rewards, scored in the worker where the response arrives.

verl would send every response to a reward worker in another process, and that worker would ask the scoring actors.
Asking them from here saves that hop. This module is named in `rollout.agent.agent_loop_manager_class`
(verl 0.9.1 main_ppo.py:120); `reward.num_workers` is 0, so no idle reward worker is started.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray
import torch
import transfer_queue as tq
from verl.experimental.agent_loop.agent_loop import AgentLoopBase, AgentLoopMetrics, AgentLoopOutput, register
from verl.trainer.ppo.v1 import agent_loop_tq
from verl.utils import tensordict_utils as tu
from verl.utils.profiler import simple_timer

from tagpr_rl.backend.rollout.failures import Failure, RolloutError, error_tag
from tagpr_rl.backend.rollout.places import Place, placed, request_seed
from tagpr_rl.backend.rollout.saved import SAVED_STEP, read_tokens
from tagpr_rl.backend.scoring.coalesce import Turn
from tagpr_rl.backend.scoring.response_scorer import ResponseScorer, ScoredResponse
from tagpr_rl.backend.session.worker_settings import from_environment
from tagpr_rl.prompts.dataset import VALIDATION
from tagpr_rl.prompts.tokens import ResponseText
from tagpr_rl.reward.response import ResponseParts, to_tokens
from tagpr_rl.reward.spans import starts_by_encoding, token_starts
from tagpr_rl.run.layout import tokens_file
from tagpr_rl.tags.schema import schema_from

PLACES = "places"
"""Field of verl's prompts and of a response's arguments: where it stands among those that are asked for together."""
_Worker: Any = agent_loop_tq.AgentLoopWorkerTQ.__ray_metadata__.modified_class


class TagprAgentLoopWorker(_Worker):
    """AgentLoopWorkerTQ whose reward is `ResponseScorer`'s."""

    def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)
        settings = config.reward.reward_kwargs
        self.scorer = ResponseScorer(settings.tag_checker, list(settings.prmu), float(settings.prmu_timeout_s))
        self.text = ResponseText(self.tokenizer, schema_from(settings.schema_file))
        self.step_tokens = StepTokens(self.tokenizer, self.text) if settings.advantage.credit == "step" else None
        self.notes = asyncio.Lock()

    async def generate_sequences(self, batch: Any) -> None:
        """Start the agent loops of this worker's prompts (AgentLoopWorkerTQ.generate_sequences)."""
        if PLACES in batch:
            share = torch.full((len(batch), 1), len(batch))
            batch[PLACES] = torch.cat([batch[PLACES], share], dim=1)
        await super().generate_sequences(batch)

    async def _run_agent_loop(self, sampling_params: dict[str, Any], trajectory: dict[str, Any], **kwargs: Any) -> None:
        """One response of a group, from the prompt to its row (overrides verl's agent_loop.py:661).

        One that could not be generated has no row and is noted with its prompt; its group goes on without it. Any other
        error is noted, too, and makes the group verl's "failure". With a place the response has a seed of its own.
        """
        key, partition = kwargs["uid"], "val" if trajectory["validate"] else "train"
        if PLACES in kwargs:
            place, seed, kwargs[PLACES] = self._place(bool(trajectory["validate"]), kwargs)
            sampling_params = placed(sampling_params, place, seed)
        try:
            await super()._run_agent_loop(sampling_params, trajectory, **kwargs)
        except RolloutError as error:
            info = kwargs["extra_info"]
            if PLACES in kwargs:
                self.scorer.leave(kwargs[PLACES])
            failure = Failure(info["task"], info["record_id"], int(kwargs["session_id"]), str(error))
            await self._note(key, partition, failure.tag())
        except Exception as error:
            await self._note(key, partition, error_tag(error))
            raise

    async def _note(self, prompt: str, partition: str, tag: dict[str, Any]) -> None:
        """Add to a prompt's tags, one after another: TransferQueue reads them, merges and writes them back."""
        async with self.notes:
            await tq.async_kv_put(key=prompt, partition_id=partition, tag=tag)

    def _place(self, validate: bool, kwargs: Mapping[str, Any]) -> tuple[Place, int | None, Turn]:
        """A response's place, its seed (None: validation is greedy), and its turn among those scored together."""
        settings, info = self.config.actor_rollout_ref.rollout, kwargs["extra_info"]
        prompt, prompts, number, share = kwargs[PLACES].tolist()
        batch = f"{'val' if validate else 'train'}/{int(kwargs['global_steps'])}/{number}"
        samples = int(settings.val_kwargs.n if validate else settings.n)
        place = Place(batch, prompt, prompts, int(kwargs["session_id"]), samples)
        parts = (kwargs["uid"], info["task"], info["record_id"], place.sample)
        seed = None if validate else request_seed(int(settings.seed), parts)
        return place, seed, Turn(batch, prompt * samples + place.sample, share * samples)

    async def _compute_score(self, outputs: list[Any], kwargs: dict[str, Any]) -> None:
        """Set the last output's reward and reward row (overrides verl's agent_loop.py:967)."""
        final = outputs[-1]
        info, turn = kwargs["extra_info"], kwargs.pop(PLACES, None)
        if info["split"] == VALIDATION:  # the trainer scores it (trainer.hooks.validation)
            text = self.text(final.prompt_ids, final.response_ids)
            final.reward_score = 0.0
            final.extra_fields["reward_extra_info"] = {"key": f"{info['task']}/{info['record_id']}", "text": text}
            return
        timing: dict[str, float] = {}
        with simple_timer("compute_score", timing):
            response = self.text(final.prompt_ids, final.response_ids)
            output, times = await self.scorer.score(info, response, turn)
        parts = output.parts
        if self.step_tokens is not None:
            parts = self.step_tokens.locate(final.prompt_ids, final.response_ids, parts)
        final.reward_score = output.total
        # With text and steps, the trainer neither reads the response's tokens nor decodes and parses them again.
        final.extra_fields.update(ScoredResponse(response, output.row(), parts, times).extra_fields())
        final.metrics.compute_score = timing["compute_score"]


class StepTokens:
    """Which tokens a response's tagged steps have. Works in the rollout worker, so the trainer need not wait for it."""

    def __init__(self, tokenizer: Any, text: ResponseText) -> None:
        self.tokenizer, self.text = tokenizer, text

    def locate(self, prompt: list[int], ids: list[int], parts: ResponseParts) -> ResponseParts:
        """`parts` with spans in tokens, for a response given as ids."""
        if not parts.steps:
            return parts
        starts = starts_by_encoding(ids, self.text.decode(ids), self._encode, self.text.dropped)
        if starts is None:
            starts = token_starts(ids, self.text.decode)
        before = len(self.text.opening(prompt))
        return to_tokens(parts, [before + start for start in starts])

    def _encode(self, text: str) -> tuple[list[int], list[int]]:
        encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        return encoded["input_ids"], [start for start, _ in encoded["offset_mapping"]]


@register("saved_rollouts")
class SavedRolloutLoop(AgentLoopBase):
    """Returns the saved response of a step in place of a new one (recipe key `rollouts_from`)."""

    async def run(self, sampling_params: dict[str, Any], **kwargs: Any) -> AgentLoopOutput:
        """The saved response with this session's number in its group."""
        info = kwargs["extra_info"]
        path = tokens_file(Path(self.config.reward.reward_kwargs.saved_rollouts), int(info[SAVED_STEP]))
        row = read_tokens(path)[info["task"], info["record_id"], int(kwargs["session_id"])]
        if row["response_ids"] is None:
            raise RolloutError("the saved step has no such response: it could not be generated")
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
        self._batches: Counter[tuple[bool, int]] = Counter()

    def generate_sequences(self, prompts: Any) -> None:
        """Start the agent loops of a batch of prompts (agent_loop_tq.py:269), each with its place if runs repeat."""
        if from_environment().deterministic:
            kind = bool(tu.get(prompts, "validate", False)), int(tu.get(prompts, "global_steps"))
            count, number = len(prompts), self._batches[kind]
            self._batches = Counter({kind: number + 1})  # a step's batches, and those of its validation, come in turn
            prompts[PLACES] = torch.tensor([[i, count, number] for i in range(count)])
        super().generate_sequences(prompts)
