"""Validation of verl's V1 trainers by this project's evaluation; `_validate` stays verl's (trainer_base.py:1031)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tagpr_rl.eval.lamp_eval import EvalResult, evaluate
from tagpr_rl.files import read_parquet, write_text
from tagpr_rl.monitor.validation import SCORE, best
from tagpr_rl.run import metrics as stage_metrics
from tagpr_rl.tags.schema import schema_from
from tagpr_rl.types import LampRecord


class ValidationHooks:
    """For a V1 trainer, before CheckpointHooks: verl's validation metrics give way to `evaluate`'s.

    verl asks its rollout servers greedily and puts the responses into a partition of their own, so the order of the
    training questions and the sampler's random state stay as they are.
    """

    config: Any
    logger: Any
    global_steps: int

    def _val_metrics_update(
        self,
        data_sources: Sequence[str],
        sample_uids: Sequence[str],
        reward_extra_infos_dict: Mapping[str, Sequence[Any]],
        sample_turns: Sequence[int],
        expected_acc_counts: Any = None,
    ) -> dict[str, float]:
        """The row's validation metrics (overrides verl's, trainer_base.py:1342); the responses go beside the rollouts.

        TagprError if one is missing.
        """
        infos = reward_extra_infos_dict  # as rollout.agent_loop gives them
        texts = dict(zip(infos["key"], infos["text"], strict=True))
        records = [_record(row["extra_info"]) for row in read_parquet(Path(self.config.data.val_files))]
        result = evaluate(records, texts, schema_from(self.config.reward.reward_kwargs.schema_file))
        lines = [{**asdict(question), "response": texts[question.key]} for question in result.questions]
        file = Path(self.config.trainer.rollout_data_dir) / f"validation_{self.global_steps:04d}.jsonl"
        write_text(file, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
        return validation_metrics(result)

    def spared_steps(self) -> set[int]:
        """Checkpoints that stay although newer ones are there: the best validated step's, if the stage publishes it."""
        if not self.config.reward.reward_kwargs.keep_best:
            return set()
        found = best(stage_metrics.rows(Path(self.logger.settings.metrics_file)))
        return {found.step} if found is not None else set()


def _record(info: Mapping[str, Any]) -> LampRecord:
    """The question as `evaluate` needs it; its profile takes no part."""
    return LampRecord(
        id=info["record_id"],
        task=info["task"],
        user_id=info["user_id"],
        split=info["split"],
        input=info["question"],
        profile=(),
        gold=info["gold"],
    )


def validation_metrics(result: EvalResult) -> dict[str, float]:
    """The row's keys: score with its 95 % interval over users, each task's official metrics, the well-formed share."""
    return {
        SCORE: result.score,
        "validation/low": result.score_low,
        "validation/high": result.score_high,
        "validation/well_formed": result.strict_rate,
        **{f"validation/{metric.task}/{metric.name}": metric.value for metric in result.metrics},
    }
