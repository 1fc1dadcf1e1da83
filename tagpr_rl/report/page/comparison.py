"""Compares runs: differences of their recipes, scores on common questions, curves and responses."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from tagpr_rl.config import EvaluateStage, Recipe, answers_directly, dump_recipe
from tagpr_rl.eval.metrics import mean_over_tasks, paired_difference
from tagpr_rl.files import write_text
from tagpr_rl.report.charts.curves import (
    MOST_POINTS,
    WELL_FORMED,
    Chain,
    Figure,
    axis_range,
    chains_of,
    reward_curves,
    thinned_note,
    without_constant,
)
from tagpr_rl.report.charts.plots import LineChart, line_chart, thin
from tagpr_rl.report.page.collect import reward_terms, stage_dirs
from tagpr_rl.report.page.embed import environment, json_for_page, script, script_source
from tagpr_rl.report.page.names import LEARNING, RESPONSES, TIMING, reward_names
from tagpr_rl.report.page.read import Row, read_object, read_rows
from tagpr_rl.report.page.samples import blind, question_key
from tagpr_rl.report.page.trace import tag_hues
from tagpr_rl.report.page.traces import Traces
from tagpr_rl.run.layout import RunDir
from tagpr_rl.tags.schema import TagSchema, default_schema, load_schema
from tagpr_rl.types import TagprError

ABSENT = "(absent)"
NOT_OF_THE_METHOD = ("name", "out")
"""Keys that always differ between runs and mean nothing."""
MOST_RESPONSES = 2000
Scores = dict[str, dict[str, float]]


@dataclass(frozen=True, slots=True)
class Side:
    """One run of a comparison."""

    label: str
    run: RunDir
    recipe: Recipe
    questions: Mapping[str, Mapping[str, Row]]
    """Model -> question key -> its row of eval.json; models in the recipe's order."""
    model: str
    """The model that stands for the run."""
    responses: Mapping[str, Mapping[tuple[str, str], Row]]
    """Model -> (task, record id) -> its response."""


@dataclass(frozen=True, slots=True)
class Difference:
    """The difference of another run to the first one, on the questions that both answered."""

    other: str
    task: str
    """"" for the mean over tasks."""
    first: float
    value: float
    difference: float
    low: float
    high: float
    questions: int


@dataclass(frozen=True, slots=True)
class Comparison:
    """The content of the page and of the terminal's table."""

    sides: tuple[Side, ...]
    recipe: list[tuple[str, list[str]]]
    common: tuple[str, ...]
    """Keys of the questions that every run answered."""
    scores: list[tuple[str, str, list[float | None], float]]
    """(run, model, score by task, mean) on the common questions."""
    tasks: tuple[str, ...]
    differences: list[Difference]


def read_side(run: RunDir, recipe: Recipe, label: str, model: str | None) -> Side:
    """A run with its evaluation. TagprError if it has none, or none of `model` (None: the last one evaluated)."""
    questions: dict[str, dict[str, Row]] = {}
    responses: dict[str, dict[tuple[str, str], Row]] = {}
    for name, _, directory in stage_dirs(run, recipe):
        stage = recipe.stages[name]
        content = read_object(directory.root / "eval.json") if isinstance(stage, EvaluateStage) else None
        for evaluated, entry in ((content or {}).get("models") or {}).items():
            questions[evaluated] = {str(q["key"]): q for q in entry.get("questions") or []}
            rows = read_rows(directory.root / "responses" / f"{evaluated}.jsonl")
            responses[evaluated] = {question_key(row): row for row in rows}
    ordered = {name: questions[name] for name in recipe.stages if questions.get(name)}
    if not ordered:
        raise TagprError(
            f"run {run.root} has no evaluation (no eval.json with questions); finish it: `tagpr resume {run.root}`"
        )
    if model is not None and model not in ordered:
        raise TagprError(f"run {run.root} evaluated {', '.join(ordered)}, not '{model}'; choose one with --model")
    return Side(label, run, recipe, ordered, model or list(ordered)[-1], responses)


