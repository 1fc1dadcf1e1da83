"""A component of one's own, and a new built-in one: one file and a recipe, and the whole program has it."""

from __future__ import annotations

import io
import json
import statistics
import sys
from pathlib import Path
from typing import Any

import pytest
from made_runs import recipe as made_recipe
from rich.console import Console

from tagpr_rl.cli.replay import stage_rules
from tagpr_rl.cli.study import view_of
from tagpr_rl.cli.walk import walk
from tagpr_rl.config import GrpoStage, Recipe, dump_recipe, recipe_from_dict
from tagpr_rl.monitor.samples import columns, table_row
from tagpr_rl.monitor.step import RewardMismatch, check_sums, component_metrics
from tagpr_rl.report.charts.curves import chains_of, composition, curve_groups
from tagpr_rl.report.page.collect import collect
from tagpr_rl.report.page.html import render_page
from tagpr_rl.report.page.traces import viewer_data
from tagpr_rl.reward.components import COMPONENTS, Component, component_names, weighted_sum
from tagpr_rl.reward.replay import compare, read_lines, recompute
from tagpr_rl.reward.rubric import Rubric
from tagpr_rl.reward.update import AdvantageRules, credit_batch
from tagpr_rl.run.layout import RunDir, stage_dir
from tagpr_rl.run.manifest import stage_inputs
from tagpr_rl.stages.pipeline import run_pipeline
from tagpr_rl.tags.schema import default_schema
from tagpr_rl.types import TagprError

