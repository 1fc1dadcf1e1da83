"""GRPO stage: selects the questions, runs verl's trainer with the scoring actors, and ends it by the stop rules."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from tagpr_rl.backend.rollout.saved import saved_rows
from tagpr_rl.backend.trainer.overrides import StagePaths, grpo_overrides
from tagpr_rl.config import GrpoStage, PlacementBlock, PlatformBlock
from tagpr_rl.config.placement import scorer_count, scorer_tokens
from tagpr_rl.files import read_parquet, write_json, write_parquet
from tagpr_rl.monitor.stop import Stop, stop_after
from tagpr_rl.monitor.validation import SCORE, best
from tagpr_rl.prompts.dataset import VALIDATION, evenly
from tagpr_rl.prompts.rows import select, shuffled_rows
from tagpr_rl.prompts.tokens import ChatTokenizer
from tagpr_rl.reward.task import task_reward
from tagpr_rl.run import checkpoints, metrics
from tagpr_rl.run.deadline import saves_on_request
from tagpr_rl.stages.common import (
    RESUMABLE,
    last_checkpoint,
    publish,
    resume_from,
    stage_notes,
    stage_paths,
    tracking,
    wait_for,
)
from tagpr_rl.stages.context import StageContext, StageResult
from tagpr_rl.tags.grammar import parse
from tagpr_rl.tags.schema import TagSchema
from tagpr_rl.types import ParseStatus, TagprError

FILTER = "filter.json"
"""The rows that the stage's filter keeps. An interrupted stage continues with the same rows."""

Row = Mapping[str, Any]


def run(context: StageContext) -> StageResult:
    """One GRPO stage on verl's trainer, with PRMU and tag-checker actors beside it."""
    stage = context.recipe.stages[context.name]
    assert isinstance(stage, GrpoStage)
    context.guard_attempt()
    context.clean(*RESUMABLE, FILTER)
    rows, questions = training_rows(context, stage)
    paths = saved_paths(context, stage, stage_paths(context, stage.init, rows))
    paths = replace(paths, validation=validation_rows(context, stage))
    start = resume_from(context, paths.model)
    stopped = _stopped(context, stage)
    if start.step < stage.steps and stopped is None:
        _train_grpo(context, stage, paths)
        stopped = _stopped(context, stage)
    checkpoint = last_checkpoint(context, stopped.step if stopped else stage.steps)
    validated = validation_facts(context, stage)
    if validated:
        checkpoint = checkpoints.step_folder(context.dir.checkpoints, validated["published"])
    publish(context, checkpoint / "actor" / "huggingface")
    last = metrics.last(context.dir.metrics) or {}
    own = [term.component for term in stage.terms if term.fn]
    keys = [f"reward/{name}/mean" for name in ("total", "task", "format", "tag", "prmu", *own)]
    figures = {key: float(last[key]) for key in keys if key in last}
    chosen = (context.dir.root / FILTER,) if questions is not None else ()
    return StageResult(
        outputs=(context.dir.hf, context.dir.metrics, *chosen),
        metrics=figures,
        notes=(
            "weights are carried from the stage before; optimizer, schedule, data order and reference start afresh",
            *((stopped.note(stage.steps),) if stopped else ()),
            *((validated["note"],) if validated else ()),
            *stage_notes(context, start),
        ),
        details={
            "carried": carried(stage),
            **({"filter": questions} if questions is not None else {}),
            **({"validation": validated} if validated else {}),
            **({"stopped": {**asdict(stopped), "of": stage.steps}} if stopped else {}),
        },
    )


def validation_rows(context: StageContext, stage: GrpoStage) -> Path | None:
    """Write the prompts of the questions that the stage is validated on; None if it is not."""
    if stage.validation is None:
        return None
    source = context.nearest("prompts", reads=(f"{VALIDATION}.parquet",)).root / f"{VALIDATION}.parquet"
    target = context.dir.root / f"{VALIDATION}.parquet"
    write_parquet(target, evenly(list(read_parquet(source)), stage.validation.questions))
    return target.resolve()


