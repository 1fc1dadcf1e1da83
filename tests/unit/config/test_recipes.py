"""Every recipe of the project: it loads, passes `plan`, and its README says what was measured."""

from __future__ import annotations

from pathlib import Path

import pytest

from tagpr_rl.cli import main
from tagpr_rl.config import GrpoStage, load_recipe
from tagpr_rl.plan import show as planning

FOLDER = Path(__file__).resolve().parents[3] / "recipes"
RECIPES = sorted(path for path in FOLDER.rglob("*.yaml") if path.parent.name != "sweeps")


@pytest.mark.parametrize("path", RECIPES, ids=[path.stem for path in RECIPES])
def test_it_has_no_problem(path: Path) -> None:
    recipe = load_recipe(path)
    assert planning.problems(recipe) == []
    assert recipe.name == path.stem


@pytest.mark.parametrize("path", RECIPES, ids=[path.stem for path in RECIPES])
def test_the_readme_says_how_to_launch_it_and_what_was_measured(path: Path) -> None:
    lines = (FOLDER / "README.md").read_text(encoding="utf-8").splitlines()
    rows = [line for line in lines if f"`{path.relative_to(FOLDER)}`" in line]
    assert len(rows) == 1 and len(rows[0].split("|")) == 7, rows


def test_gpu_recipes_want_real_data_and_a_named_device() -> None:
    actual = [load_recipe(path) for path in RECIPES if path.stem.startswith("qwen3")]
    assert len(actual) == 9
    for recipe in actual:
        assert recipe.data.lamp_dir is not None and recipe.budget.device is not None
        assert str(recipe.model.path).startswith("Qwen/Qwen3-")
        stages = [stage for stage in recipe.stages.values() if isinstance(stage, GrpoStage)]
        assert [stage.weights.alpha > 0 for stage in stages] == [True, False]


@pytest.mark.parametrize("path", RECIPES, ids=[path.stem for path in RECIPES])
def test_the_arm_on_direct_answers_has_the_budget_of_the_one_on_chains(path: Path) -> None:
    stages = load_recipe(path).stages
    if "answers" in stages:
        assert stages["answers"].model_dump() == {**stages["sft"].model_dump(), "dataset": "answers"}


def test_plan_s_exit_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(FOLDER / "lamp/qwen3_8b.yaml")
    assert main(["plan", path, f"out={tmp_path}", "--verl"]) == 0
    shown = capsys.readouterr().out
    assert "8,190,735,360 parameters" in shown and "actor_rollout_ref.rollout.name='vllm'" in shown
    assert main(["plan", path, f"out={tmp_path}", "platform.devices_per_node=2"]) == 2
    reported = capsys.readouterr()
    assert "the plan has" in reported.err and "optimizer" in reported.err
    assert "8,190,735,360 parameters" in reported.out  # the plan itself is printed all the same
    assert list(tmp_path.iterdir()) == []
