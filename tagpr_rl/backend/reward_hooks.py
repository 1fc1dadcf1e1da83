"""What verl's V1 trainers do not do with rewards: every component logged, every response kept, unscored ones masked.

Why: V1 computes no metric from the reward's components and drops them from the rollout dump
(verl issues 2115, 7588), and gives a response that is alone in its group its raw reward as advantage.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transfer_queue as tq
from verl.utils import tensordict_utils as tu

from tagpr_rl.backend.step_log import StepLogger
from tagpr_rl.reward.rubric import REWARD_KEYS
from tagpr_rl.types import TagprError


def too_many_unscored(
    statuses: Sequence[str], reasons: Sequence[str], masked: int, limit: float, timeout_s: float
) -> str:
    """Why the stage must stop: more than `limit` of the responses have no score, or nothing is left; else ""."""
    unscored = statuses.count("masked")
    if not unscored or (unscored <= limit * len(statuses) and masked < len(statuses)):
        return ""
    said = Counter(reason for reason, status in zip(reasons, statuses, strict=True) if status == "masked")
    why = "; ".join(f"{count} x {reason}" for reason, count in said.most_common(3))
    return (
        f"PRMU could not score {unscored} of {len(statuses)} responses (max_masked_fraction={limit:g}, "
        f"prmu_timeout_s={timeout_s:g}): {why}"
    )


def responses_to_mask(statuses: Sequence[str], groups: Sequence[str]) -> list[int]:
    """Indices of responses that must not take part in the update.

    These are the unscored ones, and a response left alone by them: a group of one has no baseline.
    """
    scored = Counter(group for group, status in zip(groups, statuses, strict=True) if status != "masked")
    return [
        i
        for i, (group, status) in enumerate(zip(groups, statuses, strict=True))
        if status == "masked" or scored[group] < 2
    ]


class RewardHooks:
    """For a V1 trainer: reward components logged, responses kept, unscored responses masked."""

    config: Any
    tokenizer: Any
    logger: Any
    global_steps: int
    _logs: StepLogger | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._rows: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {}

    def _reward_rows(self, batch: Any) -> tuple[list[dict[str, Any]], list[dict[str, Any]], list[dict[str, Any]]]:
        """Reward rows, dataset `extra_info` and `Asked` rows of the batch's responses, in the batch's order.

        Read once in a step: with the profiles in them they are the most of what a step's responses hold.
        """
        missing = [key for key in batch.keys if key not in self._rows]
        if missing:
            fields = ["extra_fields", "extra_info"]
            data = tq.kv_batch_get(keys=missing, partition_id=batch.partition_id, select_fields=fields)
            for key, item, info in zip(missing, list(data["extra_fields"]), list(data["extra_info"]), strict=True):
                row = dict(item["reward_extra_info"])
                absent = set(REWARD_KEYS) - set(row)
                assert not absent, f"reward row lacks {sorted(absent)}"
                self._rows[key] = (row, dict(info), dict(item["prmu"]))
        found = [self._rows[key] for key in batch.keys]
        return [row for row, _, _ in found], [info for _, info, _ in found], [asked for _, _, asked in found]

    def _compute_advantage(self, batch: Any, metrics: dict[str, Any]) -> Any:
        """verl's advantages, after taking unscored responses out of their group and of the loss."""
        rows, _, asked = self._reward_rows(batch)
        statuses = [str(row["prmu_status"]) for row in rows]
        groups = [key.rsplit("_", 2)[0] for key in batch.keys]
        masked = responses_to_mask(statuses, groups)
        settings = self.config.reward.reward_kwargs
        reasons = [str(row["reason"]) for row in asked]
        problem = too_many_unscored(
            statuses, reasons, len(masked), settings.max_masked_fraction, settings.prmu_timeout_s
        )
        if problem:
            raise TagprError(problem)
        if masked:
            self._mask_out(batch, masked)
        return super()._compute_advantage(batch, metrics)

    def _mask_out(self, batch: Any, indices: Sequence[int]) -> None:
        """Zero the loss mask of these responses and give each a group of its own."""
        keys = [batch.keys[i] for i in indices]
        data = tq.kv_batch_get(keys=keys, partition_id=batch.partition_id, select_fields=["response_mask"])
        zeros = torch.nested.as_nested_tensor(
            [torch.zeros_like(mask) for mask in data["response_mask"].unbind()], layout=torch.jagged
        )
        fields = {"response_mask": zeros, "loss_mask": zeros.clone(), "uid": [f"masked-{key}" for key in keys]}
        tq.kv_batch_put(keys=keys, partition_id=batch.partition_id, fields=tu.get_tensordict(fields))

    def _compute_metrics(
        self, batch: Any, metrics: dict[str, Any], timing_raw: dict[str, Any], global_steps: int, epoch: int
    ) -> None:
        """verl's figures, then ours (`step_log.StepLogger`), whose own time is `driver/hook_s`."""
        super()._compute_metrics(batch, metrics, timing_raw, global_steps, epoch)
        self._step_logger().metrics(batch, self._reward_rows(batch), metrics, timing_raw, global_steps)

    def _log_rollout_data(self, batch: Any, timing_raw: dict[str, Any], rollout_data_dir: str) -> None:
        """Write the step's responses with reward rows and advantages, one JSON object a line; a table of some to W&B.

        verl calls it after `_compute_metrics`, with the same batch, and logs the step's row afterwards.
        """
        self._step_logger().rollouts(Path(rollout_data_dir), self.logger)
        self._rows.clear()

    def _step_logger(self) -> StepLogger:
        if self._logs is None:
            self._logs = StepLogger(self.config, self.tokenizer)
        return self._logs

    def on_sample_begin(self) -> None:
        """verl's hook, and a note of when the trainer began to wait for responses."""
        self._step_logger().waits_from(time.time())
        super().on_sample_begin()

    def on_sample_end(self) -> None:
        """verl's hook, and a note of when the trainer had its responses."""
        self._step_logger().waits_until(time.time())
        super().on_sample_end()
