"""Training curves: metrics of stages that continue each other on one axis of steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

from tagpr_rl.config import GrpoStage, Recipe
from tagpr_rl.report.charts.plots import LineChart, Point, line_chart, thin
from tagpr_rl.report.charts.stacked import StackChart, stack_chart
from tagpr_rl.report.page.collect import stage_dirs
from tagpr_rl.report.page.names import (
    LEARNING,
    PRMU,
    RESPONSES,
    SFT,
    TIMING,
    MetricName,
    metric_name,
    reward_names,
    task_label,
    words,
)
from tagpr_rl.report.page.read import Reader, Row, number, read_rows
from tagpr_rl.reward.components import COMPONENTS, Term, needs_prmu
from tagpr_rl.run.layout import RunDir

MOST_POINTS = 120
UNIT_KEYS = ("fraction", "share", "zero_variance")
"""Ends of keys whose values are shares: axis from 0 to 1."""
WELL_FORMED = MetricName("parse/OK", "well-formed responses", "share that the parser accepts", "up")
OPENED = ("Reward", "Responses")
"""Panels of GRPO stages that are open from the start."""
Chart = TypeVar("Chart", LineChart, StackChart)
Series = tuple[str, str, list[Point]]
"""Label, css class, points."""


@dataclass(frozen=True, slots=True)
class Figure(Generic[Chart]):
    """A chart with its heading and note."""

    name: MetricName
    chart: Chart
    note: str = ""


@dataclass(frozen=True, slots=True)
class Panel:
    """Charts of one kind."""

    title: str
    figures: tuple[Figure[LineChart], ...]
    opened: bool = True


@dataclass(frozen=True, slots=True)
class CurveGroup:
    """The charts of one training stage, or of GRPO stages that continue each other."""

    title: str
    panels: tuple[Panel, ...]
    constant: tuple[str, ...]
    """What did not change and so has no chart, with its value."""
    unfinished: bool
    stacks: tuple[Figure[StackChart], ...] = ()


@dataclass(frozen=True, slots=True)
class Part:
    """One GRPO stage of a chain."""

    name: str
    stage: GrpoStage
    rows: list[Row]
    unfinished: bool
    shift: float
    """Steps of the stages before it."""


@dataclass(frozen=True, slots=True)
class Chain:
    """GRPO stages that continue each other, on one axis."""

    parts: tuple[Part, ...]
    steps: float

    @property
    def terms(self) -> list[Term]:
        """The terms of the stages' rewards; each name once."""
        return list({term.name: term for part in self.parts for term in part.stage.terms}.values())

    @property
    def boundaries(self) -> list[tuple[float, str]]:
        """Where each stage begins, with its name."""
        return [(max(part.shift + 0.5, 1.0), part.name) for part in self.parts]

    def points(self, key: str) -> list[Point]:
        """(step, value) over all stages. A stage without PRMU logs 0 although there is no score; it gets no point."""
        about_prmu = key.startswith("prmu/") or (key.startswith("reward/") and needs_prmu(key.split("/")[1]))
        return [
            point
            for part in self.parts
            if not (about_prmu and not part.stage.uses_prmu)
            for point in points_of(part.rows, key, part.shift)
        ]

    def keys(self, prefix: str, suffix: str = "") -> list[str]:
        """Logged keys with this beginning and end, in the order of their first appearance."""
        seen = dict.fromkeys(key for part in self.parts for row in part.rows for key in row)
        return [key for key in seen if key.startswith(prefix) and key.endswith(suffix)]

    def figure(
        self, name: MetricName, series: Sequence[Series], y_range: Point | None = None
    ) -> Figure[LineChart] | None:
        """The chart of `series`; None if no series has a point."""
        thinned = [(label, css, *thin(points, MOST_POINTS)) for label, css, points in series if points]
        if not thinned:
            return None
        lines = [(label, css, points) for label, css, points, _ in thinned]
        chart = line_chart(lines, x_range=(1.0, self.steps), y_range=y_range, boundaries=self.boundaries)
        return Figure(name, chart, thinned_note(max(k for *_, k in thinned)))


def curve_groups(run: RunDir, recipe: Recipe, read: Reader = read_rows) -> list[CurveGroup]:
    """Training curves: SFT and PRMU first, then GRPO; stages that continue each other share one x axis."""
    supervised: list[Figure[LineChart]] = []
    halfway = False
    for name, kind, directory in stage_dirs(run, recipe):
        if kind in ("sft", "prmu") and (rows := read(directory.metrics)):
            figures = [_figure(name, metric, rows) for metric in (SFT if kind == "sft" else PRMU)]
            supervised += [figure for figure in figures if figure is not None]
            halfway = halfway or not directory.manifest.is_file()
    groups = [curve_group("Supervised stages", [Panel("", tuple(supervised))], halfway)]
    groups += [grpo_group(chain, recipe) for chain in chains_of(run, recipe, read)]
    return [group for group in groups if group.panels or group.stacks or group.constant]


