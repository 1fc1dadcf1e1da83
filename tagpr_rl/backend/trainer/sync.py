"""verl's synchronous V1 trainer plus our hooks; `fit` and `step` stay verl's (0.9.1, trainer_base.PPOTrainer)."""

from __future__ import annotations

from typing import Any

from verl.trainer.ppo.v1.trainer_sync import PPOTrainerSync

from tagpr_rl.backend.rollout.agent_loop import OneServerClient
from tagpr_rl.backend.trainer.hooks.checkpoint import CheckpointHooks
from tagpr_rl.backend.trainer.hooks.rewards import RewardHooks
from tagpr_rl.backend.trainer.hooks.stop import StopHooks


class TagprTrainer(StopHooks, CheckpointHooks, RewardHooks, PPOTrainerSync):
    """verl's synchronous trainer with all hooks."""

    def get_llm_client(self) -> Any:
        """verl's client; with one rollout server, one that does not ask the load balancer every time."""
        one = len(self.llm_server_manager.get_replicas()) == 1
        return self.llm_server_manager.get_client(OneServerClient if one else None)
