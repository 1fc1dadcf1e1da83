"""A term with a gate: a malformed response has nothing of it, and every reader of the reward says the same."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from made_runs import recipe as made_recipe

from tagpr_rl.cli.replay import stage_rules
from tagpr_rl.config import GrpoStage, Recipe
from tagpr_rl.monitor.step import check_sums, gated_means
from tagpr_rl.report.charts.curves import chains_of, composition
from tagpr_rl.report.page.collect import reward_terms
from tagpr_rl.reward.advantages.per_component import per_component_advantages
from tagpr_rl.reward.components import component_names, make_term
from tagpr_rl.reward.replay import compare, recompute
from tagpr_rl.reward.rubric import Rubric
from tagpr_rl.run.layout import RunDir, stage_dir
from tagpr_rl.tags.schema import default_schema
from tagpr_rl.types import TagprError

STEPS = (
    "<examine_examples>one</examine_examples><infer_preference>two</infer_preference>"
    "<apply_preference>three</apply_preference>"
)
GOOD, UNCLOSED = f"<think>{STEPS}</think>drama", f"<think>{STEPS} drama"
PRMU = 0.95
LIST = [
    {"name": "task_format", "weight": 1}, {"name": "tag", "weight": 0.1},
    {"name": "prmu", "weight": 0.1, "gate": True}, {"name": "repetition", "weight": 0.1},
]  # fmt: skip


def recipe(**stage: Any) -> Recipe:
    return made_recipe(lambda raw: raw["stages"]["guided"].update(stage))


def guided(made: Recipe) -> GrpoStage:
    stage = made.stages["guided"]
    assert isinstance(stage, GrpoStage)
    return stage


def gated() -> Recipe:
    return recipe(weights={"alpha": 0.1, "beta": 0.1, "gamma": 0.1, "gate": True})


def rows_of(rubric: Rubric) -> list[dict[str, Any]]:
    scored = {"task": "LaMP_2", "gold": "comedy", "prmu": PRMU, "prmu_status": "scored"}
    return [rubric.score(text, **scored).row() for text in (GOOD, UNCLOSED)]


@pytest.mark.parametrize(("gate", "malformed"), [(False, 0.095), (True, 0.0)])
def test_a_malformed_response_has_nothing_of_a_gated_term(gate: bool, malformed: float) -> None:
    rubric, _ = stage_rules(made := recipe(weights={"alpha": 0.1, "beta": 0.1, "gate": gate}), guided(made))
    good, bad = rows_of(rubric)
    assert (good["total"], bad["total"]) == pytest.approx((0.1 + 0.095, malformed))
    assert bad["parse_status"] == "TEXT_OUTSIDE" and bad["prmu"] == PRMU  # the component itself stays as measured
    check_sums([good, bad], [0.195, malformed], guided(made).terms, ["good", "bad"])


def test_the_short_form_and_the_list_are_equal() -> None:
    terms = guided(gated()).terms
    assert guided(recipe(weights=None, reward=LIST)).terms == terms
    assert [term.label for term in terms] == ["task × format", "tag", "prmu × format", "repetition"]
    assert guided(gated()).uses_prmu and component_names(terms) == ("task", "format", "tag", "prmu", "repetition")


@pytest.mark.torch
def test_the_gate_survives_the_way_to_the_trainer() -> None:
    from tagpr_rl.backend.trainer.advantages import terms_from

    terms = guided(gated()).terms
    assert terms_from(SimpleNamespace(terms=[asdict(term) for term in terms])) == terms


def test_a_list_may_gate_task_and_a_component_of_one_s_own_but_no_penalty() -> None:
    own = {"fn": "my_rewards:brevity", "weight": 0.1, "gate": True}
    made = recipe(weights=None, prmu=None, reward=[{"name": "task", "weight": 1, "gate": True}, own])
    assert guided(made).terms == (make_term("task", 1, gate=True), make_term("brevity", 0.1, own["fn"], gate=True))
    assert guided(made).terms[1].factors == ("brevity", "format") and guided(made).terms[1].component == "brevity"
    with pytest.raises(TagprError, match="repetition is a penalty, which gate: true would spare"):
        recipe(weights=None, reward=[LIST[0], {**LIST[3], "gate": True}])
    with pytest.raises(TagprError, match="reward names task_format twice"):
        recipe(weights=None, reward=[LIST[0], {"name": "task", "weight": 1, "gate": True}])


@pytest.mark.parametrize("credit", ["response", "step"])
def test_replay_finds_no_difference_and_sees_a_missing_gate(credit: str) -> None:
    advantage = {"credit": credit, "normalise": "none"}
    made = recipe(weights={"alpha": 0.1, "beta": 0.1, "gate": True}, advantage=advantage)
    rubric, rules = stage_rules(made, guided(made))
    facts = {"record_id": "7", "task": "LaMP_2", "gold": "comedy", "group": "g", "advantage": 0.0}
    lines: list[dict[str, Any]] = []
    for i, (text, row) in enumerate(zip((GOOD, UNCLOSED), rows_of(rubric), strict=True)):
        numbers = {f"reward_{name}": row[name] for name in ("total", *component_names(guided(made).terms))}
        statuses = {key: row[key] for key in ("parse_status", "prmu_status")}
        lines.append({**facts, "sample": i, "response": text, **numbers, **statuses})
    for line, new in zip(lines, recompute(rubric, rules, lines), strict=True):
        line["advantage"] = new.credit.advantage
    # Totals .195 and 0 around their mean. Every step is sound, so coverage stands for `tag`.
    assert [line["advantage"] for line in lines] == pytest.approx([0.0975, -0.0975])
    assert not any(item.beyond for item in compare(lines, recompute(rubric, rules, lines), rubric))
    other, other_rules = stage_rules(plain := recipe(weights={"alpha": 0.1, "beta": 0.1, "gate": False}), guided(plain))
    wrong = {item.column for item in compare(lines, recompute(other, other_rules, lines), other) if item.beyond}
    assert {"reward_total", "advantage"} <= wrong


def test_per_component_advantages_compare_the_gated_product() -> None:
    terms = [make_term("prmu", 1.0, gate=True)]
    rows = [{"prmu": 0.5, "format": 1.0}, {"prmu": 0.9, "format": 0.0}]
    first, second = per_component_advantages(rows, terms, ["g", "g"])
    assert first > 0 > second


def test_the_composition_has_the_mean_of_the_product(tmp_path: Path) -> None:
    made = gated()
    directory = stage_dir(made, RunDir(tmp_path), "guided")
    directory.root.mkdir(parents=True)
    rows = [
        {"task": 1.0, "format": 1.0, "tag": 1.0, "prmu": 0.5, "repetition": 0.0},
        {"task": 0.0, "format": 0.0, "tag": 0.0, "prmu": 0.9, "repetition": 0.0},
    ]
    means = gated_means(rows, guided(made).terms)
    assert means == {"reward/task_format/mean": 0.5, "reward/prmu_format/mean": 0.25}
    row = {"step": 1, "reward/total/mean": 0.5 + 0.05 + 0.025, "reward/tag/mean": 0.5, "reward/prmu/mean": 0.7, **means}
    directory.metrics.write_text(json.dumps(row) + "\n", encoding="utf-8")
    figure = composition(chains_of(RunDir(tmp_path), made)[0])
    assert figure is not None
    parts = {layer.label: float(layer.mean) for layer in figure.chart.layers}
    assert parts == {"task × format": 0.5, "tag": 0.05, "prmu × format": pytest.approx(0.025, abs=1e-3)}


def test_stages_that_differ_in_the_gate_are_two_terms_in_the_report() -> None:
    def change(raw: dict[str, Any]) -> None:
        raw["stages"]["guided"]["weights"] = {"beta": 0.1}  # the gate is the default
        raw["stages"]["explore"] |= {"prmu": "prmu", "weights": {"beta": 0.1, "gate": False}}

    assert [term.name for term in reward_terms(made_recipe(change))] == [
        "task_format", "tag", "prmu_format", "repetition", "prmu",
    ]  # fmt: skip


def test_every_other_term_of_a_malformed_response_is_no_gain() -> None:
    rubric = Rubric(default_schema(), guided(gated()).terms)
    for text in ("", "<think>", UNCLOSED, "<think></think>comedy", "comedy", GOOD.replace("</think>", ""), GOOD[:-5]):
        row = rubric.score(text, task="LaMP_2", gold="comedy", prmu=1.0, prmu_status="scored").row()
        assert row["format"] == 0.0 and row["total"] <= 0.0, text
