"""`tagpr compare`: recipe keys, scores and paired differences by hand, and what it says where it cannot."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from made_report import EVIL, make_recipe, make_run

from tagpr_rl.cli import main
from tagpr_rl.cli.compare import labels
from tagpr_rl.config import dump_recipe
from tagpr_rl.files import write_json
from tagpr_rl.report.page.comparison import ABSENT, common_responses, compare, flat, read_side, recipe_differences
from tagpr_rl.run.layout import RunDir
from tagpr_rl.run.open import read_resolved
from tagpr_rl.tags.schema import default_schema


def made(root: Path, name: str, change: dict[str, Any] | None = None, **edits: Any) -> RunDir:
    """A made-up run called `name`; `edits` are scores of the last model by question key."""
    run = make_run(root / name)
    raw = dump_recipe(make_recipe())
    for key, value in (change or {}).items():
        *path, last = key.split(".")
        block = raw
        for part in path:
            block = block[part]
        if value is None:
            del block[last]
        else:
            block[last] = value
    write_json(run.resolved, raw)
    path = run.stage(list(raw["stages"]).index("eval"), "eval").root / "eval.json"
    if path.is_file() and edits:
        content = json.loads(path.read_text())
        for question in content["models"]["explore"]["questions"]:
            question["score"] = edits.get(question["key"].replace("/", "_"), question["score"])
        path.write_text(json.dumps(content))
    return run


def side(run: RunDir, label: str, model: str | None = None) -> Any:
    return read_side(run, read_resolved(run), label, model)


def test_nested_keys_become_paths() -> None:
    assert flat({"a": {"b": 1, "c": {"d": [2]}}, "e": {}}) == {"a.b": 1, "a.c.d": [2], "e": {}}


def test_only_keys_that_differ_are_named(tmp_path: Path) -> None:
    a = made(tmp_path, "a")
    b = made(tmp_path, "b", {"name": "other", "out": "elsewhere", "stages.guided.weights.beta": 0.5})
    assert recipe_differences([side(a, "a"), side(b, "b")]) == [("stages.guided.weights.beta", ["0.2", "0.5"])]
    c = side(made(tmp_path, "c"), "c")
    c.recipe.stages.pop("chains")  # one line for the whole stage
    assert recipe_differences([side(a, "a"), c]) == [("stages.chains", ["chains", ABSENT])]


def test_differences_are_paired_by_question(tmp_path: Path) -> None:
    # Two users, two tasks. a's last model: .811 in LaMP_2 and .833 in LaMP_3. b's: 1 and .25 of user 0 in LaMP_2.
    a = side(made(tmp_path, "a"), "a")
    b = side(made(tmp_path, "b", LaMP_2_0=1.0, LaMP_2_1=0.25), "b")
    actual = compare([a, b])
    assert actual.tasks == ("LaMP_2", "LaMP_3") and len(actual.common) == 4
    assert [(run, model) for run, model, *_ in actual.scores] == [
        (run, model) for run in "ab" for model in ("base", "sft", "explore")
    ]
    assert actual.scores[2][2:] == ([pytest.approx(0.811), pytest.approx(0.833)], pytest.approx(0.822))
    mean, two, three = actual.differences
    assert (two.first, two.value) == pytest.approx((0.811, 0.625)) and two.questions == 2
    assert two.difference == pytest.approx(-0.186)
    # Resampled users: both (-.186), user 0 twice (+.189) or user 1 twice (-.561).
    assert (two.low, two.high) == pytest.approx((-0.561, 0.189))
    assert three.difference == 0 and (three.low, three.high) == (0, 0)
    assert mean.difference == pytest.approx(-0.093) and mean.questions == 4


def test_responses_to_one_question_stand_side_by_side(tmp_path: Path) -> None:
    actual = compare([side(made(tmp_path, name), name) for name in "ab"])
    data = common_responses(actual, default_schema())
    assert len(data["groups"]) == 3 and data["shown"]["evaluated"] == [6, 6]
    assert [trace["n"] for trace in data["traces"][:2]] == ["a, explore", "b, explore"]


def test_names_are_as_long_as_they_must_be() -> None:
    assert labels([Path("/x/a"), Path("/x/b")]) == ["a", "b"]
    assert labels([Path("/x/s1/demo"), Path("/y/s2/demo")]) == ["s1/demo", "s2/demo"]


def test_the_command_writes_a_page_and_prints_tables(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = made(tmp_path, "a"), made(tmp_path, "b", {"stages.guided.weights.beta": 0.5}, LaMP_2_0=1.0)
    assert main(["compare", str(a.root), str(b.root), "--out", str(tmp_path / "page.html")]) == 0
    printed = capsys.readouterr().out
    assert "stages.guided.weights.beta" in printed and "+0.047" in printed  # (1 - .811) / 2 / 2
    assert str(tmp_path / "page.html") in printed.replace("\n", "")
    text = (tmp_path / "page.html").read_text()
    assert "+0.047" in text and EVIL not in text and 'id="viewer-data"' in text
    assert main(["compare", str(a.root), str(b.root), "--model", "sft"]) == 0
    assert (a.root.parent / "compare_tiny_tiny.html").is_file()


def test_what_cannot_be_compared_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, bare = made(tmp_path, "a"), make_run(tmp_path / "bare", evaluated=False)
    write_json(bare.resolved, dump_recipe(make_recipe()))
    strange = made(tmp_path, "strange")
    path = strange.stage(9, "eval").root / "eval.json"
    path.write_text(path.read_text().replace('"LaMP_2/', '"LaMP_9/').replace('"LaMP_3/', '"LaMP_8/'))

    def error(*arguments: str) -> str:
        assert main(["compare", *arguments]) == 2
        return " ".join(capsys.readouterr().err.split())

    assert "needs two runs or more" in error(str(a.root))
    assert "a run stands twice" in error(str(a.root), str(a.root))
    assert "is no run's folder" in error(str(a.root), str(tmp_path))
    assert "has no evaluation" in error(str(a.root), str(bare.root))
    assert "evaluated base, sft, explore, not 'guided'" in error(str(a.root), str(strange.root), "--model", "guided")
    message = error(str(a.root), str(strange.root))
    assert "no question was answered by all runs" in message and "LaMP_9/0" in message
    assert not list(tmp_path.rglob("compare_*.html"))


def test_a_sweeps_folder_gives_its_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arm = {"overrides": {}, "per_seed": {"1": {"score": 0.5, "by_task": {}}}, "score": [0.5, 0.4, 0.6]}
    write_json(tmp_path / "sweep.json", {"format": 1, "name": "s", "seeds": [1], "questions": 4, "arms": {"full": arm}})
    assert main(["compare", str(tmp_path)]) == 0
    assert (tmp_path / "sweep.html").is_file() and "sweep.html" in capsys.readouterr().out
