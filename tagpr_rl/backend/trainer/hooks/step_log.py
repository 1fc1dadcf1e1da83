"""One step's figures, rollout file and sample table, from what the trainer left in TransferQueue."""

from __future__ import annotations

import gc
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import transfer_queue as tq

from tagpr_rl.files import write_text
from tagpr_rl.monitor.phases import phase_metrics, scoring_wait
from tagpr_rl.monitor.samples import COLUMNS, kept, shown, table_row
from tagpr_rl.monitor.step import NUMERIC_KEYS, check_sums, component_metrics, prmu_metrics, task_correlation
from tagpr_rl.monitor.tags import TagsSeen, tag_metrics, tags_seen
from tagpr_rl.tags.schema import default_schema, load_schema
from tagpr_rl.types import ParseStatus

_FIELDS = ["advantages", "rm_scores"]
Rows = Sequence[dict[str, Any]]
Columns = Callable[[Sequence[str], Sequence[Any]], Rows]
_GAP = "rollout_probs_diff_max"


@dataclass(frozen=True, slots=True)
class StepData:
    """What the hook reads of a step, one entry per response and in the same order."""

    keys: list[str]
    rows: list[dict[str, Any]]
    infos: list[dict[str, Any]]
    asked: list[dict[str, Any]]
    groups: list[str]
    prompts: dict[str, Any]
    """Token ids by group."""
    responses: list[str]
    advantages: list[Any]
    """Of each token of the response."""
    seen: list[TagsSeen | None]


