"""One step's metrics, rollout file and sample table, from what the trainer left in TransferQueue."""

from __future__ import annotations

import gc
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import transfer_queue as tq

from tagpr_rl.backend.scoring.response_scorer import ScoredResponse
from tagpr_rl.backend.trainer.advantages import terms_from
from tagpr_rl.files import write_text
from tagpr_rl.monitor import samples
from tagpr_rl.monitor.phases import phase_metrics, prmu_metrics, scoring_wait
from tagpr_rl.monitor.step import check_sums, component_metrics, gated_means, tag_metrics, task_correlation
from tagpr_rl.prompts.tokens import ResponseText
from tagpr_rl.reward.components import TOTAL, component_names
from tagpr_rl.tags.schema import schema_from

_FIELDS = ["advantages", "rm_scores"]
Rows = Sequence[dict[str, Any]]
Columns = Callable[[Sequence[str], Sequence[Any]], Rows]
_GAP = "rollout_probs_diff_max"


@dataclass(frozen=True, slots=True)
class StepResponse:
    """One response of a step, as its agent-loop worker scored it."""

    key: str
    """verl's key: group, sample and attempt, joined by `_`."""
    scored: ScoredResponse
    info: Mapping[str, Any]
    """The dataset's `extra_info` (prompts.rows)."""
    attempts: int = 1
    """How often the engine was asked for it."""

    @property
    def group(self) -> str:
        """Name of the group; its responses share their prompt."""
        return self.key.rsplit("_", 2)[0]


@dataclass(frozen=True, slots=True)
class StepData:
    """What the hook reads of a step: one entry per response, padding left out."""

    responses: list[StepResponse]
    advantages: list[Any]
    """Of each token of the response, `[T]`."""
    prompts: dict[str, Any]
    """Token ids by group."""
    staleness: list[int]
    """Updates between each response's newest weights and the step's (verl trainer_base.py, `trajectory_staleness`)."""

    @property
    def rows(self) -> list[Mapping[str, Any]]:
        """The responses' reward rows."""
        return [response.scored.row for response in self.responses]


