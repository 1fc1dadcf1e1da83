"""Shows a sweep (sweep.json) as a table and plots, in a run's report or on a page of its own."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tagpr_rl.files import write_text
from tagpr_rl.report.charts.plots import ForestChart, LineChart, Point, forest_chart, line_chart
from tagpr_rl.report.page.embed import environment
from tagpr_rl.report.page.read import Interval, Row, interval, number, read_object
from tagpr_rl.run.layout import RunDir
from tagpr_rl.types import TagprError

FORMAT = 1
FILE, PAGE = "sweep.json", "sweep.html"


@dataclass(frozen=True, slots=True)
class Arm:
    """One row of the table: a setting and its score over seeds."""

    name: str
    overrides: tuple[tuple[str, str], ...]
    seeds: tuple[float | None, ...]
    """Score of each seed of the sweep; None = missing."""
    score: Interval
    difference: Interval
    """Difference to the first arm on the same questions; three times None for the first arm."""
    seed_sd: float | None
    """Standard deviation of the seeds' differences to the first arm."""
    by_task: tuple[float | None, ...]
    """Mean score over seeds, in the order of `SweepView.tasks`."""


@dataclass(frozen=True, slots=True)
class Sensitivity:
    """The score as a function of one number that the sweep varies."""

    key: str
    chart: LineChart


@dataclass(frozen=True, slots=True)
class SweepView:
    """A sweep as the templates need it."""

    name: str
    seeds: tuple[str, ...]
    questions: str
    tasks: tuple[str, ...]
    arms: tuple[Arm, ...]
    forest: ForestChart
    differences: ForestChart | None
    """The differences to the first arm, on an axis of their own."""
    sensitivity: tuple[Sensitivity, ...]


def sweep_view(path: Path) -> SweepView | None:
    """The sweep of a sweep.json; None if there is no such file. TagprError if it is broken."""
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
    """The arms' differences to the first one; None if no arm has one."""
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
        interval(raw.get("score")),
        (None, None, None) if first else interval(raw.get("against_first")),
        None if first else number(raw.get("seed_sd")),
        tuple(by_task),
    )


def _sensitivity(arms: Mapping[str, Row]) -> tuple[Sensitivity, ...]:
    """A chart for each override key with at least three numbers: each arm is a point, and the means are a line.

    In a grid, where several keys vary, a mean is over all arms with that value.
    """
    values: dict[str, list[Point]] = {}
    for arm in arms.values():
        score = interval(arm.get("score"))[0]
        for key, raw in (arm.get("overrides") or {}).items():
            if (x := number(raw)) is not None and score is not None:
                values.setdefault(str(key), []).append((x, score))
    charts = []
    for key, points in values.items():
        xs = sorted({x for x, _ in points})
        if len(xs) < 3:
            continue
        line = [(x, statistics.fmean(y for at, y in points if at == x)) for x in xs]
        chart = line_chart([("mean", "c0", line), ("arm", "dots", sorted(points))], width=330, height=192, x_label=key)
        charts.append(Sensitivity(key, chart))
    return tuple(charts)


@dataclass(frozen=True, slots=True)
class NearbySweep:
    """A sweep that belongs to a run, as the run's report shows it."""

    view: SweepView | None
    """None if the file is broken."""
    link: str
    """Link from the run's report to the sweep's own page; "" if there is none."""
    mistake: str = ""


def sweeps_near(run: RunDir) -> list[NearbySweep]:
    """The sweep that the run is part of, and the sweeps in the folder `sweeps` beside the run.

    A broken file gives an entry with its error instead of stopping the run's report.
    """
    parent = run.root.parent
    sweeps = []
    for path in (parent / FILE, *sorted(parent.glob(f"sweeps/*/{FILE}"))):
        try:
            view = sweep_view(path)
        except TagprError as error:
            sweeps.append(NearbySweep(None, "", str(error)))
            continue
        if view is not None:
            up = "/".join(("..", *path.parent.relative_to(parent).parts, PAGE))
            sweeps.append(NearbySweep(view, up if (path.parent / PAGE).is_file() else ""))
    return sweeps


def sweep_page(folder: Path) -> Path:
    """Write `sweep.html` beside the folder's sweep.json; returns its path. TagprError if there is none."""
    view = sweep_view(folder / FILE)
    if view is None:
        raise TagprError(f"{folder} has no {FILE}; make it with `tagpr sweep`")
    page = folder / PAGE
    write_text(page, environment().get_template("sweep.html.j2").render(s=view, hues={}))
    return page