def curve_group(
    title: str, panels: Sequence[Panel], unfinished: bool, stacks: Sequence[Figure[StackChart] | None] = ()
) -> CurveGroup:
    """The group without charts of what is constant, which is named instead."""
    split = [(panel, *without_constant(panel.figures)) for panel in panels]
    return CurveGroup(
        title,
        tuple(replace(panel, figures=varying) for panel, varying, _ in split if varying),
        tuple(text for *_, texts in split for text in texts),
        unfinished,
        tuple(stack for stack in stacks if stack is not None),
    )


def without_constant(
    figures: Sequence[Figure[LineChart]],
) -> tuple[tuple[Figure[LineChart], ...], tuple[str, ...]]:
    """(figures in which something changes, `label value` of each of the others, lines with other names named)."""
    texts = []
    for figure in figures:
        label, lines = figure.name.label, figure.chart.lines
        if figure.chart.constant:
            alone = len(lines) == 1 and label.endswith(lines[0].label)
            values = lines[0].last if alone else ", ".join(f"{line.label} {line.last}" for line in lines)
            texts.append(f"{label} {values}" if alone else f"{label}: {values}")
    return tuple(figure for figure in figures if not figure.chart.constant), tuple(texts)


def chains_of(run: RunDir, recipe: Recipe, read: Reader = read_rows) -> list[Chain]:
    """The GRPO stages with metrics. A stage that starts from the weights of the one before continues its axis."""
    groups: list[list[Part]] = []
    last = None
    for name, _, directory in stage_dirs(run, recipe):
        stage = recipe.stages[name]
        if not isinstance(stage, GrpoStage):
            continue
        rows = read(directory.metrics)
        if rows:
            continues = bool(groups) and stage.init == last
            shift = _end(groups[-1]) if continues else 0.0
            part = Part(name, stage, rows, not directory.manifest.is_file(), shift)
            groups = [*groups[:-1], [*groups[-1], part]] if continues else [*groups, [part]]
        last = name
    return [Chain(tuple(parts), _end(parts)) for parts in groups]


def _end(parts: Sequence[Part]) -> float:
    return parts[-1].shift + max((number(row.get("step")) or 0.0 for row in parts[-1].rows), default=0.0)


def points_of(rows: Sequence[Row], key: str, shift: float = 0.0) -> list[Point]:
    """(step, value) of rows that hold the metric; a row without a step counts by its position."""
    return [
        (shift + (number(row.get("step")) or float(index)), value)
        for index, row in enumerate(rows, start=1)
        if (value := number(row.get(key))) is not None
    ]


def _figure(stage: str, metric: MetricName, rows: Sequence[Row]) -> Figure[LineChart] | None:
    points, k = thin(points_of(rows, metric.key), MOST_POINTS)
    if not points:
        return None
    y_range = (0.0, 1.0) if metric.key == "prmu/accuracy" else None
    name = replace(metric, label=f"{stage}: {metric.label}")
    return Figure(name, line_chart([(metric.label, "c0", points)], y_range=y_range), thinned_note(k))


def axis_range(key: str) -> Point | None:
    """The fixed axis of a metric with a stated range; None: as wide as its values."""
    parts = key.split("/")
    if parts[0] == "reward" and parts[-1] == "mean":
        component = COMPONENTS.get(parts[1])
        return (component.low, component.high) if component else None
    return (0.0, 1.0) if key.endswith(UNIT_KEYS) or key == "parse/OK" else None


def thinned_note(k: int) -> str:
    """The note of a chart whose points are means."""
    return f"each point is the mean of {k} steps" if k > 1 else ""


