"""verl's replay buffer with a shorter poll interval, and with a bound on DAPO's resampling."""

from __future__ import annotations

from collections import Counter
from typing import Any

from verl.trainer.ppo.v1.replay_buffer import FILTER_GROUPS_REWARD_METRIC, ReplayBuffer

POLL_SECONDS = 0.05


class FastReplayBuffer(ReplayBuffer):
    """verl/trainer/ppo/v1/replay_buffer.py:126 polls every 2 s, and no key of verl's changes it."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(poll_interval=POLL_SECONDS, **kwargs)


class ResamplingReplayBuffer(FastReplayBuffer):
    """verl's own dynamic sampling (groups of equal rewards are given up and as many prompts more are asked), bounded.

    verl hands a custom sampler no filter (trainer_base.py:164), so `sampler_kwargs` carries it; and it would go on
    asking for ever where a policy answers every prompt alike. After `limit` groups of a step the rest are kept, and
    serve where there are too few that differ.
    """

    def __init__(self, **kwargs: Any) -> None:
        settings = kwargs["sampler_kwargs"]
        size = int(settings["train_batch_size"])
        self.limit = int(settings["limit"])
        self.given_up = 0
        super().__init__(
            filter_groups_metric=FILTER_GROUPS_REWARD_METRIC, train_batch_size=size, gen_batch_size=1, **kwargs
        )

    def sample(self, global_steps: int, partition_id: str, batch_size: int) -> Any:
        """verl's, with a new allowance."""
        self.given_up = 0
        return super().sample(global_steps, partition_id, batch_size)

    def _dapo_filtered_keys(self, partition_id: str) -> tuple[set[str], Counter]:
        found, _ = super()._dapo_filtered_keys(partition_id)
        allowed = sorted(found)[: max(0, self.limit - self.given_up)]
        self.given_up += len(allowed)
        values = self._dapo_classification_cache[partition_id]
        return set(allowed), Counter(values[uid] for uid in allowed)

    def _select_prompt_uids(self, partition_id: str, sampleable_keys: set[str], batch_size: int) -> Any:
        """verl takes any; ours takes groups that differ first."""
        uids, tags, steps = super()._select_prompt_uids(partition_id, sampleable_keys, len(sampleable_keys))
        equal = self._dapo_classification_cache[partition_id]
        return sorted(uids, key=lambda uid: equal.get(uid) is not None)[:batch_size], tags, steps
