"""The curated W&B view: made from the recipe alone, the same each time; saving it fails with one clear message."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tagpr_rl.cli import main, study
from tagpr_rl.config import dump_recipe, load_recipe
from tagpr_rl.files import write_json

DEMO = Path(__file__).resolve().parents[3] / "recipes" / "demo.yaml"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    write_json(tmp_path / "resolved.json", dump_recipe(load_recipe(DEMO)))
    return tmp_path


def test_sections_and_panels_follow_the_recipe(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["wandb-view", str(run), "--json"]) == 0
    view = json.loads(capsys.readouterr().out)
    names = ["Reward composition", "By task", "By tag", "Health", "Throughput", "PRMU"]
    assert [section["name"] for section in view] == names
    by_title = {panel["title"]: panel["metrics"] for section in view for panel in section["panels"]}
    assert by_title["task: mean"] == ["guided/reward/task/mean", "explore/reward/task/mean"]
    assert by_title["prmu: mean"] == ["guided/reward/prmu/mean"]  # the exploratory stage has no PRMU
    assert by_title["LaMP_3"][0] == "guided/task/LaMP_3/mean"
    assert "KL to the stage's start" not in by_title  # kl_coef is 0
    assert by_title["Entropy"] == ["guided/actor/entropy_loss", "explore/actor/entropy_loss"]


def test_a_recipe_without_prmu_or_grpo(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    recipe = load_recipe(DEMO, ("stages.guided.weights.beta=0", "stages.guided.kl_coef=0.1"))
    view = study.view_of(recipe)
    assert [section.name for section in view][-1] == "Throughput"
    titles = [panel.title for section in view for panel in section.panels]
    assert "prmu: mean" not in titles and "KL to the stage's start" in titles
    raw = dump_recipe(recipe)
    raw["stages"] = {"data": raw["stages"]["data"]}
    write_json(tmp_path / "resolved.json", raw)
    assert main(["wandb-view", str(tmp_path)]) == 2
    assert "no stage of the kind grpo" in capsys.readouterr().err
    assert main(["wandb-view", str(tmp_path / "nothing")]) == 2


@pytest.mark.parametrize(
    "outcome, message",
    [
        (subprocess.CompletedProcess([], 3, "", ""), "'wandb-workspaces' is not installed"),
        (subprocess.CompletedProcess([], 1, "", "Traceback\nUsageError: No API key configured"), "No API key"),
        (subprocess.TimeoutExpired([], 60), "did not answer within 60 s"),
    ],
)
def test_what_goes_wrong_is_one_message(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], outcome: Any, message: str
) -> None:
    def answer(*_: Any, **__: Any) -> Any:
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    monkeypatch.setattr(subprocess, "run", answer)
    assert main(["wandb-view", str(run)]) == 2
    error = capsys.readouterr().err
    assert message in error and "--json" in error and len(error.splitlines()) == 1
    assert not (run / "wandb_view.json").exists()


def test_a_second_save_goes_over_the_first(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given: list[dict[str, Any]] = []

    def answer(command: list[str], *, input: str, **_: Any) -> Any:
        given.append(json.loads(input))
        return subprocess.CompletedProcess([], 0, "wandb: View saved\nhttps://wandb.ai/e/p?nw=1\n", "")

    monkeypatch.setattr(subprocess, "run", answer)
    for _ in range(2):
        assert main(["wandb-view", str(run), "--entity", "e"]) == 0
    assert [call["url"] for call in given] == ["", "https://wandb.ai/e/p?nw=1"]
    assert given[0]["entity"] == "e" and given[0]["sections"] == given[1]["sections"]
    assert "https://wandb.ai/e/p?nw=1" in capsys.readouterr().out


def test_w_and_b_s_package_takes_the_view_without_a_server(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("wandb_workspaces")
    from tagpr_rl.backend.tracking.wandb_view import workspace

    assert main(["wandb-view", str(run), "--json"]) == 0
    view = json.loads(capsys.readouterr().out)
    made = workspace({"entity": "e", "project": "p", "name": "demo: curated", "sections": view})
    assert [section.name for section in made.sections] == [section["name"] for section in view]
    for section, given in zip(made.sections, view, strict=True):
        assert [(panel.title, list(panel.y)) for panel in section.panels] == [
            (panel["title"], panel["metrics"]) for panel in given["panels"]
        ]
