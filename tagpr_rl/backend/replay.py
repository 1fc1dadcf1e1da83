"""verl's replay buffer with the poll interval as a setting (upstream: 2 s and no config key)."""

from __future__ import annotations

from typing import Any

from verl.trainer.ppo.v1.replay_buffer import ReplayBuffer

from tagpr_rl.backend.settings import from_environment


class FastReplayBuffer(ReplayBuffer):
    """verl/trainer/ppo/v1/replay_buffer.py:126 defaults poll_interval to 2.0."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(poll_interval=from_environment().replay_poll_seconds, **kwargs)
