"""Which teacher, labeller and keep rules a recipe gets."""

from __future__ import annotations

from tagpr_rl.chains.heuristic import HeuristicTeacher
from tagpr_rl.chains.keep import KeepRules, world_keep_rules
from tagpr_rl.chains.label import Labeller, ModelLabeller, ScriptedLabeller
from tagpr_rl.chains.scripted import ScriptedTeacher
from tagpr_rl.chains.teacher import ModelTeacher, Teacher
from tagpr_rl.config import ChainsStage, Recipe
from tagpr_rl.stages.generators import Generators, ask_texts


def teacher_for(recipe: Recipe, *, error_rate: float | None = None, models: Generators | None = None) -> Teacher:
    """The teacher that the recipe's chains stage names; `error_rate` overrides the stage's. Without `models` a
    language model is asked nothing: the rules of `auto` stand in for it."""
    stage = next((s for s in recipe.stages.values() if isinstance(s, ChainsStage)), ChainsStage())
    chosen = stage.teacher
    kind = chosen if isinstance(chosen, str) else chosen.kind
    if not isinstance(chosen, str) and kind in ("openai", "vllm"):
        if models is not None:
            return ModelTeacher(ask_texts(models.generator_for(chosen, "teacher"), chosen, seed=stage.seed))
        kind = "auto"
    if kind == "auto":
        kind = "scripted" if recipe.data.lamp_dir is None else "heuristic"
    if kind == "heuristic":
        return HeuristicTeacher()
    return ScriptedTeacher(error_rate=stage.error_rate if error_rate is None else error_rate, seed=stage.seed)


def labeller_for(stage: ChainsStage, models: Generators) -> Labeller:
    """The labeller that the stage names."""
    chosen = stage.labeller
    if isinstance(chosen, str) or chosen.kind == "scripted":
        return ScriptedLabeller()
    return ModelLabeller(ask_texts(models.generator_for(chosen, "labeller"), chosen, seed=stage.seed))


def keep_rules(recipe: Recipe, stage: ChainsStage) -> KeepRules:
    """Thresholds for the recipe's data."""
    if recipe.data.lamp_dir is None:
        return world_keep_rules(stage.keep_wrong_fraction)
    return KeepRules(wrong_fraction=stage.keep_wrong_fraction)
