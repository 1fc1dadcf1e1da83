"""The `keep` block of a recipe becomes the factory's rules."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from made_runs import recipe

from tagpr_rl.chains.balance import BalanceRules
from tagpr_rl.chains.keep import AnswerRules, KeepRules
from tagpr_rl.stages.teachers import keep_rules
from tagpr_rl.types import TagprError


def rules(lamp: bool = False, **keep: Any) -> KeepRules:
    def change(raw: dict[str, Any]) -> None:
        raw["stages"]["chains"] |= {"keep": keep, "keep_wrong_fraction": 0.1}
        if lamp:
            raw["data"] = {"lamp_dir": "somewhere", "tasks": ["LaMP_3", "LaMP_4"]}

    made = recipe(change)
    return keep_rules(made, made.stages["chains"])


def test_defaults_follow_from_the_data():
    world, real = rules(), rules(lamp=True)
    assert world.answers == AnswerRules(generation_good=1.0, generation_least=1.0)
    assert real.answers == AnswerRules()
    assert (world.evidence.require, real.evidence.require) == ("measure", "text")
    assert (world.near_duplicates.scope, real.near_duplicates.scope) == ("record", "all")
    assert world.label_twice and world.min_agreement == 1.0 and world.wrong_fraction == 0.1
    assert world.balance == BalanceRules()


def test_thresholds_come_from_the_recipe_task_by_task():
    found = rules(
        lamp=True,
        rating_tolerance=0.5,
        generation_gain=0.1,
        tasks={"LaMP_3": {"rating_tolerance": 1}, "LaMP_4": {"generation_least": 0.2}},
        evidence={"require": "both", "min_share": 0.25},
        near_duplicates={"scope": "user", "threshold": 0.8, "shingle": 2},
        balance={"max_per_user": 4, "max_task_share": 0.6},
        min_agreement=0.75,
        max_steps=9,
    )
    assert found.answers == AnswerRules(rating_tolerance=0.5, generation_gain=0.1)
    assert found.tasks == {
        "LaMP_3": AnswerRules(rating_tolerance=1, generation_gain=0.1),
        "LaMP_4": AnswerRules(rating_tolerance=0.5, generation_gain=0.1, generation_least=0.2),
    }
    assert (found.evidence.require, found.evidence.min_share) == ("both", 0.25)
    assert (found.near_duplicates.threshold, found.near_duplicates.shingle) == (0.8, 2)
    assert (found.balance.max_per_user, found.balance.max_task_share) == (4, 0.6)
    assert (found.min_agreement, found.max_steps) == (0.75, 9)


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        ({"tasks": {"LaMP_2": {}}}, "keep.tasks.LaMP_2: unknown key"),
        ({"evidence": {"requires": "text"}}, "did you mean 'require'"),
        ({"min_steps": 9, "max_steps": 4}, "min_steps is 9"),
        ({"near_duplicates": {"threshold": 0}}, "threshold"),
    ],
)
def test_mistakes_are_named(keep, message):
    with pytest.raises(TagprError, match=message):
        rules(**keep)


def test_every_recipe_has_rules():
    from tagpr_rl.config import ChainsStage, load_recipe

    folder = Path(__file__).resolve().parents[3] / "recipes"
    for path in [*folder.glob("*.yaml"), *folder.glob("lamp/*.yaml")]:
        made = load_recipe(path)
        for stage in made.stages.values():
            if isinstance(stage, ChainsStage):
                assert keep_rules(made, stage).label_twice