def validation_facts(context: StageContext, stage: GrpoStage) -> dict[str, Any]:
    """The best and the last validated step, the step to publish, and a note for the manifest; {} without validation."""
    if stage.validation is None:
        return {}
    rows = metrics.rows(context.dir.metrics)
    top = best(rows, checkpoints.steps(context.dir.checkpoints) if stage.validation.publish == "best" else None)
    last = int(rows[-1]["step"])
    if top is None:  # a stop rule ended the stage before its first validation
        return {"published": last, "note": f"published step {last}: no step was validated"}
    newest = [row for row in rows if SCORE in row][-1]
    published = top.step if stage.validation.publish == "best" else last
    note = f"published step {published} of {last}; validation: best {top.score:.4f} at step {top.step}, "
    return {
        "published": published,
        "best": asdict(top),
        "last": {"step": int(newest["step"]), "score": float(newest[SCORE])},
        "note": f"{note}last {newest[SCORE]:.4f} at step {newest['step']}",
    }


def carried(stage: GrpoStage) -> dict[str, str]:
    """What the stage takes over from the one before, part by part.

    Weights alone. verl 0.9.1 loads the parts of a checkpoint that were fixed when a worker was built (`load_contents`;
    for a resume: weights, optimizer, schedule and random state, per number of processes), and an optimizer's state
    brings the learning rate of its last step. To take over the moments alone, each engine would need a worker class of
    this project.
    """
    order = f"afresh: shuffled with seed {stage.seed}, from the first question"
    if stage.curriculum is not None:
        order = f"afresh: by the groups' variance, with seed {stage.seed}"
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
    """The stage's early end, if its rows say that a stop rule holds."""
    return stop_after(metrics.rows(context.dir.metrics), stage.stop, stage.steps)


def _train_grpo(context: StageContext, stage: GrpoStage, paths: StagePaths) -> None:
    recipe = context.recipe
    prmu = None
    if stage.prmu is not None and stage.uses_prmu:
        folder = context.earlier(stage.prmu, reads=("prmu",)).root / "prmu"
        prmu = {"path": str(folder.resolve()), **scorer_placement(recipe.platform, recipe.placement)}
    health_s = recipe.placement.prmu_serving.health_s
    schema_file = str(recipe.schema_file.resolve()) if recipe.schema_file is not None else None
    checker = {"schema_file": schema_file, "terms": stage.terms}
    ray = context.start_ray()
    from tagpr_rl.backend.session.room import end_actor, free_devices
    from tagpr_rl.backend.trainer.grpo import GrpoDriver, ScorerSettings

    scorers = ScorerSettings(
        checker={**checker, "folder": str(Path.cwd())},
        prmu=prmu,
        health_s=health_s,
        stall_s=max(health_s, stage.prmu_timeout_s),
    )

    devices = None if recipe.platform.ray_address else free_devices()
    driver = GrpoDriver.remote()  # type: ignore[attr-defined]
    task = driver.run.remote(
        grpo_overrides(recipe, context.name, paths), scorers, tracking(context), recipe.platform.device
    )
    try:
        with saves_on_request(context.dir.root):
            wait_for(context, task, stage.steps, lambda row: f"reward {row.get('reward/total/mean', 0):.3f}")
    except BaseException:
        ray.kill(driver, no_restart=True)  # the session ends too, and waits for nothing
        raise
    end_actor(driver, devices)


def scorer_placement(platform: PlatformBlock, placement: PlacementBlock) -> dict[str, Any]:
    """Arguments of prmu_actor.start_all: the actors' device (none, one that the policy uses, or their own), limits."""
    serving = placement.prmu_serving
    settings = {
        "scorers": scorer_count(platform, placement),
        "dtype": serving.dtype,
        "max_batch_tokens": scorer_tokens(placement),
        "cache_mb": serving.cache_mb,
        "restarts": serving.restarts,
    }
    if placement.prmu == "cpu":
        return {"device": "cpu", **settings}
    own = placement.prmu_devices if placement.prmu == "dedicated" else 0.0
    return {"device": "cuda", "num_gpus": own, **settings}


