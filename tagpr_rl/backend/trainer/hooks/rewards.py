"""Rewards on verl's V1 trainers: every component is logged, every response kept, and unscored responses masked.

V1 itself computes no metric from the reward's components, drops them from the rollout dump (verl issues 2115, 7588),
and gives a response that is alone in its group its raw reward as advantage.
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

from tagpr_rl.backend.rollout.saved import write_tokens
from tagpr_rl.backend.scoring.response_scorer import ScoredResponse
from tagpr_rl.backend.trainer import advantages
from tagpr_rl.backend.trainer.hooks.step_log import StepLogger, StepResponse
from tagpr_rl.reward.response import ResponseParts
from tagpr_rl.reward.update import Credit, credit_batch, credit_metrics, responses_to_mask
from tagpr_rl.run.layout import tokens_file
from tagpr_rl.types import TagprError


def too_many_unscored(
    statuses: Sequence[str], reasons: Sequence[str], masked: int, limit: float, timeout_s: float
) -> str:
    """Why the stage must stop: more than `limit` of the responses have no score, or nothing is left; else ""."""
    unscored = statuses.count("masked")
    if not unscored or (unscored <= limit * len(statuses) and masked < len(statuses)):
        return ""
    counts = Counter(reason for reason, status in zip(reasons, statuses, strict=True) if status == "masked")
    why = "; ".join(f"{count} x {reason}" for reason, count in counts.most_common(3))
    return (
        f"PRMU could not score {unscored} of {len(statuses)} responses (max_masked_fraction={limit:g}, "
        f"prmu_timeout_s={timeout_s:g}): {why}"
    )


class RewardHooks:
    """For a V1 trainer: reward components logged, responses kept, unscored responses masked."""

    config: Any
    tokenizer: Any
    logger: Any
    global_steps: int
    local_trigger_step: int
    """Which update of the step: 0, except under separate_async, which makes several in a step."""
    _credits: dict[str, advantages.TokenCredit] | None = None
    """What the step's updates made of each response, by its key; for the rollout lines."""
    _logs: StepLogger | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._responses: dict[str, StepResponse] = {}

    def _step_responses(self, batch: Any) -> list[StepResponse]:
        """The batch's responses with their rewards, in its order.

        Read once a step: the profiles in `extra_info` make them most of what a step's responses hold.
        """
        missing = [key for key in batch.keys if key not in self._responses]
        if missing:
            fields = ["extra_fields", "extra_info"]
            data = tq.kv_batch_get(keys=missing, partition_id=batch.partition_id, select_fields=fields)
            for key, item, info in zip(missing, list(data["extra_fields"]), list(data["extra_info"]), strict=True):
                self._responses[key] = StepResponse(key, ScoredResponse.from_extra_fields(item), dict(info))
        return [self._responses[key] for key in batch.keys]

    def _compute_advantage(self, batch: Any, metrics: dict[str, Any]) -> Any:
        """The stage's advantages (backend.trainer.advantages); responses that take no part are out of the loss."""
        scored = [response.scored for response in self._step_responses(batch)]
        groups = [  # verl's padding rows share a prompt id; alone, they take no part
            key if tag.get("is_padding", False) else key.rsplit("_", 2)[0]
            for key, tag in zip(batch.keys, batch.tags, strict=True)
        ]
        rows = [response.row for response in scored]
        statuses = [str(row["prmu_status"]) for row in rows]
        settings = self.config.reward.reward_kwargs
        problem = too_many_unscored(
            statuses,
            [response.times.reason for response in scored],
            len(responses_to_mask(statuses, groups)),
            settings.max_masked_fraction,
            settings.prmu_timeout_s,
        )
        if problem:
            raise TagprError(problem)
        rules = advantages.rules_from(settings)
        parts = [response.parts for response in scored] if rules.credit == "step" else None
        credits = credit_batch(rows, groups, parts, rules)
        out = [i for i, credit in enumerate(credits) if credit.why]
        if out:
            self._mask_out(batch, out)
        batch = super()._compute_advantage(batch, metrics)  # type: ignore[misc]
        self._put_advantages(batch, credits, parts)
        metrics.update(credit_metrics(credits, groups))
        return batch

    def _put_advantages(self, batch: Any, credits: Sequence[Credit], parts: Sequence[ResponseParts] | None) -> None:
        """Write the stage's advantages over verl's, and keep what the rollout lines say of them."""
        data = tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=["response_mask"])
        rows, given = [], dict(self._credits or {})
        for i, mask in enumerate(data["response_mask"].unbind()):
            part = parts[i] if parts is not None else None
            given[batch.keys[i]] = advantages.TokenCredit(credits[i], part, self.local_trigger_step)
            rows.append(advantages.token_advantages(credits[i], part, mask))
        self._credits = given
        values = advantages.nested(rows)
        fields = {"advantages": values, "returns": values}
        tq.kv_batch_put(keys=batch.keys, partition_id=batch.partition_id, fields=tu.get_tensordict(fields))

    def _mask_out(self, batch: Any, indices: Sequence[int]) -> None:
        """Zero the loss mask of these responses and give each a group of its own."""
        keys = [batch.keys[i] for i in indices]
        data = tq.kv_batch_get(keys=keys, partition_id=batch.partition_id, select_fields=["response_mask"])
        zeros = advantages.nested([torch.zeros_like(mask) for mask in data["response_mask"].unbind()])
        fields = {"response_mask": zeros, "loss_mask": zeros.clone(), "uid": [f"masked-{key}" for key in keys]}
        tq.kv_batch_put(keys=keys, partition_id=batch.partition_id, fields=tu.get_tensordict(fields))

    def _compute_metrics(
        self, batch: Any, metrics: dict[str, Any], timing_raw: dict[str, Any], global_steps: int, epoch: int
    ) -> None:
        """verl's metrics, then those of `step_log.StepLogger`; the logger's own time is `driver/hook_s`."""
        super()._compute_metrics(batch, metrics, timing_raw, global_steps, epoch)  # type: ignore[misc]
        self._step_logger().metrics(batch, self._step_responses(batch), metrics, timing_raw, global_steps)

    def _log_rollout_data(self, batch: Any, timing_raw: dict[str, Any], rollout_data_dir: str) -> None:
        """Write the step's responses with reward rows and advantages, one JSON object a line; a table of some to W&B.

        verl calls it after `_compute_metrics`, with the same batch, and logs the step's row afterwards.
        """
        self._step_logger().rollouts(Path(rollout_data_dir), self.logger, self._credit_columns)
        if self.config.reward.reward_kwargs.save_tokens:
            self._save_tokens(batch, Path(rollout_data_dir))
        self._responses.clear()

    def _credit_columns(self, keys: Sequence[str], trained: Sequence[torch.Tensor]) -> list[dict[str, Any]]:
        """Columns of each response's rollout line that say what the update made of it. Ends a step.

        `trained`: each response's advantages `[T]`, as they stand in TransferQueue.
        """
        given, self._credits = self._credits or {}, None
        return [advantages.credit_columns(own, given.get(key)) for key, own in zip(keys, trained, strict=True)]

    def _save_tokens(self, batch: Any, folder: Path) -> None:
        """Write the step's token ids and rollout log-probabilities (backend.rollout.saved)."""
        infos = [response.info for response in self._step_responses(batch)]
        fields = ["prompts", "responses", "rollout_log_probs"]
        data = tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=fields)
        rows = [
            {
                "task": infos[i]["task"],
                "record_id": infos[i]["record_id"],
                "sample": int(key.rsplit("_", 2)[1]),
                "prompt_ids": data["prompts"][i].tolist(),
                "response_ids": data["responses"][i].tolist(),
                "logprobs": data["rollout_log_probs"][i].tolist(),
            }
            for i, key in enumerate(batch.keys)
            if not batch.tags[i].get("is_padding", False)
        ]
        write_tokens(tokens_file(folder, self.global_steps), rows)

    def _step_logger(self) -> StepLogger:
        if self._logs is None:
            self._logs = StepLogger(self.config, self.tokenizer)
        return self._logs

    def on_sample_begin(self) -> None:
        """verl's hook; the trainer begins to wait for responses."""
        self._step_logger().waits_from(time.time())
        super().on_sample_begin()  # type: ignore[misc]

    def on_sample_end(self) -> None:
        """verl's hook; the trainer has its responses."""
        self._step_logger().waits_until(time.time())
        super().on_sample_end()  # type: ignore[misc]
