"""What the page's templates draw: curves, forest plots, score rows and rollout groups, as plain values."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tagpr_rl.config import GrpoStage, Recipe
from tagpr_rl.paths import RunDir
from tagpr_rl.report.collect import stage_dirs, uses_prmu
from tagpr_rl.report.names import (
    PRMU,
    REWARD_COMPONENTS,
    SFT,
    TRAINING,
    MetricName,
    task_label,
)
from tagpr_rl.report.plots import (
    ForestChart,
    LineChart,
    Point,
    forest_chart,
    line_chart,
    short,
    thin,
)
from tagpr_rl.report.read import Row, number, read_rows
from tagpr_rl.report.samples import prompt_text
from tagpr_rl.report.trace import TraceView, trace_view
from tagpr_rl.tags.schema import TagSchema

MOST_POINTS = 120
GROUPS_PER_FILE = 2
RANGES: dict[str, Point] = {
    "task": (0, 1),
    "format": (0, 1),
    "tag": (0, 1),
    "prmu": (0, 1),
    "repetition": (-1, 0),
}
"""Fixed y axes: components with a stated range."""


@dataclass(frozen=True, slots=True)
class Figure:
    """A chart with its heading and note."""

    name: MetricName
    chart: LineChart
    note: str = ""


@dataclass(frozen=True, slots=True)
class CurveGroup:
    """The charts of one training stage, or of GRPO stages that continue each other."""

    title: str
    figures: tuple[Figure, ...]
    unfinished: bool


@dataclass(frozen=True, slots=True)
class ScoreRow:
    """One row of the summary: a model, control, baseline or ceiling."""

    name: str
    css: str
    """"model", "control", "baseline" or "ceiling"."""
    note: str
    scores: tuple[float | None, ...]
    """In the order of the report's tasks."""
    mean: float | None
    low: float | None
    high: float | None
    strict_rate: float | None
    """None also where no thought was asked for."""


@dataclass(frozen=True, slots=True)
class RolloutView:
    """One sampled response of a group with its reward."""

    reward: tuple[float | None, ...]
    """In the order of REWARD_COMPONENTS."""
    advantage: float | None
    prmu_status: str
    trace: TraceView


@dataclass(frozen=True, slots=True)
class RolloutGroup:
    """The responses to one prompt in one step."""

    stage: str
    step: str
    record_id: str
    task: str
    gold: str
    prompt: str
    rollouts: tuple[RolloutView, ...]


def score_rows(report: Row, notes: dict[str, str]) -> list[ScoreRow]:
    """Rows of the summary table: blind ceiling, baselines, models, controls, oracle ceiling."""
    tasks = report["tasks"]
    bounds = report["bounds"] or {}

    def ceiling(key: str) -> list[ScoreRow]:
        if key not in bounds:
            return []
        values = bounds[key]
        scores = tuple(number(values.get(task)) for task in tasks)
        return [
            ScoreRow(
                f"{key} ceiling",
                "ceiling",
                notes.get(key, ""),
                scores,
                number(values.get("mean")),
                None,
                None,
                None,
            )
        ]

    def rows(part: str, css: str, label: str = "{}") -> list[ScoreRow]:
        return [
            ScoreRow(
                label.format(name),
                css,
                notes.get(name, ""),
                tuple(entry["scores"].get(t) for t in tasks),
                entry["mean"],
                entry["low"],
                entry["high"],
                None if css == "baseline" or name in report["direct_models"] else entry["strict_rate"],
            )
            for name, entry in report[part].items()
        ]

    control = f"{report['control_model'] or 'last model'}, {{}} profile"
    return [
        *ceiling("blind"),
        *rows("baselines", "baseline"),
        *rows("models", "model"),
        *rows("controls", "control", control),
        *ceiling("oracle"),
    ]