CHAIN = (
    "<think><examine_examples>one</examine_examples><infer_preference>two</infer_preference>"
    "<apply_preference>three</apply_preference></think>"
)
RESPONSES = [CHAIN + "comedy", "<think><examine_examples>one</examine_examples></think>drama", "comedy"]
BREVITY = [-0.6, -0.5, -1.0]
"""Minus a tenth of the answer's letters; -1 for the third, which has no thought."""
TOTALS = [1 + 0.3 - 0.05 * 0.6, 0.3 / 3 - 0.05 * 0.5, -0.05]
MODULE = '''"""Rewards of my own."""


def brevity(response):
    """Short answers are better."""
    return -len(response.trace.answer) / 10 if response.trace else -1


def wrong(response):
    return {"nan": float("nan"), "high": 1.5, "word": "1", "flag": True, "none": None}[response.gold]


def broken(response):
    return response.no_such_field
'''


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with my_rewards.py."""
    (tmp_path / "my_rewards.py").write_text(MODULE, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "my_rewards", raising=False)
    return tmp_path


def reward(term: dict[str, Any], **stage: Any) -> Recipe:
    terms = [
        {"name": "task_format", "weight": 1},
        {"name": "tag", "weight": 0.3},
        {"name": "repetition", "weight": 0.1},
    ]

    def change(raw: dict[str, Any]) -> None:
        raw["stages"]["guided"] |= {"reward": [*terms, {**term, "weight": 0.05}], **stage}

    return made_recipe(change)


def guided(recipe: Recipe) -> GrpoStage:
    stage = recipe.stages["guided"]
    assert isinstance(stage, GrpoStage)
    return stage


def rows_of(recipe: Recipe) -> list[dict[str, Any]]:
    rubric, _ = stage_rules(recipe, guided(recipe))
    return [rubric.score(text, task="LaMP_2", gold="comedy").row() for text in RESPONSES]


def lines_of(recipe: Recipe) -> list[dict[str, Any]]:
    """What training would have saved."""
    rubric, rules = stage_rules(recipe, guided(recipe))
    facts = {"record_id": "7", "task": "LaMP_2", "gold": "comedy", "group": "g", "advantage": 0.0, "step": 1}
    lines: list[dict[str, Any]] = []
    for i, (text, row) in enumerate(zip(RESPONSES, rows_of(recipe), strict=True)):
        numbers = {f"reward_{name}": row[name] for name in ("total", *component_names(guided(recipe).terms))}
        statuses = {key: row[key] for key in ("parse_status", "prmu_status")}
        weights = {term.name: term.weight for term in guided(recipe).terms}
        lines.append({**facts, "sample": i, "response": text, **numbers, **statuses, "weights": weights, "prompt": "p"})
    for line, new in zip(lines, recompute(rubric, rules, lines), strict=True):
        line["advantage"] = new.credit.advantage
    return lines


def check_everywhere(recipe: Recipe, folder: Path, name: str) -> None:
    """Rows, metrics, samples, W&B view, curves, page, trace viewer, replay and walk have the component."""
    rows, terms = rows_of(recipe), guided(recipe).terms
    assert [row[name] for row in rows] == BREVITY
    assert [row["total"] for row in rows] == pytest.approx(TOTALS)
    actual = component_metrics(rows, ["LaMP_2"] * 3, ["g"] * 3, component_names(terms))
    assert actual[f"reward/{name}/mean"] == actual[f"task/LaMP_2/{name}"] == pytest.approx(-0.7)
    check_sums(rows, TOTALS, terms, ["a", "b", "c"])
    lines = lines_of(recipe)
    table = dict(zip(columns(component_names(terms)), table_row("best", lines[0], terms), strict=True))
    assert table[f"reward_{name}"] == -0.6 and table["weighted"].endswith(f"{name} -0.0300")
    assert f"guided/reward/{name}/mean" in str(view_of(recipe))

    run = RunDir(folder / "runs" / "r")
    directory = stage_dir(recipe, run, "guided")
    directory.rollouts.mkdir(parents=True)
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (directory.rollouts / "step_0001.jsonl").write_text(text, encoding="utf-8")
    logged = {"step": 1, "reward/total/mean": 1.0, **actual}
    moved = {**logged, "step": 2, f"reward/{name}/mean": -0.6}  # a constant has no chart
    directory.metrics.write_text(f"{json.dumps(logged)}\n{json.dumps(moved)}\n", encoding="utf-8")
    labels = {
        figure.name.label for group in curve_groups(run, recipe) for panel in group.panels for figure in panel.figures
    }
    assert f"reward: {name}" in labels
    stack = composition(chains_of(run, recipe)[0])
    assert stack is not None and name in [layer.label for layer in stack.chart.layers]
    page = render_page(run, recipe, collect(run, recipe))
    assert f"0.3 × tag + 0.1 × repetition + 0.05 × {name}" in page and f"<dt>{name}</dt>" in page
    data = viewer_data(run, recipe, default_schema())
    at = [label for label, _ in data["terms"]].index(name)
    (place,) = data["terms"][at][1]
    assert data["traces"][0]["r"][place] == -0.6 and data["traces"][0]["w"][at] == 0.05

    rubric, rules = stage_rules(recipe, guided(recipe))
    saved = read_lines(directory.rollouts / "step_0001.jsonl", rubric)
    assert not any(item.beyond for item in compare(saved, recompute(rubric, rules, saved), rubric))
    saved[0][f"reward_{name}"] *= -1
    wrong = {item.column for item in compare(saved, recompute(rubric, rules, saved), rubric) if item.beyond}
    assert wrong == {f"reward_{name}"}
    console = Console(file=io.StringIO(), width=200)
    walk(recipe, 0, console=console)
    printed = console.file.getvalue()  # type: ignore[attr-defined]
    assert f"0.05 * {name}" in printed and recipe_from_dict(dump_recipe(recipe), source="x") == recipe


def test_a_component_of_one_s_own_is_one_file_and_a_recipe(own: Path) -> None:
    recipe = reward({"fn": "my_rewards:brevity"})
    check_everywhere(recipe, own, "brevity")
    rubric, _ = stage_rules(recipe, guided(recipe))
    assert rubric.components[-1].meaning == "Short answers are better."
    named = guided(reward({"fn": "my_rewards:brevity", "name": "short"})).terms[-1]
    assert (named.name, named.fn) == ("short", "my_rewards:brevity")


def test_a_built_in_component_is_an_entry_of_the_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def short(response: Any) -> float:
        return -len(response.trace.answer) / 10 if response.trace else -1.0

    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(COMPONENTS, "short", Component("short", short, -1.0, 0.0, "short answers are better"))
    check_everywhere(reward({"name": "short"}), tmp_path, "short")
    others = guided(made_recipe()).terms  # a stage that does not name it does not have it
    assert "short" not in component_names(others) and "short" not in Rubric(default_schema(), others).keys


def test_per_component_advantages_have_the_own_one(own: Path) -> None:
    recipe = reward({"fn": "my_rewards:brevity"}, advantage={"normalise": "per_component"})
    rows = rows_of(recipe)
    _, rules = stage_rules(recipe, guided(recipe))
    actual = [credit.advantage for credit in credit_batch(rows, ["g"] * 3, None, rules)]
    # Each term by its own mean and deviation, weighted, summed; then by the deviation of the sums.
    terms = {1.0: [1.0, 0.0, 0.0], 0.3: [1.0, 1 / 3, 0.0], 0.05: BREVITY}  # repetition is 0 everywhere
    sums = [
        sum(w * (v[i] - statistics.fmean(v)) / statistics.stdev(v) for w, v in terms.items()) for i in range(3)
    ]  # fmt: skip
    assert actual == pytest.approx([value / statistics.stdev(sums) for value in sums], abs=1e-4)
    flipped = [{**row, "brevity": -row["brevity"]} for row in rows]
    others = [credit.advantage for credit in credit_batch(flipped, ["g"] * 3, None, rules)]
    assert others[2] > actual[2] and others[1] < actual[1]


def test_under_step_credit_the_own_component_stays_with_the_response(own: Path) -> None:
    recipe = reward({"fn": "my_rewards:brevity"}, advantage={"credit": "step", "normalise": "none"})
    rubric, rules = stage_rules(recipe, guided(recipe))
    outputs = [rubric.score(text, task="LaMP_2", gold="comedy") for text in RESPONSES]
    rows, parts = [output.row() for output in outputs], [output.parts for output in outputs]
    credits = credit_batch(rows, ["g"] * 3, parts, rules)
    mean = sum(TOTALS) / 3  # every step is sound, so coverage is the tag score
    assert [credit.advantage for credit in credits] == pytest.approx([total - mean for total in TOTALS])
    assert [len(credit.steps) for credit in credits] == [3, 1, 0] and not any(any(c.steps) for c in credits)


@pytest.mark.parametrize("name", ["task", "tag", "brevity"])
def test_a_flipped_sign_is_seen(own: Path, name: str) -> None:
    recipe = reward({"fn": "my_rewards:brevity"})
    terms, rows = guided(recipe).terms, rows_of(recipe)
    rows[0] = {**rows[0], name: -rows[0][name]}
    with pytest.raises(RewardMismatch, match=f"{name}="):
        check_sums(rows[:1], [rows[0]["total"]], terms, ["r"])
    assert weighted_sum(terms, rows[0]) != pytest.approx(rows[0]["total"])


@pytest.mark.parametrize(
    "fn, part",
    [
        ("no_such_module:brevity", "there is no module 'no_such_module'.*neither installed nor in"),
        ("my_rewards.deeper:brevity", "there is no module 'my_rewards.deeper'"),
        ("my_rewards:brevty", "has no function 'brevty'; did you mean 'brevity'"),
        ("my_rewards:zzz", "its functions are brevity, wrong, broken"),
    ],
)
def test_a_missing_module_or_function_is_named(own: Path, fn: str, part: str) -> None:
    recipe = reward({"fn": fn})  # a recipe can be read, and a report made, without the module
    with pytest.raises(TagprError, match=part):
        stage_rules(recipe, guided(recipe))


def test_a_mistake_inside_the_module_keeps_its_traceback(own: Path) -> None:
    (own / "half.py").write_text("import no_such_package\n", encoding="utf-8")
    recipe = reward({"fn": "half:brevity"})
    with pytest.raises(ModuleNotFoundError, match="no_such_package"):
        stage_rules(recipe, guided(recipe))


@pytest.mark.parametrize("gold", ["nan", "high", "word", "flag", "none"])
def test_a_value_that_is_no_number_in_range_is_refused(own: Path, gold: str) -> None:
    recipe = reward({"fn": "my_rewards:wrong"})
    rubric, _ = stage_rules(recipe, guided(recipe))
    with pytest.raises(TagprError, match=r"'wrong' \(my_rewards:wrong\) returned .* a number in \[-1, 1\]"):
        rubric.score("x", task="LaMP_2", gold=gold)


def test_an_exception_never_becomes_a_reward(own: Path) -> None:
    recipe = reward({"fn": "my_rewards:broken"})
    rubric, _ = stage_rules(recipe, guided(recipe))
    with pytest.raises(AttributeError, match="no_such_field"):
        rubric.score("x", task="LaMP_2", gold="comedy")


@pytest.mark.parametrize(
    "terms, part",
    [
        ([{"name": "tags", "weight": 1}], "no reward component is called 'tags'; did you mean 'tag'"),
        ([{"fn": "my_rewards:task", "weight": 1}], "'task' is a name of the built-in reward"),
        ([{"fn": "my_rewards:brevity", "name": "total", "weight": 1}], "'total' is a name of the built-in"),
        ([{"name": "tag", "weight": 1}] * 2, "reward names tag twice"),
        ([{"name": "tag", "weight": 0}], "no term with a weight above 0"),
        ([{"name": "tag"}], "weight"),
        ([{"name": "tag", "weight": -1}], "greater than or equal to 0"),
        ([{"fn": "my_rewards.brevity", "weight": 1}], "is not of the form module:function"),
        ([{"name": "prmu", "weight": 1}], "the weight of prmu in reward is above 0 but no `prmu` stage"),
    ],
)
def test_a_bad_list_is_refused_with_the_remedy(terms: list[dict[str, Any]], part: str) -> None:
    def change(raw: dict[str, Any]) -> None:
        raw["stages"]["guided"] |= {"reward": terms, "prmu": None}

    with pytest.raises(TagprError, match=part):
        made_recipe(change)


def test_the_short_form_is_a_list() -> None:
    def change(raw: dict[str, Any]) -> None:
        raw["stages"]["guided"]["reward"] = [
            {"name": "task_format", "weight": 1}, {"name": "tag", "weight": 0.2},
            {"name": "prmu", "weight": 0.2, "gate": True}, {"name": "repetition", "weight": 0.1},
        ]  # fmt: skip

    assert guided(made_recipe(change)).terms == guided(made_recipe()).terms
    assert guided(made_recipe(change)).uses_prmu and guided(made_recipe(change)).weights is None


def test_rules_without_terms_reward_nothing() -> None:
    assert AdvantageRules().terms == () and component_names(()) == ("task", "format", "tag", "prmu", "repetition")


def test_another_text_of_the_function_is_another_input_of_the_stage(own: Path) -> None:
    recipe, run = reward({"fn": "my_rewards:brevity"}), RunDir(own / "runs" / "r")
    before = stage_inputs(recipe, run, "guided")["reward my_rewards:brevity"]
    (own / "my_rewards.py").write_text(MODULE.replace("/ 10", "/ 20"), encoding="utf-8")
    assert stage_inputs(recipe, run, "guided")["reward my_rewards:brevity"] != before
    (own / "my_rewards.py").unlink()
    assert stage_inputs(recipe, run, "guided")["reward my_rewards:brevity"] == "absent"


def test_a_run_says_at_its_start_that_a_module_is_missing(own: Path) -> None:
    recipe = reward({"fn": "no_such_module:brevity"})
    with pytest.raises(TagprError, match="there is no module 'no_such_module'"):
        run_pipeline(recipe, RunDir(own / "runs" / "r"), console=Console(file=io.StringIO()))
    assert not list((own / "runs" / "r").glob("*_data"))  # no stage has begun
