"""verl's separate_async trainer (rollout on devices of its own) with this project's hooks."""

from __future__ import annotations

import logging
from typing import Any

import ray
from verl.trainer.ppo.v1 import trainer_separate_async
from verl.trainer.ppo.v1.trainer_separate_async import PPOTrainerSeparateAsync

from tagpr_rl.backend.trainer.hooks.checkpoint import CheckpointHooks
from tagpr_rl.backend.trainer.hooks.rewards import RewardHooks
from tagpr_rl.backend.trainer.hooks.stop import StopHooks

# verl 0.9.1 trainer_separate_async.py:181 calls logger.info(..., flush=True) where engines stay off the policy's
# devices, which is a TypeError at its default level INFO. Above INFO the call returns before it fails.
trainer_separate_async.logger.setLevel(logging.WARNING)


class TagprSeparateTrainer(StopHooks, CheckpointHooks, RewardHooks, PPOTrainerSeparateAsync):
    """PPOTrainerSeparateAsync with all hooks: responses of a step come from weights of earlier steps."""


def remove_rollout_placement_groups(trainer: Any) -> None:
    """Give the rollout's devices back, as grpo.py does with the policy's."""
    manager = getattr(trainer, "standalone_server_manager", None)
    for replica in manager.get_replicas() if manager is not None else ():
        for group in (getattr(replica.resource_pool, "pgs", None) or ()) if replica.resource_pool else ():
            ray.util.remove_placement_group(group)