def forests(report: Row) -> list[ForestChart]:
    """One forest plot for the mean and one per task: models and controls, ceilings as vertical lines."""
    entries = [(name, "model", entry) for name, entry in report["models"].items()]
    entries += [(name, "control", entry) for name, entry in report["controls"].items()]
    if not entries:
        return []
    bounds = report["bounds"] or {}
    charts = []
    for task in ("mean", *report["tasks"]):
        ceilings = [(key, value) for key in bounds if (value := number(bounds[key].get(task))) is not None]
        rows = []
        for name, css, entry in entries:
            if task == "mean":
                rows.append((name, css, entry["mean"], entry["low"], entry["high"]))
            else:
                low, high = entry["intervals"].get(task, (None, None))
                rows.append((name, css, entry["scores"].get(task), low, high))
        charts.append(forest_chart("mean of tasks" if task == "mean" else task_label(task), rows, ceilings))
    return charts


def curve_groups(run: RunDir, recipe: Recipe) -> list[CurveGroup]:
    """Training curves: SFT and PRMU first, then GRPO; stages that continue each other share one x axis."""
    groups: list[CurveGroup] = []
    supervised: list[Figure] = []
    halfway = False
    chain: list[tuple[str, GrpoStage, list[Row], bool]] = []

    def flush() -> None:
        if chain:
            groups.append(_grpo_group(chain, recipe))
            chain.clear()

    for name, kind, directory in stage_dirs(run, recipe):
        rows = read_rows(directory.metrics)
        unfinished = not directory.manifest.is_file()
        stage = recipe.stages[name]
        if isinstance(stage, GrpoStage):
            if chain and stage.init != chain[-1][0]:
                flush()
            if rows:
                chain.append((name, stage, rows, unfinished))
        elif kind in ("sft", "prmu") and rows:
            figures = [_figure(name, metric, rows) for metric in (SFT if kind == "sft" else PRMU)]
            supervised += [figure for figure in figures if figure is not None]
            halfway = halfway or unfinished
    flush()
    groups.insert(0, CurveGroup("Supervised stages", tuple(supervised), halfway))
    return [group for group in groups if group.figures]


def _points(rows: Sequence[Row], key: str, shift: float = 0.0) -> list[Point]:
    """(step, value) of rows that hold the metric; a row without a step counts by its position."""
    return [
        (shift + (number(row.get("step")) or float(index)), value)
        for index, row in enumerate(rows, start=1)
        if (value := number(row.get(key))) is not None
    ]


def _figure(stage: str, metric: MetricName, rows: Sequence[Row]) -> Figure | None:
    points, k = thin(_points(rows, metric.key), MOST_POINTS)
    if not points:
        return None
    y_range = (0.0, 1.0) if metric.key == "prmu/accuracy" else None
    name = replace(metric, label=f"{stage}: {metric.label}")
    return Figure(name, line_chart([(metric.label, "c0", points)], y_range=y_range), _thinned(k))


def _thinned(k: int) -> str:
    return f"each point is the mean of {k} steps" if k > 1 else ""