class StepLogger:
    """Computes and writes what a step leaves; its own seconds are `driver/hook_s`."""

    def __init__(self, config: Any, tokenizer: Any) -> None:
        """`config` is verl's; the recipe's part stands under reward.reward_kwargs.step_log (verl_config)."""
        self._config, self._tokenizer = config, tokenizer
        self._settings = config.reward.reward_kwargs.step_log
        self._weights = {name: float(self._settings[name]) for name in ("alpha", "beta", "gamma")}
        file = self._settings.schema_file
        self._schema = load_schema(Path(file)) if file else default_schema()
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
        reward_rows: tuple[Rows, Rows, Rows],
        metrics: dict[str, Any],
        timing: dict[str, float],
        step: int,
    ) -> None:
        """Add the step's figures to `metrics`, which the trainer logs. RewardMismatch: a mistake in the rewards.

        `reward_rows` are the trainer's (RewardHooks._reward_rows), which it has read already.
        """
        started = time.perf_counter()
        data = self._read(batch, reward_rows, step)
        self._step, self.data, self._metrics = step, data, metrics
        metrics.update(component_metrics(data.rows, [info["task"] for info in data.infos], data.groups))
        metrics.update(tag_metrics(data.seen, self._schema.names))
        metrics.update(task_correlation(data.rows, data.groups))
        on = [row for row, reward in zip(data.asked, data.rows, strict=True) if reward["prmu_status"] != "off"]
        metrics.update(prmu_metrics(on, timing.get("step")))
        metrics.update(phase_metrics(timing, scoring_wait(data.asked, self._waits)))
        self._waits = []
        lag = "training/off_policy/trajectory_staleness"  # weight versions between a response's newest and the step's
        metrics.update({f"staleness/{name}": metrics[f"{lag}/{name}"] for name in ("mean", "max")})
        self._name_gap(metrics)
        self._count(time.perf_counter() - started)

    def rollouts(self, folder: Path, tracker: Any, columns: Columns) -> None:
        """Write `step_<n>.jsonl`; hand the tracker a sample table where one is due. After `metrics`, for its step.

        `columns` makes of the responses' keys and advantages the columns that say what the update made of each.
        """
        started = time.perf_counter()
        step, settings = self._step, self._settings
        lines = self._lines(columns(self.data.keys, self.data.advantages))
        seed = settings.seed * 1_000_003 + step
        text = "".join(
            json.dumps(line, ensure_ascii=False) + "\n" for line in kept(lines, settings.keep_responses, seed)
        )
        write_text(folder / f"step_{step:04d}.jsonl", text)
        if settings.table_every and (step == 1 or step % settings.table_every == 0):
            table = [table_row(kind, line) for kind, line in shown(lines, settings.table_rows, seed)]
            tracker.table("samples", list(COLUMNS), table)
        self._count(time.perf_counter() - started)

    def _count(self, seconds: float) -> None:
        total = self._metrics.get("driver/hook_s", 0.0) + seconds
        self._metrics["driver/hook_s"] = total
        if step := self._metrics.get("timing_s/step"):
            self._metrics["driver/hook_share"] = total / step

    def _read(self, batch: Any, reward_rows: tuple[Rows, Rows, Rows], step: int) -> StepData:
        real = [i for i, tag in enumerate(batch.tags) if not tag.get("is_padding", False)]
        keys = [batch.keys[i] for i in real]
        groups = [key.rsplit("_", 2)[0] for key in keys]
        rows, infos, asked = ([part[i] for i in real] for part in reward_rows)
        data = tq.kv_batch_get(keys=keys, partition_id=batch.partition_id, select_fields=_FIELDS)
        first = dict(zip(reversed(groups), reversed(keys), strict=True))  # a group's responses share their prompt
        asks = tq.kv_batch_get(keys=list(first.values()), partition_id=batch.partition_id, select_fields=["prompts"])
        rewards = [float(scores.sum()) for scores in data["rm_scores"].unbind()]
        names = [
            f"step {step}, record {info['record_id']} ({info['task']}), response {key}"
            for info, key in zip(infos, keys, strict=True)
        ]
        check_sums(rows, rewards, self._weights, names)
        responses = [row["text"] for row in asked]
        prefilled = bool(self._settings.prefilled)
        well_formed = {
            text for text, row in zip(responses, rows, strict=True) if row["parse_status"] == ParseStatus.OK.value
        }  # a group often has one text several times
        seen = {text: tags_seen(text, self._schema, prefilled=prefilled) for text in well_formed}
        return StepData(
            keys=keys,
            rows=rows,
            infos=infos,
            asked=asked,
            groups=groups,
            prompts=dict(zip(first, asks["prompts"].unbind(), strict=True)),
            responses=responses,
            advantages=list(data["advantages"].unbind()),
            seen=[seen.get(text) for text in responses],
        )

    def _lines(self, more: Rows) -> list[dict[str, Any]]:
        """Every response as a line of the rollout file, with the columns of `more`; by task, record and sample."""
        data = self.data
        decode = self._tokenizer.decode
        prompts = {group: decode(ids.tolist(), skip_special_tokens=True) for group, ids in data.prompts.items()}
        lines = []
        for i, key in enumerate(data.keys):
            info, row, seen = data.infos[i], data.rows[i], data.seen[i]
            lines.append(
                {
                    "step": self._step,
                    "record_id": info["record_id"],
                    "task": info["task"],
                    "user_id": info["user_id"],
                    "group": data.groups[i],
                    "sample": int(key.rsplit("_", 2)[1]),
                    "prompt": prompts[data.groups[i]],
                    "response": data.responses[i],
                    "gold": info["gold"],
                    **more[i],
                    **{f"reward_{name}": row[name] for name in NUMERIC_KEYS},
                    "weights": self._weights,
                    "tag_parts": seen.parts if seen else None,
                    "parse_status": row["parse_status"],
                    "prmu_status": row["prmu_status"],
                    "prmu_reason": data.asked[i]["reason"],
                }
            )
        lines.sort(key=lambda line: (line["task"], line["record_id"], line["sample"]))
        return lines

    def _name_gap(self, metrics: dict[str, Any]) -> None:
        """Give the gap that the update measured (`prob_gap`) verl's name, where verl has not measured it itself.

        It is the rollout's against the actor's only where the old log-probabilities are the rollout's, and the
        weights have not moved yet: one update a step.
        """
        measured = metrics.pop(f"actor/{_GAP}", None)
        actor, algorithm = self._config.actor_rollout_ref.actor, self._config.algorithm
        one_update = actor.ppo_mini_batch_size == self._config.data.train_batch_size and actor.ppo_epochs == 1
        if measured is not None and one_update and algorithm.rollout_correction.bypass_mode:
            metrics.setdefault(f"training/{_GAP}", measured)
