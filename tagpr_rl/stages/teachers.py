"""Which teacher and keep rules a recipe gets."""

from __future__ import annotations

from tagpr_rl.chains.heuristic import HeuristicTeacher
from tagpr_rl.chains.keep import KeepRules, world_keep_rules
from tagpr_rl.chains.scripted import ScriptedTeacher
from tagpr_rl.chains.teacher import Teacher
from tagpr_rl.config import ChainsStage, Recipe


def teacher_for(recipe: Recipe, *, error_rate: float | None = None) -> Teacher:
    """The teacher that the recipe's chains stage names; `error_rate` overrides the stage's."""
    stage = next((s for s in recipe.stages.values() if isinstance(s, ChainsStage)), ChainsStage())
    kind = stage.teacher
    if kind == "auto":
        kind = "scripted" if recipe.data.lamp_dir is None else "heuristic"
    if kind == "heuristic":
        return HeuristicTeacher()
    return ScriptedTeacher(error_rate=stage.error_rate if error_rate is None else error_rate, seed=stage.seed)


def keep_rules(recipe: Recipe, stage: ChainsStage) -> KeepRules:
    """Thresholds for the recipe's data."""
    if recipe.data.lamp_dir is None:
        return world_keep_rules(stage.keep_wrong_fraction)
    return KeepRules(wrong_fraction=stage.keep_wrong_fraction)