def _grpo_group(chain: Sequence[tuple[str, GrpoStage, list[Row], bool]], recipe: Recipe) -> CurveGroup:
    shifts, total = [], 0.0
    for _, _, rows, _ in chain:
        shifts.append(total)
        total += max((number(row.get("step")) or 0.0 for row in rows), default=0.0)
    boundaries = [(max(shift + 0.5, 1.0), name) for shift, (name, *_) in zip(shifts, chain, strict=True)]

    def joined(key: str, needs_prmu: bool = False) -> list[Point]:
        # A stage without PRMU logs 0 for a score that nobody gave: no point rather than a false one.
        return [
            point
            for shift, (_, stage, rows, _) in zip(shifts, chain, strict=True)
            if not (needs_prmu and not uses_prmu(stage))
            for point in _points(rows, key, shift)
        ]

    def figure(metric: MetricName, series: list[tuple[str, str, list[Point]]], y_range: Point | None) -> Figure | None:
        thinned = [(label, css, *thin(points, MOST_POINTS)) for label, css, points in series if points]
        if not thinned:
            return None
        lines = [(label, css, points) for label, css, points, _ in thinned]
        chart = line_chart(lines, x_range=(1.0, total), y_range=y_range, boundaries=boundaries)
        return Figure(metric, chart, _thinned(max(k for *_, k in thinned)))

    figures = [
        figure(
            MetricName(f"reward/{name.key}/mean", f"reward: {name.label}", name.meaning, name.direction),
            [(name.label, "c0", joined(f"reward/{name.key}/mean", name.key == "prmu"))],
            RANGES.get(name.key),
        )
        for name in REWARD_COMPONENTS
    ]
    by_task = [(task_label(task), f"c{i % 8}", joined(f"task/{task}/mean")) for i, task in enumerate(recipe.data.tasks)]
    figures.append(
        figure(
            MetricName("task", "task reward by task", "mean over the step's prompts", "up"),
            by_task,
            (0.0, 1.0),
        )
    )
    figures.append(
        figure(
            MetricName("parse/OK", "well-formed responses", "share that the parser accepts", "up"),
            [("OK", "c0", joined("parse/OK"))],
            (0.0, 1.0),
        )
    )
    figures += [
        figure(
            metric,
            [(metric.label, "c0", joined(metric.key, metric.key.startswith("prmu/")))],
            (0.0, 1.0) if metric.key.endswith("fraction") else None,
        )
        for metric in TRAINING
    ]
    title = " → ".join(name for name, *_ in chain)
    return CurveGroup(title, tuple(f for f in figures if f is not None), any(unfinished for *_, unfinished in chain))


def rollout_groups(run: RunDir, recipe: Recipe, schema: TagSchema) -> list[RolloutGroup]:
    """Groups of each GRPO stage's first and last rollout file; groups whose rewards differ come first."""
    prefilled = recipe.model.thought_prefilled
    out: list[RolloutGroup] = []
    for name, kind, directory in stage_dirs(run, recipe):
        if kind != "grpo" or not directory.rollouts.is_dir():
            continue
        files = sorted(directory.rollouts.glob("step_*.jsonl"))
        for path in dict.fromkeys((*files[:1], *files[-1:])):
            out += _groups_of(path, name, schema, prefilled)
    return out


def _groups_of(path: Path, stage: str, schema: TagSchema, prefilled: bool) -> list[RolloutGroup]:
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in read_rows(path):
        groups.setdefault((str(row.get("task", "")), str(row.get("record_id", ""))), []).append(row)

    def order(key: tuple[str, str]) -> tuple[bool, str]:
        totals = {number(row.get("reward_total")) for row in groups[key]}
        return len(totals) < 2, hashlib.sha256("/".join(key).encode()).hexdigest()

    out = []
    for key in sorted(groups, key=order)[:GROUPS_PER_FILE]:
        rows = sorted(groups[key], key=lambda row: (-(number(row.get("reward_total")) or 0.0), str(row.get("sample"))))
        first = rows[0]
        views = tuple(
            RolloutView(
                tuple(number(row.get(f"reward_{name.key}")) for name in REWARD_COMPONENTS),
                number(row.get("advantage")),
                str(row.get("prmu_status", row.get("reward_prmu_status", ""))),
                trace_view(str(row.get("response", "")), schema, prefilled=prefilled),
            )
            for row in rows
        )
        out.append(
            RolloutGroup(
                stage,
                str(first.get("step", path.stem)),
                key[1],
                task_label(key[0]),
                str(first.get("gold", "")),
                prompt_text(first.get("prompt")),
                views,
            )
        )
    return out


def seconds_text(seconds: float | None) -> str:
    """`75.3` -> `1 min 15 s`; None -> `-`."""
    if seconds is None:
        return "-"
    if seconds < 60:
        return f"{short(seconds)} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"
