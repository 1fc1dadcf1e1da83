"""An ablation or a weight grid (sweep.json) as a table and plots; `sweep_page` makes a page of its own."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tagpr_rl.files import write_text
from tagpr_rl.report.charts.plots import ForestChart, LineChart, Point, forest_chart, line_chart
from tagpr_rl.report.page.embed import environment
from tagpr_rl.report.page.read import Row, number, read_object
from tagpr_rl.run.layout import RunDir
from tagpr_rl.types import TagprError

FORMAT = 1
FILE, PAGE = "sweep.json", "sweep.html"


@dataclass(frozen=True, slots=True)
class Arm:
    """One row of the table: a setting with its score over seeds."""

    name: str
    overrides: tuple[tuple[str, str], ...]
    seeds: tuple[float | None, ...]
    """Score of each seed of the sweep; None where it is missing."""
    score: tuple[float | None, float | None, float | None]
    difference: tuple[float | None, float | None, float | None]
    """Against the first arm, on the same questions; Nones for the first."""
    seed_sd: float | None
    """Of the seeds' differences against the first arm."""
    by_task: tuple[float | None, ...]
    """Mean over seeds, in the order of the view's tasks."""


@dataclass(frozen=True, slots=True)
class Sensitivity:
    """Score against one number that the sweep varies."""

    key: str
    chart: LineChart


@dataclass(frozen=True, slots=True)
class SweepView:
    """A sweep as the templates show it."""

    name: str
    seeds: tuple[str, ...]
    questions: str
    tasks: tuple[str, ...]
    arms: tuple[Arm, ...]
    forest: ForestChart
    differences: ForestChart | None
    """Against the first arm, on an axis as wide as they are."""
    sensitivity: tuple[Sensitivity, ...]


def sweep_view(path: Path) -> SweepView | None:
    """The sweep of a sweep.json; None if there is no such file. TagprError for a broken one."""
    raw = read_object(path)
    if raw is None:
        return None
    if raw.get("format") != FORMAT or not isinstance(raw.get("arms"), dict) or not raw["arms"]:
        raise TagprError(f"{path}: expected format {FORMAT} with arms, found format {raw.get('format')!r}; sweep again")
    seeds = tuple(str(seed) for seed in raw.get("seeds") or ())
    arms = raw["arms"]
    entries = [s for arm in arms.values() for s in (arm.get("per_seed") or {}).values()]
    tasks = tuple(dict.fromkeys(task for entry in entries for task in entry.get("by_task") or {}))
    extra = {f"{name} (a stage of the first arm)": arm for name, arm in (raw.get("also") or {}).items()}
    rows = tuple(_arm(name, arm, seeds, tasks, i == 0) for i, (name, arm) in enumerate({**arms, **extra}.items()))
    bounds = [(key, value) for key, v in (raw.get("bounds") or {}).items() if (value := number(v)) is not None]
    label_width = max(84.0, 6.2 * max(len(row.name) for row in rows) + 14)
    forest = forest_chart(
        "mean score", [(row.name, "control" if i else "model", *row.score) for i, row in enumerate(rows)], bounds,
        label_width=label_width, width=480,
    )  # fmt: skip
    questions = raw.get("questions")
    return SweepView(
        str(raw.get("name", path.parent.name)), seeds, "-" if questions is None else str(questions), tasks, rows,
        forest, _differences(rows, label_width), _sensitivity(arms),
    )  # fmt: skip


def _differences(rows: tuple[Arm, ...], label_width: float) -> ForestChart | None:
    """The arms' differences against the first one; None where no arm has one."""
    others = [row for row in rows[1:] if row.difference[0] is not None]
    widest = max((abs(value) for row in others for value in row.difference if value is not None), default=0.0)
    if not others:
        return None
    reach = 1.1 * widest or 0.01
    return forest_chart(
        f"difference against {rows[0].name}", [(row.name, "control", *row.difference) for row in others],
        [("no difference", 0.0)], label_width=label_width, width=480, axis=(-reach, reach), sign=True,
    )  # fmt: skip


def _arm(name: str, raw: Row, seeds: tuple[str, ...], tasks: tuple[str, ...], first: bool) -> Arm:
    per_seed = {str(seed): entry for seed, entry in (raw.get("per_seed") or {}).items()}
    by_task = []
    for task in tasks:
        values = [v for e in per_seed.values() if (v := number((e.get("by_task") or {}).get(task))) is not None]
        by_task.append(statistics.fmean(values) if values else None)
    return Arm(
        name,
        tuple((str(key), json.dumps(value)) for key, value in (raw.get("overrides") or {}).items()),
        tuple(number(per_seed.get(seed, {}).get("score")) for seed in seeds),
        _three(raw.get("score")),
        (None, None, None) if first else _three(raw.get("against_first")),
        None if first else number(raw.get("seed_sd")),
        tuple(by_task),
    )


def _three(raw: Any) -> tuple[float | None, float | None, float | None]:
    values = [number(value) for value in raw] if isinstance(raw, list) else []
    return (values[0], values[1], values[2]) if len(values) == 3 else (None, None, None)


def _sensitivity(arms: Mapping[str, Row]) -> tuple[Sensitivity, ...]:
    """A chart for each override key that takes three or more numbers: every arm a point, their means a line.

    With more than one key varied at once (a grid), a value's mean is over the arms that have it.
    """
    values: dict[str, list[Point]] = {}
    for arm in arms.values():
        score = _three(arm.get("score"))[0]
        for key, raw in (arm.get("overrides") or {}).items():
            if (x := number(raw)) is not None and score is not None:
                values.setdefault(str(key), []).append((x, score))
    charts = []
    for key, points in values.items():
        xs = sorted({x for x, _ in points})
        if len(xs) < 3:
            continue
        line = [(x, statistics.fmean(y for at, y in points if at == x)) for x in xs]
        chart = line_chart([("mean", "c0", line), ("arm", "dots", sorted(points))], width=330, height=180)
        charts.append(Sensitivity(key, chart))
    return tuple(charts)


@dataclass(frozen=True, slots=True)
class SweepNear:
    """A sweep beside a run, as the run's report shows it."""

    view: SweepView | None
    """None where the file is broken."""
    link: str
    """Of the sweep's own page, from the run's report; "" where there is none."""
    mistake: str = ""


def sweeps_near(run: RunDir) -> list[SweepNear]:
    """The sweep that the run is a part of, and those in the folder `sweeps` beside the run (the command's default).

    A broken file is named, and does not stop the run's report.
    """
    parent = run.root.parent
    found = []
    for path in (parent / FILE, *sorted(parent.glob(f"sweeps/*/{FILE}"))):
        try:
            view = sweep_view(path)
        except TagprError as error:
            found.append(SweepNear(None, "", str(error)))
            continue
        if view is not None:
            up = "/".join(("..", *path.parent.relative_to(parent).parts, PAGE))
            found.append(SweepNear(view, up if (path.parent / PAGE).is_file() else ""))
    return found


def sweep_page(folder: Path) -> Path:
    """Write `sweep.html` beside the folder's sweep.json; returns its path. TagprError where there is none."""
    view = sweep_view(folder / FILE)
    if view is None:
        raise TagprError(f"{folder} has no {FILE}; make it with `launch.py sweep`")
    page = folder / PAGE
    write_text(page, environment().get_template("sweep.html.j2").render(s=view, hues={}))
    return page
