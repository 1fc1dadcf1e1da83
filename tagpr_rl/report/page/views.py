"""The scores of a report as plain values: rows of the summary and forest plots, and the summary for the terminal."""

from __future__ import annotations

from dataclasses import dataclass

from rich import box
from rich.table import Table
from rich.text import Text

from tagpr_rl.report.charts.plots import ForestChart, forest_chart, short
from tagpr_rl.report.page.names import HELD_OUT, task_label
from tagpr_rl.report.page.read import Row, number


@dataclass(frozen=True, slots=True)
class ScoreRow:
    """One row of the summary: a model, control, baseline or ceiling."""

    name: str
    css: str
    """"model", "control", "baseline" or "ceiling"."""
    scores: tuple[float | None, ...]
    """In the order of the report's tasks."""
    mean: float | None
    low: float | None
    high: float | None
    strict_rate: float | None
    """None also for models that answer without a thought."""
    truncated: float | None


def score_rows(report: Row) -> list[ScoreRow]:
    """Rows of the summary table: blind ceiling, baselines, other prompts, models, controls, oracle ceiling."""
    tasks = report["tasks"]
    bounds = report["bounds"] or {}

    def ceiling(key: str) -> list[ScoreRow]:
        if key not in bounds:
            return []
        values = bounds[key]
        scores = tuple(number(values.get(task)) for task in tasks)
        mean = number(values.get("mean"))
        return [ScoreRow(f"{key} ceiling", "ceiling", scores, mean, None, None, None, None)]

    def rows(part: str, css: str, label: str = "{}") -> list[ScoreRow]:
        return [
            ScoreRow(
                label.format(name),
                css,
                tuple(entry["scores"].get(t) for t in tasks),
                entry["mean"],
                entry["low"],
                entry["high"],
                None if css == "baseline" or name in report["direct_models"] else entry["strict_rate"],
                None if css == "baseline" else entry["truncated"],
            )
            for name, entry in (report.get(part) or {}).items()
        ]

    control = f"{report['control_model'] or 'last model'}, {{}} profile"
    return [
        *ceiling("blind"),
        *rows("baselines", "baseline"),
        *rows("other_prompts", "control"),
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


def seconds_text(seconds: float | None) -> str:
    """`75.3` -> `1 min 15 s`; None -> `-`."""
    if seconds is None:
        return "-"
    if seconds < 60:
        return f"{short(seconds)} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


_STYLES = {"model": "bold", "ceiling": "dim italic", "baseline": "dim", "control": "yellow"}


def summary_table(report: Row) -> Table:
    """Models, controls, baselines and ceilings against tasks; `report` is report.json's content."""
    table = Table(
        box=box.SIMPLE_HEAD,
        title=Text(f"{report['name']}: task score on {HELD_OUT[report['data']['setting'] or 'user'][0]}"),
        title_justify="left",
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    table.add_column("")
    for task in report["tasks"]:
        table.add_column(task_label(task), justify="right", no_wrap=True)
    for name in ("mean", "95 % interval"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("well formed", justify="right", no_wrap=True)
    for row in score_rows(report):
        interval = "" if row.low is None or row.high is None else f"[{row.low:.3f}, {row.high:.3f}]"
        cells = [row.name, *map(_cell, row.scores), _cell(row.mean), interval, _cell(row.strict_rate)]
        # Text, not str: a name with brackets must not be read as rich markup.
        table.add_row(*(Text(cell) for cell in cells), style=_STYLES[row.css])
    if not report["models"]:
        table.add_row(Text("no model evaluated: not run"), style="dim")
    return table


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
