"""Rewards on verl's V1 trainers: every component is logged, every response kept, and what failed is left out.

V1 itself computes no metric from the reward's components, drops them from the rollout dump (verl issues 2115, 7588),
and gives a response that is alone in its group its raw reward as advantage.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transfer_queue as tq
from verl.utils import tensordict_utils as tu

from tagpr_rl.backend.rollout.failures import Failure, most_common
from tagpr_rl.backend.rollout.saved import failed_row, write_tokens
from tagpr_rl.backend.scoring.response_scorer import ScoredResponse
from tagpr_rl.backend.trainer import advantages
from tagpr_rl.backend.trainer.hooks.step_log import StepLogger, StepResponse
from tagpr_rl.reward.response import ResponseParts
from tagpr_rl.reward.update import Credit, credit_batch, credit_metrics, responses_to_mask
from tagpr_rl.run.layout import tokens_file
from tagpr_rl.types import TagprError


def too_many_lost(
    statuses: Sequence[str], reasons: Sequence[str], failures: Sequence[str], masked: int, settings: Any
) -> str:
    """Why the stage must stop: too large a share of the responses has no reward, or nothing is left; else "".

    Args:
        statuses, reasons: of each response, whether and why PRMU gave no score.
        failures: why responses could not be generated; these have no status.
        masked: responses that take no part in the update.
        settings: `max_masked_fraction` and the two limits in seconds.
    """
    unscored, limit = statuses.count("masked"), settings.max_masked_fraction
    lost, total = unscored + len(failures), len(statuses) + len(failures)
    if not lost or (lost <= limit * total and masked < len(statuses)):
        return ""
    parts = []
    if unscored:
        why = most_common(reason for reason, status in zip(reasons, statuses, strict=True) if status == "masked")
        parts.append(
            f"PRMU could not score {unscored} of {total} responses (max_masked_fraction={limit:g}, "
            f"prmu_timeout_s={settings.prmu_timeout_s:g}): {why}"
        )
    if failures:
        parts.append(
            f"{len(failures)} of {total} responses could not be generated (max_masked_fraction={limit:g}): "
            f"{most_common(failures)}"
        )
    return ". ".join(parts)


class RewardHooks:
    """For a V1 trainer: reward components logged, responses kept, failed and unscored ones left out."""

    config: Any
    tokenizer: Any
    logger: Any
    global_steps: int
    replay_buffer: Any
    local_trigger_step: int
    """Which update of the step: 0, except under separate_async, which makes several in a step."""
    _credits: dict[str, advantages.TokenCredit] | None = None
    """What the step's updates made of each response, by its key; for the rollout lines."""
    _logs: StepLogger | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._responses: dict[str, StepResponse] = {}
        self._failures: list[Failure] = []  # of the step, whose responses have no row

    def _step_responses(self, batch: Any) -> list[StepResponse]:
        """The batch's responses with their rewards, in its order.

        Read once a step: the profiles in `extra_info` make them most of what a step's responses hold.
        """
        missing = [key for key in batch.keys if key not in self._responses]
        if missing:
            fields = ["extra_fields", "extra_info"]
            data = tq.kv_batch_get(keys=missing, partition_id=batch.partition_id, select_fields=fields)
            for key, item, info in zip(missing, list(data["extra_fields"]), list(data["extra_info"]), strict=True):
                scored = ScoredResponse.from_extra_fields(item)
                self._responses[key] = StepResponse(key, scored, dict(info), int(item.get("attempts", 1)))
        return [self._responses[key] for key in batch.keys]

    def _compute_advantage(self, batch: Any, metrics: dict[str, Any]) -> Any:
        """The stage's advantages (backend.trainer.advantages); responses that take no part are out of the loss."""
        scored = [response.scored for response in self._step_responses(batch)]
        groups = [  # verl's padding rows share a prompt id; alone, they take no part
            key if tag.get("is_padding", False) else key.rsplit("_", 2)[0]
            for key, tag in zip(batch.keys, batch.tags, strict=True)
        ]
        rows = [response.row for response in scored]
        settings = self.config.reward.reward_kwargs
        real = [i for i, tag in enumerate(batch.tags) if not tag.get("is_padding", False)]
        statuses = [str(rows[i]["prmu_status"]) for i in real]
        problem = too_many_lost(
            statuses,
            [scored[i].times.reason for i in real],
            self._batch_failures(),
            len(responses_to_mask(statuses, [groups[i] for i in real])),
            settings,
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

    def _batch_failures(self) -> list[str]:
        """Why responses of the batch could not be generated. They are kept for the step's metrics and saved tokens."""
        own = list(self.replay_buffer.failures)
        self._failures += own
        if own:
            reasons = most_common(failure.reason for failure in own)
            print(f"step {self.global_steps}: {len(own)} responses could not be generated: {reasons}", flush=True)
        return [failure.reason for failure in own]

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
        metrics["rollout/failed"] = float(len(self._failures))

    def _log_rollout_data(self, batch: Any, timing_raw: dict[str, Any], rollout_data_dir: str) -> None:
        """Write the step's responses with reward rows and advantages, one JSON object a line; a table of some to W&B.

        verl calls it after `_compute_metrics`, with the same batch, and logs the step's row afterwards.
        """
        self._step_logger().rollouts(Path(rollout_data_dir), self.logger, self._credit_columns)
        if self.config.reward.reward_kwargs.save_tokens:
            self._save_tokens(batch, Path(rollout_data_dir))
        self._responses.clear()
        self._failures.clear()

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
        write_tokens(tokens_file(folder, self.global_steps), [*rows, *map(failed_row, self._failures)])

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
