"""`launch.py compare`: runs side by side, in the terminal and as a page; of a sweep's folder, the sweep's page."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tagpr_rl.report.cards.sweep_page import FILE, sweep_page
from tagpr_rl.report.page.comparison import Comparison, compare, read_side, write_page
from tagpr_rl.report.page.names import task_label
from tagpr_rl.run.layout import RunDir
from tagpr_rl.run.state import read_resolved
from tagpr_rl.types import TagprError

MOST_KEYS = 20
"""Recipe keys in the terminal; the page has all."""


def add_commands(commands: Any) -> None:
    """Add `compare RUN RUN ...` to the top parser's commands."""
    command = commands.add_parser("compare", help="runs side by side: recipes, scores, curves, responses")
    command.add_argument("targets", metavar="RUN", type=Path, nargs="+", help="runs' folders; or one sweep's folder")
    command.add_argument("--model", help="compare this model of every run; default: each run's last evaluated one")
    command.add_argument("--out", type=Path, metavar="FILE", help="the page; default: beside the first run")


def run_command(arguments: argparse.Namespace, console: Console) -> int:
    """Print the tables and the page's path. TagprError for folders that are no runs, or with nothing in common."""
    targets: list[Path] = arguments.targets
    if len(targets) == 1 and (targets[0] / FILE).is_file():
        console.print(str(sweep_page(targets[0])), soft_wrap=True, highlight=False, markup=False)
        return 0
    if len(targets) < 2:
        raise TagprError(f"compare needs two runs or more (or a sweep's folder, with {FILE}); got {targets[0]}")
    if len({path.resolve() for path in targets}) < len(targets):
        raise TagprError("compare: a run stands twice; name different runs")
    sides = []
    for path, label in zip(targets, labels(targets), strict=True):
        run = RunDir(path)
        if not run.resolved.is_file():
            raise TagprError(f"{path} is no run's folder (it has no {run.resolved.name})")
        sides.append(read_side(run, read_resolved(run), label, arguments.model))
    comparison = compare(sides)
    for table in tables(comparison):
        console.print(table)
    name = f"compare_{'_'.join(path.resolve().name for path in targets)}.html"
    page = arguments.out or targets[0].resolve().parent / name
    write_page(comparison, page)
    console.print(str(page), soft_wrap=True, highlight=False, markup=False)
    return 0


def labels(paths: Sequence[Path]) -> list[str]:
    """The folders' names, with as many parents as it takes to tell them apart."""
    parts = [path.resolve().parts for path in paths]
    depth = 1
    while True:
        names = ["/".join(part[-depth:]) for part in parts]
        if max(Counter(names).values()) == 1 or depth >= max(map(len, parts)):
            return names
        depth += 1


def tables(comparison: Comparison) -> list[Table]:
    """Recipe keys that differ, then scores with paired differences."""
    found = []
    if comparison.recipe:
        table = _table("Recipe keys that differ", "key", *(side.label for side in comparison.sides))
        for key, values in comparison.recipe[:MOST_KEYS]:
            table.add_row(Text(key), *map(Text, values))
        if (more := len(comparison.recipe) - MOST_KEYS) > 0:
            table.add_row(Text(f"and {more} more, in the page"))
        found.append(table)
    scores = _table(
        f"Task score on the {len(comparison.common)} common questions", "run", "model",
        *map(task_label, comparison.tasks), "mean",
    )  # fmt: skip
    chosen = {(side.label, side.model) for side in comparison.sides}
    for run, model, by_task, mean in comparison.scores:
        cells = ["-" if value is None else f"{value:.3f}" for value in (*by_task, mean)]
        scores.add_row(Text(run), Text(model), *cells, style="bold" if (run, model) in chosen else "dim")
    found.append(scores)
    title = f"Paired differences against {comparison.sides[0].label}"
    paired = _table(title, "run", "task", "difference", "95 % interval")
    for d in comparison.differences:
        paired.add_row(
            Text(d.other), task_label(d.task) if d.task else "mean", f"{d.difference:+.3f}",
            Text(f"[{d.low:+.3f}, {d.high:+.3f}]"), style="" if d.task else "bold",
        )  # fmt: skip
    found.append(paired)
    return found


def _table(title: str, *columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, title=Text(title), title_justify="left")
    for column in columns:
        table.add_column(Text(column))
    return table
