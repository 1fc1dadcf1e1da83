"""verl's V1 trainers and replay buffers with this project's hooks; `fit` and `step` stay verl's (verl 0.9.1)."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from verl.trainer.ppo.v1 import trainer_separate_async
from verl.trainer.ppo.v1.replay_buffer import FILTER_GROUPS_REWARD_METRIC, ReplayBuffer
from verl.trainer.ppo.v1.trainer_separate_async import PPOTrainerSeparateAsync
from verl.trainer.ppo.v1.trainer_sync import PPOTrainerSync

from tagpr_rl.backend.trainer import balance
from tagpr_rl.backend.trainer.hooks.checkpoint import CheckpointHooks
from tagpr_rl.backend.trainer.hooks.rewards import RewardHooks
from tagpr_rl.backend.trainer.hooks.stop import StopHooks
from tagpr_rl.backend.trainer.hooks.validation import ValidationHooks

POLL_SECONDS = 0.05

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


class TagprTrainer(ScorerHooks, StopHooks, ValidationHooks, CheckpointHooks, RewardHooks, PPOTrainerSync):
    """verl's synchronous trainer with all hooks."""


class TagprSeparateTrainer(ScorerHooks, StopHooks, CheckpointHooks, RewardHooks, PPOTrainerSeparateAsync):
    """verl's separate_async trainer with all hooks: rollout on devices of its own, with weights of earlier steps."""


class FastReplayBuffer(ReplayBuffer):
    """verl/trainer/ppo/v1/replay_buffer.py:126 polls every 2 s, and no key of verl's changes it.

    A poll reads the state of every response of the step. It takes at most a fifth of the time, however many there are.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(poll_interval=POLL_SECONDS, **kwargs)

    def _sync_metadata_from_transfer_queue(self) -> None:
        began = time.monotonic()
        super()._sync_metadata_from_transfer_queue()
        self.poll_interval = max(POLL_SECONDS, 4 * (time.monotonic() - began))


class ResamplingReplayBuffer(FastReplayBuffer):
    """verl's dynamic sampling with a bound. It drops groups of equal rewards and asks for as many new prompts.

    verl gives a custom sampler no filter (trainer_base.py:164), so `sampler_kwargs` carries it. verl would also ask
    for ever if a policy answers every prompt alike: after `limit` dropped groups in a step, this buffer keeps the
    rest, and the step takes them if there are too few groups that differ.
    """

    def __init__(self, **kwargs: Any) -> None:
        settings = kwargs["sampler_kwargs"]
        size = int(settings["train_batch_size"])
        self.limit = int(settings["limit"])
        self.num_dropped = 0
        super().__init__(
            filter_groups_metric=FILTER_GROUPS_REWARD_METRIC, train_batch_size=size, gen_batch_size=1, **kwargs
        )

    def sample(self, global_steps: int, partition_id: str, batch_size: int) -> Any:
        """A step's batch, with a new allowance of dropped groups."""
        self.num_dropped = 0
        return super().sample(global_steps, partition_id, batch_size)

    def _dapo_filtered_keys(self, partition_id: str) -> tuple[set[str], Counter]:
        equal, _ = super()._dapo_filtered_keys(partition_id)
        allowed = sorted(equal)[: max(0, self.limit - self.num_dropped)]
        self.num_dropped += len(allowed)
        values = self._dapo_classification_cache[partition_id]
        return set(allowed), Counter(values[uid] for uid in allowed)

    def _select_prompt_uids(self, partition_id: str, sampleable_keys: set[str], batch_size: int) -> Any:
        """verl takes any groups; this buffer takes those that differ first."""
        uids, tags, steps = super()._select_prompt_uids(partition_id, sampleable_keys, len(sampleable_keys))
        equal = self._dapo_classification_cache[partition_id]
        return sorted(uids, key=lambda uid: equal.get(uid) is not None)[:batch_size], tags, steps
