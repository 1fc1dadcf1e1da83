"""Data stage: the world's or the user's LaMP files, split by user, as official files of this run."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from tagpr_rl.config import DataStage, Recipe
from tagpr_rl.data.lamp import load_folder, splits_present, write_lamp
from tagpr_rl.data.split import link_users, split_by_user
from tagpr_rl.data.world.generate import World, WorldConfig, make_world
from tagpr_rl.files import write_json
from tagpr_rl.prompts.dataset import HELD_OUT, TRAIN
from tagpr_rl.stages.context import StageContext, StageResult
from tagpr_rl.types import LampRecord, TagprError


def run(context: StageContext) -> StageResult:
    """Write `lamp/` (official files; split dev = held-out users) and `data.json`."""
    recipe = context.recipe
    stage = recipe.stages[context.name]
    assert isinstance(stage, DataStage)
    context.clean()
    bounds = None
    if recipe.data.lamp_dir is None:
        world = make_world(world_config(recipe))
        train, held_out = _world_records(recipe, world)
        bounds = _bounds(recipe, world)
        source = "world"
    else:
        train, held_out = _lamp_records(recipe, recipe.data.lamp_dir, stage.seed)
        source = str(recipe.data.lamp_dir)
    n_questions = len(train) + len(held_out)
    train, held_out = _limited(train, recipe.data.limit), _limited(held_out, recipe.data.limit)
    folder = context.dir.root / "lamp"
    for task in recipe.data.tasks:
        write_lamp(folder, task, TRAIN, [r for r in train if r.task == task])
        write_lamp(folder, task, HELD_OUT, [r for r in held_out if r.task == task])
    counts: dict[str, Counter[str]] = {
        "train": Counter(r.task for r in train),
        "held_out": Counter(r.task for r in held_out),
    }
    facts: dict[str, Any] = {
        "source": source,
        "setting": recipe.data.split,
        "n_questions": n_questions,
        "n_used": len(train) + len(held_out),
        "by_task": {t: {split: counts[split][t] for split in counts} for t in recipe.data.tasks},
        "users": {"train": len({r.user_id for r in train}), "held_out": len({r.user_id for r in held_out})},
        "empty_profiles": sum(not r.profile for r in (*train, *held_out)),
        "bounds": bounds,
    }
    write_json(context.dir.root / "data.json", facts)
    metrics = {"questions": float(n_questions), "train": float(len(train)), "held_out": float(len(held_out))}
    return StageResult(outputs=(folder, context.dir.root / "data.json"), metrics=metrics)


def world_config(recipe: Recipe) -> WorldConfig:
    """The world's generator settings from the recipe."""
    block = recipe.data.world
    return WorldConfig(
        seed=block.seed,
        train_users=block.train_users,
        dev_users=block.held_out_users,
        time_users=block.time_users,
        questions_per_user=block.questions_per_user,
    )


def _world_records(recipe: Recipe, world: World) -> tuple[list[LampRecord], list[LampRecord]]:
    tasks = set(recipe.data.tasks)
    unknown = tasks - {r.task for r in world.records("dev", recipe.data.split)}
    if unknown:
        raise TagprError(f"data.tasks: the embedded world has no {', '.join(sorted(unknown))}; set data.lamp_dir")

    def pick(split: str) -> list[LampRecord]:
        return [r for r in world.records(split, recipe.data.split) if r.task in tasks]

    return pick("train"), pick("dev")


def _bounds(recipe: Recipe, world: World) -> dict[str, dict[str, float]]:
    """The world's ceilings for the recipe's tasks, with their mean."""
    found = world.bounds("dev", recipe.data.split)
    picked: dict[str, dict[str, float]] = {}
    for name, values in found.items():
        per_task: dict[str, float] = {task: values[task] for task in recipe.data.tasks}
        picked[name] = {**per_task, "mean": sum(per_task.values()) / len(per_task)}
    return picked


def _lamp_records(recipe: Recipe, folder: Path, seed: int) -> tuple[list[LampRecord], list[LampRecord]]:
    """Train and held-out records of official files; one labelled split alone is divided by user."""
    if not folder.is_dir():
        raise TagprError(f"data.lamp_dir={folder}: no such folder; it must hold <task>/<split>_questions.json")
    present = {task: splits_present(folder, task) for task in recipe.data.tasks}
    for task, splits in present.items():
        if not splits:
            raise TagprError(
                f"data.lamp_dir={folder}: no {task}/train_questions.json or {task}/dev_questions.json there; "
                "give the folder that holds one folder per task, or take the task out of data.tasks"
            )
    both = [task for task, splits in present.items() if {"train", "dev"} <= set(splits)]
    if len(both) == len(present):
        return load_folder(folder, both, "train"), load_folder(folder, both, "dev")
    if both:
        raise TagprError(
            f"data.lamp_dir={folder}: {', '.join(both)} have train and dev files but other tasks have one of "
            "them; users could be in both parts. Run them separately"
        )
    records: list[LampRecord] = []
    for task, splits in present.items():
        records += load_folder(folder, [task], "dev" if "dev" in splits else splits[0])
    golds_missing = [r.id for r in records if r.gold is None]
    if golds_missing:
        raise TagprError(
            f"data.lamp_dir={folder}: question {golds_missing[0]!r} and {len(golds_missing) - 1} others have no "
            "gold; training and evaluation need <split>_outputs.json beside <split>_questions.json"
        )
    return split_by_user(link_users(records), recipe.data.held_out_fraction, seed)


def _limited(records: list[LampRecord], limit: int | None) -> list[LampRecord]:
    """The first `limit` records of each task."""
    if limit is None:
        return records
    seen: Counter[str] = Counter()
    kept = []
    for record in records:
        seen[record.task] += 1
        if seen[record.task] <= limit:
            kept.append(record)
    return kept
