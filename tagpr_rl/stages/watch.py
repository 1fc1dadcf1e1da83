"""Progress of a training stage: a bar that follows the stage's metrics.jsonl while Ray works."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from tagpr_rl.files import write_text

Describe = Callable[[dict[str, Any]], str]


def wait_with_progress(
    console: Console, label: str, metrics: Path, steps: int, describe: Describe, done: Callable[[float], bool]
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
            row = last_row(metrics)
            if row is not None:
                progress.update(task, completed=row["step"], figures=describe(row))
        row = last_row(metrics)
        if row is not None:
            progress.update(task, completed=row["step"], figures=describe(row))


def last_row(metrics: Path) -> dict[str, Any] | None:
    """The last whole line of a metrics.jsonl, or None."""
    try:
        with metrics.open("rb") as handle:
            handle.seek(max(0, metrics.stat().st_size - 16384))
            lines = handle.read().split(b"\n")[:-1]
    except FileNotFoundError:
        return None
    if not lines:
        return None
    try:
        row: dict[str, Any] = json.loads(lines[-1])
    except json.JSONDecodeError:
        return None
    return row


def trim_metrics(metrics: Path, step: int) -> None:
    """Drop rows after `step`: an interrupted stage goes on from its checkpoint and will log them again."""
    if not metrics.is_file():
        return
    kept = []
    for line in metrics.read_text(encoding="utf-8").splitlines():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue  # the last line of a killed process
        if row["step"] <= step:
            kept.append(line)
    write_text(metrics, "".join(line + "\n" for line in kept))
