"""The summary of a report as a rich table for the terminal."""

from __future__ import annotations

from rich import box
from rich.table import Table
from rich.text import Text

from tagpr_rl.report.page.names import task_label
from tagpr_rl.report.page.read import Row
from tagpr_rl.report.page.views import score_rows

STYLES = {"model": "bold", "ceiling": "dim italic", "baseline": "dim", "control": "yellow"}


def summary_table(report: Row) -> Table:
    """Models, controls, baselines and ceilings against tasks; `report` is report.json's content."""
    table = Table(
        box=box.SIMPLE_HEAD,
        title=Text(f"{report['name']}: task score on held-out users"),
        title_justify="left",
    )
    table.add_column("")
    for task in report["tasks"]:
        table.add_column(task_label(task), justify="right")
    for name in ("mean", "95 % interval", "well formed"):
        table.add_column(name, justify="right")
    for row in score_rows(report, {}):
        interval = "" if row.low is None or row.high is None else f"[{row.low:.3f}, {row.high:.3f}]"
        cells = [row.name, *map(_cell, row.scores), _cell(row.mean), interval, _cell(row.strict_rate)]
        # Text, not str: a name with brackets must not be read as rich markup.
        table.add_row(*(Text(cell) for cell in cells), style=STYLES[row.css])
    if not report["models"]:
        table.add_row(Text("no model evaluated: not run"), style="dim")
    return table


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
