"""Progress of a training stage: a bar that follows the stage's metrics.jsonl while Ray works."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from tagpr_rl.run import metrics

Describe = Callable[[dict[str, Any]], str]


def wait_with_progress(
    console: Console, label: str, path: Path, steps: int, describe: Describe, done: Callable[[float], bool]
) -> None:
    """Show progress until `done(seconds)` (which waits at most that long) says so."""
    columns = (
        TextColumn("  {task.description:<10}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[figures]}"),
    )
    with Progress(*columns, console=console, transient=not console.is_terminal) as progress:
        task = progress.add_task(label, total=steps, figures="starting")
        while not done(0.5):
            row = metrics.last(path)
            if row is not None:
                progress.update(task, completed=row["step"], figures=describe(row))
        row = metrics.last(path)
        if row is not None:
            progress.update(task, completed=row["step"], figures=describe(row))