def grpo_group(chain: Chain, recipe: Recipe) -> CurveGroup:
    """All charts of a chain of GRPO stages."""
    components = reward_names(chain.terms)

    def curve(metric: MetricName) -> Figure[LineChart] | None:
        return chain.figure(metric, [(metric.label, "c0", chain.points(metric.key))], axis_range(metric.key))

    def by_component(what: str, names: Sequence[MetricName]) -> list[Series]:
        return [(n.label, f"c{i % 8}", chain.points(f"reward/{n.key}/{what}")) for i, n in enumerate(names)]

    by_task = [(task_label(t), f"c{i % 8}", chain.points(f"task/{t}/mean")) for i, t in enumerate(recipe.data.tasks)]
    rewards = [
        *(curve(metric) for metric in reward_curves(components)),
        chain.figure(MetricName("task", "task reward by task", "mean over the step's prompts", "up"), by_task, (0, 1)),
        chain.figure(
            MetricName("std", "spread of the components", "standard deviation over the step's responses"),
            by_component("std", components),
        ),
        chain.figure(
            MetricName(
                "zero_variance", "groups without a difference",
                "share of groups whose responses all got the same value of the component: it teaches nothing there "
                "(for the total see silent groups)",
                "down",
            ),
            by_component("zero_variance", components[1:]),
            (0.0, 1.0),
        ),
    ]  # fmt: skip
    known = {metric.key for metric in LEARNING}
    learning = [*LEARNING, *(metric_name(key) for key in chain.keys("algo/") if key not in known)]
    panels = {
        "Reward": rewards,
        "Responses": [curve(metric) for metric in (WELL_FORMED, *RESPONSES)],
        "Learning": [curve(metric) for metric in learning],
        "Time": [curve(metric) for metric in TIMING],
    }
    return curve_group(
        " → ".join(part.name for part in chain.parts),
        [
            Panel(title, tuple(f for f in figures if f is not None), title in OPENED)
            for title, figures in panels.items()
        ],
        any(part.unfinished for part in chain.parts),
        (composition(chain), phases(chain)),
    )


def reward_curves(components: Sequence[MetricName]) -> list[MetricName]:
    """The mean of each component over a step, as curves are named."""
    return [MetricName(f"reward/{n.key}/mean", f"reward: {n.label}", n.meaning, n.direction) for n in components]


def composition(chain: Chain) -> Figure[StackChart] | None:
    """The mean total reward of each step as its weighted terms.

    The term task x format is the total minus the other terms: a run of an earlier release logged no mean of a product.
    """
    names = [term.name for term in chain.terms]
    points: list[tuple[float, dict[str, float]]] = []
    for part in chain.parts:
        for index, row in enumerate(part.rows, start=1):
            if (total := number(row.get("reward/total/mean"))) is not None:
                step = part.shift + (number(row.get("step")) or float(index))
                points.append((step, _mean_terms(part.stage.terms, row, total)))
    if not points:
        return None
    columns = [thin([(x, terms.get(name, 0.0)) for x, terms in points], MOST_POINTS) for name in names]
    xs, k = [x for x, _ in columns[0][0]], columns[0][1]
    labels = [term.label for term in chain.terms]
    series = [(label, [y for _, y in column]) for label, (column, _) in zip(labels, columns, strict=True)]
    chart = stack_chart(xs, series, x_range=(1.0, chain.steps), boundaries=chain.boundaries)
    meaning = "mean total reward of the step's responses as the sum of its weighted terms; the line is the total"
    return Figure(MetricName("composition", "reward composition", meaning), chart, thinned_note(k))


def _mean_terms(terms: Sequence[Term], row: Row, total: float) -> dict[str, float]:
    """Term name -> its weighted mean in a step; the first term with a gate gets what the others leave of the total."""
    means = {term.name: term.weight * (number(row.get(f"reward/{term.name}/mean")) or 0.0) for term in terms}
    if gated := next((term.name for term in terms if term.gate), None):
        others = sum(value for name, value in means.items() if name != gated)
        means[gated] = round(total - others, 9)
    return means


def phases(chain: Chain) -> Figure[StackChart] | None:
    """Shares of a step's time by phase, as logged."""
    names = chain.keys("phase/", "_share")
    columns = [(words(key.removeprefix("phase/").removesuffix("_share")), dict(chain.points(key))) for key in names]
    steps = sorted({x for _, column in columns for x in column})
    if not steps:
        return None
    thinned = [(label, thin([(x, column.get(x, 0.0)) for x in steps], MOST_POINTS)) for label, column in columns]
    xs, k = [x for x, _ in thinned[0][1][0]], thinned[0][1][1]
    series = [(label, [y for _, y in points]) for label, (points, _) in thinned]
    chart = stack_chart(xs, series, x_range=(1.0, chain.steps), boundaries=chain.boundaries)
    meaning = "share of a step's wall clock by phase; what the line, their sum, lacks to 1 is time of the driver alone"
    return Figure(MetricName("phases", "where a step's time goes", meaning), chart, thinned_note(k))
