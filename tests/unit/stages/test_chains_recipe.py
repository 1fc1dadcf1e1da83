"""The `keep` block of a recipe becomes the factory's rules."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from made_runs import recipe

from tagpr_rl.chains.balance import BalanceRules
from tagpr_rl.chains.keep import AnswerRules, KeepRules
from tagpr_rl.chains.models import keep_rules
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


def test_thresholds_come_from_the_recipe():
    made = rules(
        lamp=True,
        rating_tolerance=0.5,
        generation_gain=0.1,
        min_steps=4,
        max_steps=9,
        min_agreement=0.75,
        profile_evidence="both",
        duplicate_scope="user",
        max_per_user=4,
        max_task_share=0.6,
    )
    assert made.answers == AnswerRules(rating_tolerance=0.5, generation_gain=0.1)
    assert (made.evidence.require, made.near_duplicates.scope) == ("both", "user")
    assert (made.balance.max_per_user, made.balance.max_task_share) == (4, 0.6)
    assert (made.label_twice, made.min_agreement) == (True, 0.75)
    assert (made.min_steps, made.max_steps) == (4, 9)
    assert not rules(min_agreement=0).label_twice


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        ({"tasks": {"LaMP_2": {}}}, "keep.tasks"),
        ({"evidence": {"require": "text"}}, "write keep.profile_evidence"),
        ({"near_duplicates": {"scope": "all"}}, "write keep.duplicate_scope"),
        ({"label_twice": False}, "min_agreement: 0"),
        ({"profile_evidenc": "text"}, "did you mean 'profile_evidence'"),
        ({"min_steps": 9, "max_steps": 4}, "min_steps is 9"),
        ({"max_task_share": 0}, "max_task_share"),
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
