"""`tagpr status`: what a run has made, what it is at, how long that takes, and what to type next."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from tagpr_rl.cli.arguments import Overrides, RunName, say
from tagpr_rl.config import Recipe
from tagpr_rl.run.layout import RunDir
from tagpr_rl.run.open import open_run
from tagpr_rl.run.progress import Progress, run_progress
from tagpr_rl.run.resume import working_process
from tagpr_rl.run.state import run_status

_STYLE = {"done": "green", "running": "bold cyan", "interrupted": "yellow", "todo": "dim", "changed": "bold red"}


def command(run: RunName, overrides: Overrides = None) -> None:
    """Print the state of every stage of RUN: done, running, interrupted, to do, or changed since it was made.

    Says the step of the stage at work and the time it has left, the scores, where the report is, and what to type
    next.

    Example: tagpr status runs/demo
    """
    recipe, folder = open_run(run, overrides or (), started=False)
    statuses = run_status(recipe, folder)
    process = working_process(folder)
    stages = {name: status.status for name, status in statuses.items()}
    progress = run_progress(recipe, folder, stages, _scores(folder), running=process is not None)
    Console().print(progress_table(recipe, progress))
    for name, status in statuses.items():
        for reason in status.reasons:
            say(f"stage '{name}': {reason}")
    say(f"run: {folder.root}" + (f" (process {process} works on it)" if process is not None else ""))
    if folder.report_html.is_file():
        say(f"report: {folder.report_html}")
    say(f"next: {_next(run, folder, stages, process)}")


def progress_table(recipe: Recipe, progress: Mapping[str, Progress]) -> Table:
    """A row for each stage."""
    table = Table("stage", "kind", "state", "step", "time", "score")
    for name, row in progress.items():
        state = f"[{_STYLE[row.state]}]{row.state}[/]"
        table.add_row(name, recipe.stages[name].kind, state, row.step, row.time, row.score)
    return table


def _scores(run: RunDir) -> dict[str, float]:
    """Stage -> mean task score, of the stages that the report's evaluation covers."""
    if not run.report_json.is_file():
        return {}
    report: dict[str, Any] = json.loads(run.report_json.read_text(encoding="utf-8"))
    return {name: model["mean"] for name, model in (report.get("models") or {}).items()}


def _next(target: str, run: RunDir, states: Mapping[str, str], process: str | None) -> str:
    """The command that a user would type now."""
    if process is not None:
        return f"tagpr status {target} (again, later)"
    if "changed" in states.values():
        return f"tagpr run RECIPE name=<new name>; or delete the changed stages' folders in {run.root}"
    if "todo" not in states.values():
        return f"tagpr compare {run.root} <another run>; tagpr export {run.root} --stage STAGE"
    return f"tagpr resume {run.root}" if run.resolved.is_file() else f"tagpr run {target}"
