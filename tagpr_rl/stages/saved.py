"""Where a grpo stage with `rollouts_from` finds its saved responses, and the prompt rows that ask for them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from tagpr_rl.backend.rollout.saved import saved_rows
from tagpr_rl.backend.trainer.overrides import StagePaths
from tagpr_rl.config import GrpoStage
from tagpr_rl.prompts.rows import write_parquet
from tagpr_rl.stages.context import StageContext


def saved_paths(context: StageContext, stage: GrpoStage, paths: StagePaths) -> StagePaths:
    """The paths with the saved rollouts that the stage trains on, and prompt rows in their order.

    Unchanged where the stage generates its responses. TagprError where the rollouts do not fit the stage.
    """
    import pyarrow.parquet as pq

    if stage.rollouts_from is None:
        return paths
    if stage.rollouts_from in context.recipe.stages:
        folder = context.earlier(stage.rollouts_from, reads=("rollouts",)).rollouts
    else:
        folder = Path(stage.rollouts_from)
    sizes = {"steps": stage.steps, "prompts_per_step": stage.prompts_per_step, "group_size": stage.group_size}
    train = context.dir.root / "train.parquet"
    write_parquet(train, saved_rows(pq.read_table(paths.train).to_pylist(), folder, **sizes))
    return replace(paths, train=train.resolve(), saved=folder.resolve())