def compare(sides: Sequence[Side]) -> Comparison:
    """The comparison of two or more runs. TagprError if no question was answered by all of them."""
    answered = [side.questions[side.model] for side in sides]
    first = answered[0]
    common = tuple(key for key in first if all(key in other for other in answered[1:]))
    if not common:
        what = "; ".join(
            f"{side.run.root}: {len(questions)} questions, the first {next(iter(questions))}"
            for side, questions in zip(sides, answered, strict=True)
        )
        raise TagprError(
            f"no question was answered by all runs ({what}); evaluate them on the same data block and split"
        )
    tasks = tuple(dict.fromkeys(str(first[key]["task"]) for key in common))
    users = {key: str(first[key]["user_id"]) for key in common}
    task_of = {key: str(first[key]["task"]) for key in common}
    scores: list[tuple[str, str, list[float | None], float]] = []
    for side in sides:
        for model, rows in side.questions.items():
            own = {key: float(rows[key]["score"]) for key in common if key in rows}
            if len(own) == len(common):
                by_task: list[float | None] = [_mean([own[k] for k in common if task_of[k] == t]) for t in tasks]
                mean = mean_over_tasks(list(own.values()), [task_of[key] for key in own])
                scores.append((side.label, model, by_task, mean))
    base = {key: float(first[key]["score"]) for key in common}
    differences = []
    for side, rows in zip(sides[1:], answered[1:], strict=True):
        own = {key: float(rows[key]["score"]) for key in common}
        differences.append(_difference(side.label, "", own, base, users, task_of))
        for task in tasks if len(tasks) > 1 else ():
            keys = [key for key in common if task_of[key] == task]
            own_t, base_t = ({key: table[key] for key in keys} for table in (own, base))
            differences.append(_difference(side.label, task, own_t, base_t, users, task_of))
    return Comparison(tuple(sides), recipe_differences(sides), common, scores, tasks, differences)


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _difference(
    label: str, task: str, own: Mapping[str, float], base: Mapping[str, float], users: Mapping[str, str],
    tasks: Mapping[str, str],
) -> Difference:  # fmt: skip
    groups = [tasks[key] for key in own]
    low, high = paired_difference(own, base, users, tasks=tasks)[1:]
    first, value = (mean_over_tasks([table[key] for key in own], groups) for table in (base, own))
    return Difference(label, task, first, value, value - first, low, high, len(own))


def flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested dicts as {"a.b.c": value}; an empty dict is a value."""
    if not isinstance(value, dict) or not value:
        return {prefix: value}
    values: dict[str, Any] = {}
    for key, item in value.items():
        values |= flat(item, f"{prefix}.{key}" if prefix else str(key))
    return values


def recipe_differences(sides: Sequence[Side]) -> list[tuple[str, list[str]]]:
    """(key, one value per run) of the recipe keys that differ; a stage that one run lacks is one line."""
    raw = [dump_recipe(side.recipe) for side in sides]
    names = list(dict.fromkeys(name for recipe in raw for name in recipe["stages"]))
    partial = {name for name in names if not all(name in recipe["stages"] for recipe in raw)}
    rows = []
    for name in names:
        if name in partial:
            kinds = [str(r["stages"][name]["kind"]) if name in r["stages"] else ABSENT for r in raw]
            rows.append((f"stages.{name}", kinds))
    for recipe in raw:
        recipe["stages"] = {name: block for name, block in recipe["stages"].items() if name not in partial}
    tables = [flat({key: value for key, value in recipe.items() if key not in NOT_OF_THE_METHOD}) for recipe in raw]
    for key in dict.fromkeys(key for table in tables for key in table):
        values = [str(table[key]) if key in table else ABSENT for table in tables]
        if len(set(values)) > 1:
            rows.append((key, values))
    return rows


def overlaid_curves(sides: Sequence[Side]) -> list[Figure[LineChart]]:
    """GRPO curves of all runs in one chart per metric; each run's stages follow each other on the axis of steps."""
    chains = [chains_of(side.run, side.recipe) for side in sides]
    steps = max((chain.steps for own in chains for chain in own[-1:]), default=0.0)
    rewards = reward_curves(reward_names(term for side in sides for term in reward_terms(side.recipe)))
    boundaries = _boundaries(sides, [own[-1] for own in chains if own])
    figures = []
    for metric in (*rewards, WELL_FORMED, *RESPONSES, *LEARNING, *TIMING):
        series, width = [], 1
        for index, (side, own) in enumerate(zip(sides, chains, strict=True)):
            points, k = thin(own[-1].points(metric.key) if own else [], MOST_POINTS)
            if points:
                series.append((side.label, f"c{index % 8}", points))
                width = max(width, k)
        if series:
            chart = line_chart(
                series, x_range=(1.0, steps), y_range=axis_range(metric.key), boundaries=boundaries
            )  # fmt: skip
            figures.append(Figure(metric, chart, thinned_note(width)))
    return figures