def training_rows(context: StageContext, stage: GrpoStage) -> tuple[Path, dict[str, int] | None]:
    """(parquet file that verl reads, rows left after each part of the filter; None without a filter).

    PRMU's shuffled users are drawn among all users, before the filter selects rows.
    """
    source = context.nearest("prompts", reads=("train.parquet",)).root / "train.parquet"
    shuffled = stage.uses_prmu and stage.prmu_users == "shuffled"
    target = context.dir.root / "train.parquet"
    rows = shuffled_rows(source, target, stage.seed) if shuffled else source
    prompt = context.recipe.data.prompt
    shorter = stage.max_prompt_tokens is not None and stage.max_prompt_tokens < prompt.max_tokens
    if stage.filter is None and not shorter:
        return rows, None
    chosen = context.dir.root / FILTER
    if not chosen.is_file():
        kept, counts = _choose(context, stage, list(read_parquet(source)), shorter)
        write_json(chosen, {"counts": counts, "kept": kept})
    selection = json.loads(chosen.read_text(encoding="utf-8"))
    if len(selection["kept"]) < stage.prompts_per_step:
        steps = ", ".join(f"{name} {count}" for name, count in selection["counts"].items())
        raise TagprError(
            f"stages.{context.name}.filter leaves {len(selection['kept'])} questions ({steps}), fewer than "
            f"prompts_per_step={stage.prompts_per_step}; widen it"
        )
    selected = set(selection["kept"])
    write_parquet(target, [row for i, row in enumerate(read_parquet(rows)) if i in selected])
    return target, selection["counts"]


def _choose(
    context: StageContext, stage: GrpoStage, rows: Sequence[Row], shorter: bool
) -> tuple[list[int], dict[str, int]]:
    """(indices of the rows kept, rows left after each part of the filter)."""
    kept, counts = list(range(len(rows))), {"all": len(rows)}
    if shorter:
        count, limit = ChatTokenizer(context.model_folder(stage.init)).count, stage.max_prompt_tokens or 0
        kept = [i for i in kept if count(rows[i]["prompt"]) <= limit]
        counts["prompt_tokens"] = len(kept)
    if stage.filter is None:
        return kept, counts
    kept = select(rows, kept, stage.filter, counts)
    if stage.filter.mixed is not None and kept:
        kept = _mixed(context, stage, rows, kept, stage.filter.mixed.samples)
        counts["mixed"] = len(kept)
    return kept, counts


def differ(scores: Sequence[float]) -> bool:
    """Whether the scores of the responses to one question differ."""
    return max(scores) - min(scores) > 1e-9


def score_response(text: str, task: str, gold: str, schema: TagSchema) -> float:
    """The term task * format of the reward, in [0, 1]."""
    parsed = parse(text, schema)
    if parsed.status is not ParseStatus.OK or parsed.trace is None:
        return 0.0
    return task_reward(task, parsed.trace.answer, gold)


def _mixed(
    context: StageContext, stage: GrpoStage, rows: Sequence[Row], kept: Sequence[int], samples: int
) -> list[int]:
    """Indices of `kept` for which answers of the stage's start policy differ in their score."""
    from tagpr_rl.backend.rollout.generate import Engine

    context.start_ray()
    recipe, folder = context.recipe, context.model_folder(stage.init)
    tokenizer = ChatTokenizer(folder)
    prompts = tokenizer.encode_many([tokenizer.render(rows[i]["prompt"]) for i in kept])
    inputs = [ids for ids in prompts for _ in range(samples)]
    label = f"  {context.name}: {samples} answers to each of {len(kept)} questions, for the filter"
    with context.console.status(label), Engine(recipe, folder) as engine:
        texts = engine(inputs, temperature=stage.temperature, seed=stage.seed)

    def score(text: str, row: Row) -> float:
        info = row["extra_info"]
        return score_response(text, info["task"], info["gold"], context.schema)

    return pick(kept, [score(text, rows[kept[n // samples]]) for n, text in enumerate(texts)], samples, differ)


def pick(
    kept: Sequence[int], scores: Sequence[float], samples: int, wanted: Callable[[Sequence[float]], bool]
) -> list[int]:
    """The indices whose `samples` consecutive scores are `wanted`."""
    assert len(scores) == samples * len(kept)
    return [i for n, i in enumerate(kept) if wanted(scores[n * samples : (n + 1) * samples])]


def saved_paths(context: StageContext, stage: GrpoStage, paths: StagePaths) -> StagePaths:
    """The paths with the saved rollouts that the stage trains on, and prompt rows in their order.

    Unchanged if the stage generates its responses. TagprError if the rollouts do not fit the stage.
    """
    if stage.rollouts_from is None:
        return paths
    if stage.rollouts_from in context.recipe.stages:
        folder = context.earlier(stage.rollouts_from, reads=("rollouts",)).rollouts
    else:
        folder = Path(stage.rollouts_from)
    sizes = {"steps": stage.steps, "prompts_per_step": stage.prompts_per_step, "group_size": stage.group_size}
    train = context.dir.root / "train.parquet"
    write_parquet(train, saved_rows(list(read_parquet(paths.train)), folder, **sizes))
    return replace(paths, train=train.resolve(), saved=folder.resolve())
