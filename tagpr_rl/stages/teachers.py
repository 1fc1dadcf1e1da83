"""Which teacher, labeller and keep rules a recipe gets."""

from __future__ import annotations

from dataclasses import replace

from tagpr_rl.chains.balance import BalanceRules
from tagpr_rl.chains.evidence import EvidenceRules
from tagpr_rl.chains.heuristic import HeuristicTeacher
from tagpr_rl.chains.keep import WORLD_ANSWERS, AnswerRules, KeepRules
from tagpr_rl.chains.label import Labeller, ScriptedLabeller
from tagpr_rl.chains.scripted import ScriptedTeacher
from tagpr_rl.chains.similar import SimilarRules
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


def labeller_for(recipe: Recipe) -> Labeller:
    """The labeller of the recipe's chains stage."""
    return ScriptedLabeller()


def keep_rules(recipe: Recipe, stage: ChainsStage) -> KeepRules:
    """The stage's thresholds; what the recipe leaves open follows from the recipe's data."""
    keep = stage.keep
    world = recipe.data.lamp_dir is None
    usual = WORLD_ANSWERS if world else AnswerRules()
    answers = AnswerRules(
        rating_tolerance=keep.rating_tolerance,
        generation_gain=keep.generation_gain,
        generation_good=usual.generation_good if keep.generation_good is None else keep.generation_good,
        generation_least=usual.generation_least if keep.generation_least is None else keep.generation_least,
    )
    evidence, near = keep.evidence, keep.near_duplicates
    require, scope = evidence.require, near.scope
    return KeepRules(
        answers=answers,
        tasks={task: replace(answers, **own) for task, own in keep.tasks.model_dump(exclude_none=True).items()},
        min_steps=keep.min_steps,
        max_steps=keep.max_steps,
        min_tag_score=keep.min_tag_score,
        wrong_fraction=stage.keep_wrong_fraction,
        label_twice=keep.label_twice,
        min_agreement=keep.min_agreement,
        evidence=EvidenceRules(
            ("measure" if world else "text") if require == "auto" else require, evidence.min_share, evidence.common
        ),
        near_duplicates=SimilarRules(
            ("record" if world else "all") if scope == "auto" else scope, near.threshold, near.shingle
        ),
        balance=BalanceRules(**keep.balance.model_dump()),
    )
