"""`tagpr chains`: what it prints and writes, and one clear error for each bad input. Runs are made by hand."""

from __future__ import annotations

import json
import shutil
import sys
import types
from pathlib import Path
from typing import Any

import made_chains as made
import pytest

from tagpr_rl.cli import main
from tagpr_rl.cli.chains import printable
from tagpr_rl.config import load_recipe, needed_for
from tagpr_rl.run.layout import RunDir
from tagpr_rl.tags.schema import load_schema

DEMO = Path(__file__).resolve().parents[3] / "recipes" / "demo.yaml"
SMOKE = DEMO.parent / "smoke.yaml"


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return made.make_run(tmp_path)


def chains(*arguments: object) -> int:
    return main(["chains", *map(str, arguments)])


def test_run_makes_the_chains_and_what_they_need_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[dict[str, Any]] = []
    module = types.ModuleType("tagpr_rl.stages.pipeline")
    module.run_pipeline = lambda recipe, run, **options: calls.append({"root": run.root, **options})  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "tagpr_rl.stages.pipeline", module)
    assert chains("run", DEMO, "name=a", f"out={tmp_path}", "stages.chains.samples=2") == 0
    assert calls == [{"root": tmp_path / "a", "only": ("data", "model", "chains")}]


def test_what_a_stage_needs() -> None:
    recipe = load_recipe(DEMO)
    assert needed_for(recipe, "data") == ("data",)
    assert needed_for(recipe, "sft") == ("data", "model", "base", "chains", "sft")
    assert "first" not in needed_for(recipe, "guided") and "prmu" in needed_for(recipe, "guided")


