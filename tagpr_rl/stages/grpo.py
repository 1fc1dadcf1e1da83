"""A GRPO stage: its questions, verl's trainer with the scoring actors beside it, its end, and what it carries over."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from tagpr_rl.backend.trainer.overrides import StagePaths, grpo_overrides
from tagpr_rl.config import GrpoStage, PlacementBlock
from tagpr_rl.config.placement import scorer_tokens
from tagpr_rl.monitor.stop import Stop, stop_after
from tagpr_rl.run import metrics
from tagpr_rl.stages.context import StageContext, StageResult
from tagpr_rl.stages.grpo_rows import FILTER, training_rows
from tagpr_rl.stages.saved import saved_paths
from tagpr_rl.stages.train import (
    RESUMABLE,
    last_checkpoint,
    publish,
    resume_from,
    stage_notes,
    stage_paths,
    tracking,
    wait_for,
)


def run_grpo(context: StageContext) -> StageResult:
    """One GRPO stage on verl's trainer, with PRMU and tag-checker actors beside it."""
    stage = context.recipe.stages[context.name]
    assert isinstance(stage, GrpoStage)
    context.guard_attempt()
    context.clean(*RESUMABLE, FILTER)
    rows, questions = training_rows(context, stage)
    paths = saved_paths(context, stage, stage_paths(context, stage.init, rows))
    start = resume_from(context, paths.model)
    stopped = _stopped(context, stage)
    if start.step < stage.steps and stopped is None:
        _train_grpo(context, stage, paths)
        stopped = _stopped(context, stage)
    publish(context, last_checkpoint(context, stopped.step if stopped else stage.steps) / "actor" / "huggingface")
    last = metrics.last(context.dir.metrics) or {}
    keys = ("reward/total/mean", "reward/task/mean", "reward/format/mean", "reward/tag/mean", "reward/prmu/mean")
    figures = {key: float(last[key]) for key in keys if key in last}
    chosen = (context.dir.root / FILTER,) if questions is not None else ()
    return StageResult(
        outputs=(context.dir.hf, context.dir.metrics, *chosen),
        metrics=figures,
        notes=(
            "weights are carried from the stage before; optimizer, schedule, data order and reference start afresh",
            *((stopped.note(stage.steps),) if stopped else ()),
            *stage_notes(context, start),
        ),
        details={
            "carried": carried(stage),
            **({"filter": questions} if questions is not None else {}),
            **({"stopped": {**asdict(stopped), "of": stage.steps}} if stopped else {}),
        },
    )


def carried(stage: GrpoStage) -> dict[str, str]:
    """What the stage takes over from the one before, part by part.

    Weights alone. verl 0.9.1 loads the parts of a checkpoint that were fixed when a worker was built (`load_contents`;
    for a resume: weights, optimizer, schedule and random state, per number of processes), and an optimizer's state
    brings the learning rate of its last step. Moments alone would need a worker class of our own for each engine.
    """
    order = f"afresh: shuffled with seed {stage.seed}, from the first question"
    if stage.rollouts_from is not None:
        order = f"the saved responses' own ({stage.rollouts_from})"
    reference = f"the weights of '{stage.init}', fixed" if stage.kl_coef > 0 else "none (kl_coef is 0)"
    return {
        "weights": f"from '{stage.init}', as published in its hf/",
        "optimizer": "afresh: no moments are taken over",
        "schedule": f"afresh: {stage.lr_warmup_steps} warm-up steps to lr {stage.lr:g}",
        "data order": order,
        "random state": f"afresh: seed {stage.seed}",
        "reference": reference,
    }


def _stopped(context: StageContext, stage: GrpoStage) -> Stop | None:
    """The stage's early end, where its rows say that a stop rule holds."""
    return stop_after(metrics.rows(context.dir.metrics), stage.stop, stage.steps)


def _train_grpo(context: StageContext, stage: GrpoStage, paths: StagePaths) -> None:
    recipe = context.recipe
    prmu = None
    if stage.prmu is not None and stage.uses_prmu:
        folder = context.earlier(stage.prmu, reads=("prmu",)).root / "prmu"
        prmu = {"path": str(folder.resolve()), **scorer_placement(recipe.placement)}
    health_s = recipe.placement.prmu_serving.health_s
    schema_file = str(recipe.schema_file.resolve()) if recipe.schema_file is not None else None
    checker = {"schema_file": schema_file, "terms": stage.terms, "prefilled": recipe.model.thought_prefilled}
    ray = context.start_ray()
    from tagpr_rl.backend.session import ray_session as cluster
    from tagpr_rl.backend.trainer.grpo import GrpoDriver, ScorerSettings

    scorers = ScorerSettings(
        checker={**checker, "folder": str(Path.cwd())},
        prmu=prmu,
        health_s=health_s,
        stall_s=max(health_s, stage.prmu_timeout_s),
    )

    devices = cluster.free_devices()
    driver = GrpoDriver.remote()  # type: ignore[attr-defined]
    task = driver.run.remote(
        grpo_overrides(recipe, context.name, paths), scorers, tracking(context), recipe.platform.device
    )
    try:
        wait_for(context, ray, task, stage.steps, lambda row: f"reward {row.get('reward/total/mean', 0):.3f}")
    finally:
        cluster.end_actor(driver, devices)


def scorer_placement(placement: PlacementBlock) -> dict[str, Any]:
    """Arguments of prmu_actor.start_all: the actors' device (none, one that the policy uses, or their own), limits."""
    serving = placement.prmu_serving
    found = {
        "scorers": serving.scorers,
        "max_batch_tokens": scorer_tokens(placement),
        "cache_mb": serving.cache_mb,
        "restarts": serving.restarts,
    }
    if placement.prmu == "cpu":
        return {"device": "cpu", **found}
    own = placement.prmu_devices if placement.prmu == "dedicated" else 0.0
    return {"device": "cuda", "num_gpus": own, **found}
