"""`tagpr report` and `tagpr compare`: a run's page, runs side by side."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tagpr_rl.cli.arguments import Overrides, RunName, out_file, say
from tagpr_rl.report import build_report, summary_table
from tagpr_rl.report.cards.sweep_page import FILE, sweep_page
from tagpr_rl.report.page.comparison import Comparison, compare, read_side, write_page
from tagpr_rl.report.page.names import task_label
from tagpr_rl.run.open import open_run
from tagpr_rl.types import TagprError

MOST_KEYS = 20
"""Recipe keys in the terminal; the page has all."""


def command(
    runs: Annotated[list[str], typer.Argument(metavar="RUN...", help="Two runs or more, or one sweep's folder.")],
    model: Annotated[
        str | None, typer.Option(help="Compare this model; default: each run's last evaluated one.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The page; default: beside the first run.", callback=out_file)
    ] = None,
) -> None:
    """Compare runs on the questions that all of them answered, in the terminal and as a page.

    Prints the recipe keys that differ, the scores, and paired differences with intervals. Of a sweep's folder, it
    writes the sweep's page.

    Example: tagpr compare runs/first runs/second
    """
    if len(runs) == 1 and (Path(runs[0]) / FILE).is_file():
        say(sweep_page(Path(runs[0])))
        return
    if len(runs) < 2:
        raise TagprError(f"compare needs two runs or more (or a sweep's folder, with {FILE}); got {runs[0]}")
    opened = [open_run(run) for run in runs]
    roots = [run.folder.root for run in opened]
    if len({root.resolve() for root in roots}) < len(roots):
        raise TagprError("compare: a run stands twice; name different runs")
    comparison = compare(
        [read_side(run.folder, run.recipe, label, model) for run, label in zip(opened, labels(roots), strict=True)]
    )
    for table in tables(comparison):
        Console().print(table)
    page = out or roots[0].resolve().parent / f"compare_{'_'.join(root.resolve().name for root in roots)}.html"
    write_page(comparison, page)
    say(page)


def report(run: RunName, overrides: Overrides = None) -> None:
    """Write report.html and report.json of RUN again from what is on disk, and print the results.

    Works for unfinished runs too; the report says what is missing.

    Example: tagpr report runs/demo
    """
    recipe, folder = open_run(run, overrides or ())
    page = build_report(folder, recipe)
    Console().print(summary_table(json.loads(folder.report_json.read_text(encoding="utf-8"))))
    say(page)


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
    shown = []
    if comparison.recipe:
        table = _table("Recipe keys that differ", "key", *(side.label for side in comparison.sides))
        for key, values in comparison.recipe[:MOST_KEYS]:
            table.add_row(Text(key), *map(Text, values))
        if (more := len(comparison.recipe) - MOST_KEYS) > 0:
            table.add_row(Text(f"and {more} more, in the page"))
        shown.append(table)
    scores = _table(
        f"Task score on the {len(comparison.common)} common questions", "run", "model",
        *map(task_label, comparison.tasks), "mean",
    )  # fmt: skip
    chosen = {(side.label, side.model) for side in comparison.sides}
    for run, model, by_task, mean in comparison.scores:
        cells = ["-" if value is None else f"{value:.3f}" for value in (*by_task, mean)]
        scores.add_row(Text(run), Text(model), *cells, style="bold" if (run, model) in chosen else "dim")
    shown.append(scores)
    title = f"Paired differences against {comparison.sides[0].label}"
    paired = _table(title, "run", "task", "difference", "95 % interval")
    for d in comparison.differences:
        paired.add_row(
            Text(d.other), task_label(d.task) if d.task else "mean", f"{d.difference:+.3f}",
            Text(f"[{d.low:+.3f}, {d.high:+.3f}]"), style="" if d.task else "bold",
        )  # fmt: skip
    shown.append(paired)
    return shown


def _table(title: str, *columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, title=Text(title), title_justify="left")
    for column in columns:
        table.add_column(Text(column))
    return table
