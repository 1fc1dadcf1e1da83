"""Algorithms by name: what each sets, and that single keys override."""

from __future__ import annotations

from typing import Any

import pytest
from made_runs import recipe as made_recipe

from tagpr_rl.config import GrpoStage, dump_recipe, recipe_from_dict
from tagpr_rl.config.grpo import ALGORITHMS, algorithm_rows
from tagpr_rl.types import TagprError


def stage(**values: Any) -> GrpoStage:
    def change(raw: dict[str, Any]) -> None:
        raw["stages"]["guided"] |= values

    recipe = made_recipe(change)
    assert recipe_from_dict(dump_recipe(recipe), source="again") == recipe
    actual = recipe.stages["guided"]
    assert isinstance(actual, GrpoStage)
    return actual


@pytest.mark.parametrize(
    "name, normalise, zero_variance, loss, clip_low, clip_high, loss_agg",
    [
        ("grpo", "group_std", "keep", "clip", 0.2, 0.2, "seq-mean-token-mean"),
        ("dr_grpo", "none", "keep", "clip", 0.2, 0.2, "seq-mean-token-sum-norm"),
        ("dapo", "group_std", "resample", "clip", 0.2, 0.28, "token-mean"),
        ("gspo", "group_std", "keep", "gspo", 3e-4, 4e-4, "seq-mean-token-mean"),
        ("gdpo", "per_component", "keep", "clip", 0.2, 0.2, "token-mean"),
    ],
)
def test_what_an_algorithm_sets(name: str, normalise: str, zero_variance: str, loss: str, clip_low: float,
                                clip_high: float, loss_agg: str) -> None:  # fmt: skip
    actual = stage(algorithm=name)
    assert (actual.advantage.normalise, actual.advantage.zero_variance) == (normalise, zero_variance)
    assert (actual.loss, actual.clip_low, actual.clip_high, actual.loss_agg) == (loss, clip_low, clip_high, loss_agg)


def test_single_keys_override() -> None:
    actual = stage(algorithm="dapo", clip_high=0.25, advantage={"zero_variance": "drop", "step_weight": 0.5})
    assert (actual.clip_high, actual.advantage.zero_variance, actual.advantage.normalise) == (0.25, "drop", "group_std")
    assert actual.advantage.step_weight == 0.5 and actual.loss_agg == "token-mean"


def test_without_a_name_nothing_changes() -> None:
    assert stage().model_dump(exclude={"algorithm"}) == stage(algorithm=None).model_dump(exclude={"algorithm"})
    assert (stage().clip_high, stage().loss_agg, stage().advantage.zero_variance) == (0.2, "token-mean", "keep")


def test_an_unknown_name_and_the_table_for_the_documentation() -> None:
    with pytest.raises(TagprError, match=r"stages\.guided\.algorithm"):
        stage(algorithm="ppo")
    rows = {row["algorithm"]: row for row in algorithm_rows()}
    assert list(rows) == list(ALGORITHMS)
    assert rows["gspo"]["clip_low"] == "0.0003" and rows["dapo"]["advantage.zero_variance"] == "resample"
    assert all(len(row["arXiv"]) == 10 and row["idea"] for row in rows.values())
