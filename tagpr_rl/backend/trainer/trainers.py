"""verl's V1 trainers with this project's hooks; `fit` and `step` stay verl's (verl 0.9.1)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

from verl.trainer.ppo.v1 import trainer_separate_async
from verl.trainer.ppo.v1.trainer_separate_async import PPOTrainerSeparateAsync
from verl.trainer.ppo.v1.trainer_sync import PPOTrainerSync
from verl.utils import tensordict_utils as tu

from tagpr_rl.backend.rollout.clients import WholeResponseAsyncClient
from tagpr_rl.backend.rollout.places import prompt_name
from tagpr_rl.backend.trainer import balance
from tagpr_rl.backend.trainer.hooks.checkpoint import CheckpointHooks
from tagpr_rl.backend.trainer.hooks.curriculum import CurriculumHooks
from tagpr_rl.backend.trainer.hooks.rewards import RewardHooks
from tagpr_rl.backend.trainer.hooks.stop import StopHooks
from tagpr_rl.backend.trainer.hooks.validation import ValidationHooks

balance.install()  # in the driver's process; worker_hooks does it in the workers'

# trainer_separate_async.py:181 calls logger.info(..., flush=True) if engines stay off the policy's devices, which is a
# TypeError at the logger's default level INFO. Above INFO the call returns before it fails.
trainer_separate_async.logger.setLevel(logging.WARNING)


class ScorerHooks:
    """For a V1 trainer: starts the scorers that share the policy's devices, as soon as Ray has chosen these."""

    resource_pool_manager: Any

    def __init__(self, config: Any, start_scorers: Callable[[Sequence[Any]], None] | None = None) -> None:
        """`start_scorers` takes the policy's placement groups, one a node; None = the scorers run already."""
        super().__init__(config)  # type: ignore[call-arg]
        self._start_scorers = start_scorers

    def on_init_end(self) -> None:
        """Workers and engines stand, and the engines sleep; then verl's own end of the start."""
        if self._start_scorers is not None:
            (pool,) = self.resource_pool_manager.resource_pool_dict.values()
            self._start_scorers(pool.get_placement_groups())
        super().on_init_end()  # type: ignore[misc]


class OrderHooks:
    """For a V1 trainer: prompts have names that say when they were asked for; verl's are random."""

    global_steps: int
    _last_name: tuple[int, int] = (0, 0)

    def _next_train_batch(self, num_prompts: int | None = None) -> Any:
        batch = super()._next_train_batch(num_prompts)  # type: ignore[misc]
        step, first = self.global_steps, self._last_name[1] if self._last_name[0] == self.global_steps else 0
        names = [prompt_name(step, first + i) for i in range(len(batch))]
        self._last_name = step, first + len(batch)
        tu.assign_non_tensor_stack(batch, "uid", names)
        return batch


class TagprTrainer(
    ScorerHooks,
    OrderHooks,
    StopHooks,
    ValidationHooks,
    CheckpointHooks,
    CurriculumHooks,
    RewardHooks,
    PPOTrainerSync,
):
    """verl's synchronous trainer with all hooks."""


class TagprSeparateTrainer(
    ScorerHooks, OrderHooks, StopHooks, CheckpointHooks, CurriculumHooks, RewardHooks, PPOTrainerSeparateAsync
):
    """verl's separate_async trainer with all hooks: rollout on devices of its own, with weights of earlier steps."""

    def get_llm_client(self) -> Any:
        """The client of the rollout servers, for whole responses (overrides verl's)."""
        return self.standalone_server_manager.get_client(client_cls=WholeResponseAsyncClient)