def _boundaries(sides: Sequence[Side], chains: Sequence[Chain]) -> list[tuple[float, str]]:
    """Where stages begin: the runs' common boundaries once, else each run's own with the run's name."""
    own = [chain.boundaries for chain in chains]
    if own and all(boundaries == own[0] for boundaries in own):
        return own[0]
    return [(x, f"{side.label}: {name}") for side, table in zip(sides, own, strict=False) for x, name in table if x > 1]


def downloads(comparison: Comparison) -> list[tuple[str, str]]:
    """(file name, CSV text) of the tables that the page offers: the differences, and each question's scores."""
    sides = comparison.sides
    differences = [
        [d.other, d.task or "mean of tasks", d.questions, d.first, d.value, d.difference, d.low, d.high]
        for d in comparison.differences
    ]
    head = ["run", "task", "questions", sides[0].label, "score", "difference", "low", "high"]
    questions = []
    for key in comparison.common:
        rows = [side.questions[side.model][key] for side in sides]
        questions.append([rows[0]["task"], rows[0]["user_id"], key, *(row["score"] for row in rows)])
    by_question = ["task", "user", "question", *(f"{side.label}, {side.model}" for side in sides)]
    return [("differences.csv", _csv([head, *differences])), ("questions.csv", _csv([by_question, *questions]))]


def _csv(rows: Sequence[Sequence[object]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def common_responses(comparison: Comparison, schema: TagSchema) -> dict[str, Any]:
    """The viewer's data: a group is a question, its responses are the runs'. A hash chooses which are shown."""
    sides = comparison.sides
    traces = Traces(schema)
    tables = [side.responses[side.model] for side in sides]
    keys = [key for key in sorted(tables[0], key=blind) if all(key in table for table in tables[1:])]
    for key in keys[: MOST_RESPONSES // len(sides)]:
        group = traces.group("same question", None, tables[0][key])
        for side, table in zip(sides, tables, strict=True):
            plain = answers_directly(side.recipe, side.model)
            traces.add(group, f"{side.label}, {side.model}", table[key], None, plain=plain)
    traces.shown = {"rollouts": [0, 0], "evaluated": [len(traces.traces), len(keys) * len(sides)]}
    return traces.as_json()


def write_page(comparison: Comparison, path: Path) -> None:
    """One self-contained page. Traces are parsed by the first run's tag schema."""
    recipe = comparison.sides[0].recipe
    schema = load_schema(recipe.schema_file) if recipe.schema_file else default_schema()
    data = common_responses(comparison, schema)
    figures, constant = without_constant(overlaid_curves(comparison.sides))
    source = script()
    text = (
        environment()
        .get_template("compare.html.j2")
        .render(
            c=comparison,
            hues=tag_hues(schema),
            figures=figures,
            constant=constant,
            downloads=[(name, quote(text)) for name, text in downloads(comparison)],
            shown=data["shown"],
            traces=json_for_page(data) if data["traces"] else None,
            script=source,
            script_source=script_source(source),
        )
    )
    write_text(path, text)