class StepLogger:
    """Computes a step's metrics and writes its responses; its own seconds are `driver/hook_s`."""

    def __init__(self, config: Any, tokenizer: Any) -> None:
        """`config` is verl's; the recipe's part of it is reward.reward_kwargs (backend.trainer.overrides)."""
        self._config = config
        self._settings = config.reward.reward_kwargs.step_log
        self._terms = terms_from(config.reward.reward_kwargs)
        self._components = component_names(self._terms)
        self._schema = schema_from(config.reward.reward_kwargs.schema_file)
        self._decode = ResponseText(tokenizer, self._schema).decode
        self.data: StepData
        """The step that `metrics` read last."""
        self._waits: list[tuple[float, float]] = []
        self._since = 0.0
        gc.collect()
        gc.freeze()  # else a full collection, over all that verl and torch have imported, takes .3 to .7 s of a step

    def waits_from(self, now: float) -> None:
        """The trainer begins to wait for responses."""
        self._since = now

    def waits_until(self, now: float) -> None:
        """The trainer has its responses."""
        self._waits.append((self._since, now))

    def metrics(
        self,
        batch: Any,
        responses: Sequence[StepResponse],
        metrics: dict[str, Any],
        timing: Mapping[str, float],
        step: int,
    ) -> None:
        """Add the step's metrics to `metrics`, which the trainer logs. RewardMismatch: a mistake in the rewards.

        `responses` are the batch's, in its order.
        """
        started = time.perf_counter()
        data = self._read(batch, responses, step)
        self._step, self.data, self._metrics = step, data, metrics
        groups, rows = [response.group for response in data.responses], data.rows
        tasks = [response.info["task"] for response in data.responses]
        times = [response.scored.times for response in data.responses]
        metrics.update(component_metrics(rows, tasks, groups, self._components))
        metrics.update(gated_means(rows, self._terms))
        metrics.update(tag_metrics([response.scored.parts for response in data.responses], self._schema.names))
        metrics.update(task_correlation(rows, groups))
        with_prmu = [own for own, row in zip(times, rows, strict=True) if row["prmu_status"] != "off"]
        metrics.update(prmu_metrics(with_prmu, timing.get("step")))
        metrics.update(phase_metrics(timing, scoring_wait(times, self._waits)))
        metrics["rollout/retried"] = float(sum(response.attempts > 1 for response in data.responses))
        self._waits = []
        lag = "training/off_policy/trajectory_staleness"  # weight versions between a response's newest and the step's
        metrics.update({f"staleness/{name}": metrics[f"{lag}/{name}"] for name in ("mean", "max")})
        self._name_gap(metrics)
        self._count(time.perf_counter() - started)

    def rollouts(self, folder: Path, tracker: Any, columns: Columns) -> None:
        """Write `step_<n>.jsonl`, and give the tracker a sample table if one is due. Call it after `metrics`.

        `columns(keys, advantages)` returns the columns of each line that say what the update made of the response.
        """
        started = time.perf_counter()
        step, settings = self._step, self._settings
        lines = self._lines(columns([response.key for response in self.data.responses], self.data.advantages))
        seed = settings.seed * 1_000_003 + step
        text = "".join(
            json.dumps(line, ensure_ascii=False) + "\n" for line in samples.kept(lines, settings.keep_responses, seed)
        )
        write_text(folder / f"step_{step:04d}.jsonl", text)
        if settings.table_every and (step == 1 or step % settings.table_every == 0):
            chosen = samples.shown(lines, settings.table_rows, seed)
            table = [samples.table_row(kind, line, self._terms) for kind, line in chosen]
            tracker.table("samples", list(samples.columns(self._components)), table)
        self._count(time.perf_counter() - started)

    def _count(self, seconds: float) -> None:
        total = self._metrics.get("driver/hook_s", 0.0) + seconds
        self._metrics["driver/hook_s"] = total
        if step := self._metrics.get("timing_s/step"):
            self._metrics["driver/hook_share"] = total / step

    def _read(self, batch: Any, responses: Sequence[StepResponse], step: int) -> StepData:
        """The step's responses without padding, their advantages and prompts; checks every reward."""
        tagged = [
            (own, tag) for own, tag in zip(responses, batch.tags, strict=True) if not tag.get("is_padding", False)
        ]
        real = [own for own, _ in tagged]
        lags = [step - 1 - tag["max_global_steps"] for _, tag in tagged]
        keys = [response.key for response in real]
        data = tq.kv_batch_get(keys=keys, partition_id=batch.partition_id, select_fields=_FIELDS)
        first = {response.group: response.key for response in reversed(real)}
        asks = tq.kv_batch_get(keys=list(first.values()), partition_id=batch.partition_id, select_fields=["prompts"])
        rewards = [float(scores.sum()) for scores in data["rm_scores"].unbind()]
        names = [
            f"step {step}, record {own.info['record_id']} ({own.info['task']}), response {own.key}" for own in real
        ]
        prompts = dict(zip(first, asks["prompts"].unbind(), strict=True))
        step_data = StepData(real, list(data["advantages"].unbind()), prompts, lags)
        check_sums(step_data.rows, rewards, self._terms, names)
        return step_data

    def _lines(self, columns: Rows) -> list[dict[str, Any]]:
        """Every response as a line of the rollout file, with its `columns`; by task, record and sample."""
        prompts = {group: self._decode(ids.tolist()) for group, ids in self.data.prompts.items()}
        weights = {term.name: term.weight for term in self._terms}
        lines = []
        for response, more, lag in zip(self.data.responses, columns, self.data.staleness, strict=True):
            scored, info = response.scored, response.info
            parts = scored.parts
            lines.append(
                {
                    "step": self._step,
                    "record_id": info["record_id"],
                    "task": info["task"],
                    "user_id": info["user_id"],
                    "group": response.group,
                    "sample": int(response.key.rsplit("_", 2)[1]),
                    "prompt": prompts[response.group],
                    "response": scored.text,
                    "gold": info["gold"],
                    **more,
                    **({"staleness": lag} if lag else {}),
                    **{f"reward_{name}": scored.row[name] for name in (TOTAL, *self._components)},
                    "weights": weights,
                    "tag_parts": {"coverage": parts.coverage, "sound": parts.sound} if parts.steps else None,
                    "parse_status": scored.row["parse_status"],
                    "prmu_status": scored.row["prmu_status"],
                    "prmu_reason": scored.times.reason,
                }
            )
        lines.sort(key=lambda line: (line["task"], line["record_id"], line["sample"]))
        return lines

    def _name_gap(self, metrics: dict[str, Any]) -> None:
        """Log the gap that the update measured (`worker_hooks.with_gap`) under verl's name, if verl did not measure it.

        It compares the rollout with the actor only if the old log-probabilities are the rollout's and the weights have
        not moved yet, that is with one update a step.
        """
        measured = metrics.pop(f"actor/{_GAP}", None)
        actor, algorithm = self._config.actor_rollout_ref.actor, self._config.algorithm
        one_update = actor.ppo_mini_batch_size == self._config.data.train_batch_size and actor.ppo_epochs == 1
        if measured is not None and one_update and algorithm.rollout_correction.bypass_mode:
            metrics.setdefault(f"training/{_GAP}", measured)
