"""verl's replay buffers with a short poll, a bound for dynamic sampling, and the responses that could not be generated.

Named in `trainer.v1.sampler.custom_sampler` (verl 0.9.1 trainer_base.py:139).
"""

from __future__ import annotations

import time
from collections import Counter
from typing import Any

import transfer_queue as tq
from verl.trainer.ppo.v1.replay_buffer import FILTER_GROUPS_REWARD_METRIC, ReplayBuffer, ReplayBufferAsync

from tagpr_rl.backend.rollout.failures import ERROR, Failure, failures_of, most_common
from tagpr_rl.backend.rollout.places import key_order
from tagpr_rl.backend.session.worker_settings import from_environment
from tagpr_rl.types import TagprError

POLL_SECONDS = 0.05


class FailureCount:
    """For a replay buffer: finds the failed responses of a batch, and ends the stage at any other error of a response.

    verl goes on without the responses of a group that raised (sync), or asks for other prompts as long as groups do
    (separate_async), and counts neither.
    """

    sampler_kwargs: Any
    failure_keys: dict[str, set[str]]
    failures: list[Failure]
    """Failed responses of the batch that was sampled last."""

    def _sync_metadata_from_transfer_queue(self) -> None:
        """verl's; RuntimeError with what was raised if an agent loop failed by a mistake, or its engine died."""
        super()._sync_metadata_from_transfer_queue()  # type: ignore[misc]
        for partition, keys in self.failure_keys.items():
            if keys:
                tags = (tq.kv_list(partition) or {}).get(partition, {})
                errors = [tags.get(key, {}).get(ERROR, "no reason is known") for key in sorted(keys)]
                raise RuntimeError(f"the agent loops of {len(keys)} prompts failed: {most_common(errors, 1)}")

    def _select_prompt_uids(self, partition_id: str, sampleable_keys: set[str], batch_size: int) -> Any:
        """verl's choice of prompts, with its failures counted."""
        uids, rows, steps = super()._select_prompt_uids(partition_id, sampleable_keys, batch_size)  # type: ignore[misc]
        self._count_failures(partition_id, uids, rows)
        return uids, rows, steps

    def _count_failures(self, partition_id: str, uids: list[str], rows: dict[str, Any]) -> None:
        """Set `failures` to those of the prompts `uids`. TagprError if none of their responses is in `rows`."""
        if partition_id == "val":  # a missing answer ends the stage (hooks.validation)
            return
        chosen, self.failures = set(uids), []
        present = sum(key.split("_")[0] in chosen for key in rows)
        wanted = len(uids) * int(self.sampler_kwargs["group_size"])
        if present == wanted:
            return
        tags = (tq.kv_list(partition_id) or {}).get(partition_id, {})
        self.failures = failures_of(tags.get(uid, {}) for uid in uids)
        assert present + len(self.failures) == wanted, (present, self.failures, wanted)
        if not present:
            reasons = most_common(failure.reason for failure in self.failures)
            raise TagprError(f"none of the {len(self.failures)} responses of a batch could be generated: {reasons}")


class FastReplayBuffer(FailureCount, ReplayBuffer):
    """verl/trainer/ppo/v1/replay_buffer.py:126 polls every 2 s, and no key of verl's changes it.

    A poll reads the state of every response of the step. It takes at most a fifth of the time, however many there are.
    A step's responses come in the order in which they were asked for; verl has them in the order in which they ended.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(poll_interval=POLL_SECONDS, **kwargs)
        self._waits = from_environment().deterministic

    def _sync_metadata_from_transfer_queue(self) -> None:
        """verl's; if runs repeat, once all that was asked for has ended, so that what is asked for next (resample) does
        not hang on what has ended by now."""
        while True:
            began = time.monotonic()
            super()._sync_metadata_from_transfer_queue()
            self.poll_interval = max(POLL_SECONDS, 4 * (time.monotonic() - began))
            if not self._waits or not any(map(len, (*self.pending_keys.values(), *self.running_keys.values()))):
                return
            time.sleep(self.poll_interval)

    def _materialize_batch(self, *args: Any, **kwargs: Any) -> Any:
        batch = super()._materialize_batch(*args, **kwargs)
        batch.reorder(sorted(range(len(batch.keys)), key=lambda i: key_order(batch.keys[i])))
        return batch


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
        finished = self.finished_keys[partition_id]  # verl raises at a group without a response
        self.finished_keys[partition_id] = finished & {key.split("_")[0] for key in self.partitions[partition_id]}
        equal, _ = super()._dapo_filtered_keys(partition_id)
        self.finished_keys[partition_id] = finished
        allowed = sorted(equal)[: max(0, self.limit - self.num_dropped)]
        self.num_dropped += len(allowed)
        values = self._dapo_classification_cache[partition_id]
        return set(allowed), Counter(values[uid] for uid in allowed)

    def _select_prompt_uids(self, partition_id: str, sampleable_keys: set[str], batch_size: int) -> Any:
        """verl takes any groups; this buffer takes those that differ first."""
        uids, tags, steps = super()._select_prompt_uids(partition_id, sampleable_keys, len(sampleable_keys))
        equal = self._dapo_classification_cache[partition_id]
        chosen = sorted(uids, key=lambda uid: (equal.get(uid) is not None, uid))[:batch_size]
        self._count_failures(partition_id, chosen, tags)
        return chosen, tags, steps


class AsyncReplayBuffer(FailureCount, ReplayBufferAsync):
    """verl's buffer for separate_async. It keeps verl's poll of 2 s, by which its trainer judges whether it starves."""
