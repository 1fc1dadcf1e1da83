"""Data stage: writes the world's questions or the user's LaMP files, split by user, as LaMP files of the run."""

from __future__ import annotations

from collections import Counter
from typing import Any

from tagpr_rl.config import PrmuStage, Recipe
from tagpr_rl.data.lamp import write_lamp
from tagpr_rl.data.people import require_several_questions, set_aside, with_one_question
from tagpr_rl.data.world.generate import World
from tagpr_rl.files import write_json
from tagpr_rl.prompts.dataset import HELD_OUT, LAMP, TRAIN, make_splits
from tagpr_rl.stages.context import StageContext, StageResult


def run(context: StageContext) -> StageResult:
    """Write `lamp/` (official files; split dev = held-out users, train = all others) and `data.json`."""
    recipe = context.recipe
    context.clean()
    splits = make_splits(recipe, recipe.stages[context.name].seed)
    train, held_out = splits.train, splits.held_out
    for name, stage in recipe.stages.items():
        if isinstance(stage, PrmuStage) and stage.asks_for_vectors:
            require_several_questions(train, f"stages.{name}")
    _, aside = set_aside(train, recipe.data.validation_fraction)
    folder = context.dir.root / LAMP
    for task in recipe.data.tasks:
        write_lamp(folder, task, TRAIN, [r for r in train if r.task == task])
        write_lamp(folder, task, HELD_OUT, [r for r in held_out if r.task == task])
    counts = {"train": Counter(r.task for r in train), "held_out": Counter(r.task for r in held_out)}
    facts: dict[str, Any] = {
        "source": str(recipe.data.lamp_dir or "world"),
        "setting": recipe.data.split,
        "n_questions": splits.n_questions,
        "n_used": len(train) + len(held_out),
        "by_task": {t: {split: counts[split][t] for split in counts} for t in recipe.data.tasks},
        "users": {"train": len({r.user_id for r in train}), "held_out": len({r.user_id for r in held_out})},
        "validation": {"users": len({r.user_id for r in aside}), "questions": len(aside)},
        "one_question": {"train": len(with_one_question(train)[0]), "held_out": len(with_one_question(held_out)[0])},
        "skipped": list(splits.skipped),
        "empty_profiles": sum(not r.profile for r in (*train, *held_out)),
        "bounds": None if splits.world is None else _bounds(recipe, splits.world),
    }
    write_json(context.dir.root / "data.json", facts)
    metrics = {"questions": float(splits.n_questions), "train": float(len(train)), "held_out": float(len(held_out))}
    notes = [f"left out (data.skip_defective: {recipe.data.skip_defective}): {fault}" for fault in splits.skipped]
    for note in notes:
        context.console.print(f"  {note}", markup=False)
    return StageResult(outputs=(folder, context.dir.root / "data.json"), metrics=metrics, notes=tuple(notes))


def _bounds(recipe: Recipe, world: World) -> dict[str, dict[str, float]]:
    """The world's ceilings for the recipe's tasks, with their mean."""
    bounds: dict[str, dict[str, float]] = {}
    for name, scores in world.bounds("dev", recipe.data.split).items():
        per_task: dict[str, float] = {task: scores[task] for task in recipe.data.tasks}
        bounds[name] = {**per_task, "mean": sum(per_task.values()) / len(per_task)}
    return bounds