def test_inspect_counts_and_shows_kept_chains(run: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    assert chains("inspect", run.root, "--n", "5") == 0
    out = capsys.readouterr().out
    for line in ("kept", "WRONG_ANSWER", "NO_ANSWER", "infer_preference the user prefers red cars", "answer comedy"):
        assert line in out
    assert out.count("understand_task") == 5 and out.count("wrong answer, kept on purpose") == 1
    assert chains("inspect", run.root, "--n", "2") == 0
    out = capsys.readouterr().out
    assert out.count("LaMP_1  record") == 1 and out.count("LaMP_2  record") == 1  # tasks take turns


def test_inspect_shows_rejected_chains_and_no_control_character(
    run: RunDir, capsys: pytest.CaptureFixture[str]
) -> None:
    assert chains("inspect", run.root, "--reason", "wrong_answer", "--task", "LaMP_1") == 0
    out = capsys.readouterr().out
    assert "rejected: WRONG_ANSWER" in out and "</script><b>x</b> | a `tick` \\x1b[31mred" in out
    assert "\x1b[31m" not in out and "I do not know" not in out


def test_printable() -> None:
    assert printable("a\tb\nc\x1b]0;x\x07\u202ed") == "a\tb\nc\\x1b]0;x\\x07\\x202ed"


def test_card_writes_a_data_set(run: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    target = run.root / "export" / "chains-dataset"
    for _ in range(2):  # a second time replaces it
        assert chains("card", run.root) == 0
        assert capsys.readouterr().out.strip() == str(target)
    assert (target / "README.md").read_text(encoding="utf-8").startswith("---\npretty_name:")
    assert (target / "plots" / "tags.svg").is_file() and (target / "card.html").is_file()
    marker = json.loads((target / "tagpr_dataset.json").read_text(encoding="utf-8"))
    assert (marker["recipe"], marker["stage"]) == ("r", "chains") and "chains.parquet" in marker["outputs"]
    assert chains("card", run.root, "--out", run.root.parent / "other") == 0
    assert (run.root.parent / "other" / "data" / "train-00000-of-00001.parquet").is_file()


def test_discover_proposes_a_schema_that_a_recipe_takes(run: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    assert chains("discover", run.root, "--tags", "4") == 0
    out = capsys.readouterr().out
    path = run.root / "export" / "chains-tags" / "tags.yaml"
    assert out.rstrip().endswith(str(path))
    schema = load_schema(path)
    assert len(schema.tags) == 4
    recipe = load_recipe(DEMO, (f"schema_file={path}",))
    assert load_schema(recipe.schema_file).sha256 == schema.sha256
    actual = json.loads((path.parent / "discovery.json").read_text(encoding="utf-8"))
    # Four steps of each kept chain, and the three lines of the rejected one that has an answer.
    assert (actual["chains"], actual["steps"]) == (6, 23)
    assert actual["schema_sha256"] == schema.sha256 and actual["labeller"] == "scripted free labeller"
    assert sum(tag["steps"] for tag in actual["tags"]) + sum(actual["unassigned_steps"].values()) == 23


def test_a_stage_that_kept_nothing_can_be_looked_into(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = made.make_run(tmp_path, finished=False)
    folder = made.chains_folder(run).root
    for name in ("chains.parquet", "pairs.parquet", "chains.json"):
        (folder / name).unlink()
    assert chains("inspect", run.root) == 0
    out = capsys.readouterr().out
    assert "The stage is not finished" in out and "rejected: NO_ANSWER" in out
    assert chains("card", run.root) == 2
    assert "is not finished" in capsys.readouterr().err


def unfinished(run: RunDir) -> None:
    shutil.rmtree(made.chains_folder(run).root)


def truncated(run: RunDir) -> None:
    path = made.chains_folder(run).root / "chains.parquet"
    path.write_bytes(path.read_bytes()[:-10])


def no_rejected(run: RunDir) -> None:
    (made.chains_folder(run).root / "rejected.parquet").unlink()


@pytest.mark.parametrize("what", ["inspect", "card", "discover"])
@pytest.mark.parametrize(
    "damage, part",
    [
        (lambda run: shutil.rmtree(run.root), "is no run's folder"),
        (lambda run: run.resolved.unlink(), "is no run's folder: it has no resolved.json"),
        (unfinished, "stage 'chains' of {root} is not finished; `tagpr chains run RECIPE` makes it"),
        (truncated, "chains.parquet, an output of stage 'chains', differs from what the stage wrote"),
        (no_rejected, "rejected.parquet, an output of stage 'chains', is missing"),
    ],
)
def test_a_run_that_cannot_be_used(
    what: str, damage: Any, part: str, run: RunDir, capsys: pytest.CaptureFixture[str]
) -> None:
    damage(run)
    assert chains(what, run.root) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and part.format(root=run.root) in error and error.count("\n") == 1
    assert not (run.root / "export").exists()


@pytest.mark.parametrize(
    "arguments, part",
    [
        (["--reason", "BORING"], "--reason BORING: no chain was rejected for it; reasons: NO_ANSWER, WRONG_ANSWER"),
        (["--task", "LaMP_7"], "--task LaMP_7: none of these chains is of that task; tasks: LaMP_1, LaMP_2"),
        (["--reason", "NO_ANSWER", "--task", "LaMP_1"], "tasks: LaMP_2"),
        (["--stage", "model"], "--stage model: no chains stage of that name; there is chains"),
    ],
)
def test_inspect_names_what_there_is(
    arguments: list[str], part: str, run: RunDir, capsys: pytest.CaptureFixture[str]
) -> None:
    assert chains("inspect", run.root, *arguments) == 2
    assert part in capsys.readouterr().err


def test_several_chains_stages_must_be_told_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = made.make_run(tmp_path, stages=made.STAGES | {"more": {"kind": "chains"}})
    assert chains("card", run.root) == 2
    assert "has 2 chains stages (chains, more); name one with --stage" in capsys.readouterr().err
    assert chains("card", run.root, "--stage", "chains") == 0


def test_a_foreign_folder_is_left_alone(run: RunDir, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    for what in ("card", "discover"):
        assert chains(what, run.root, "--out", tmp_path / "mine") == 2
        assert "choose another folder with --out" in capsys.readouterr().err
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "precious"


@pytest.mark.parametrize(
    "arguments",
    [["inspect"], ["inspect", "x", "--n", "0"], ["discover", "x", "--tags", "-1"], ["card", "x", "data.limit=3"], []],
)
def test_a_wrong_command_line_exits_with_2(arguments: list[str]) -> None:
    assert chains(*arguments) == 2


@pytest.mark.torch
def test_from_a_recipe_to_a_data_set_and_a_schema(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The real stages: data, model, chains; then every command on what they wrote."""
    sizes = ("data.world.train_users=20", "data.world.held_out_users=4", "data.world.time_users=4")
    assert chains("run", SMOKE, f"out={tmp_path}", *sizes) == 0
    run = RunDir(tmp_path / "smoke")
    assert sorted(path.name for path in run.root.iterdir() if path.is_dir()) == ["010_data", "020_model", "050_chains"]
    facts = json.loads((run.root / "050_chains" / "chains.json").read_text(encoding="utf-8"))
    assert chains("card", run.root) == 0 and chains("inspect", run.root) == 0
    card = (run.root / "export" / "chains-dataset" / "README.md").read_text(encoding="utf-8")
    assert f"| kept | {facts['kept']:,} |" in card
    assert chains("discover", run.root) == 0
    assert 4 <= len(load_schema(run.root / "export" / "chains-tags" / "tags.yaml").tags) <= 5
