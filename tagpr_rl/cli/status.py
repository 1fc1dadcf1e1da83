"""`tagpr status`: what a run has made, what it is at, how long that takes, and what to type next."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from tagpr_rl.cli.arguments import Overrides, RunName, say
from tagpr_rl.config import Recipe, training_steps
from tagpr_rl.run import checkpoints, metrics
from tagpr_rl.run.layout import RunDir, stage_dir
from tagpr_rl.run.manifest import read_manifest
from tagpr_rl.run.open import open_run
from tagpr_rl.run.resume import working_process
from tagpr_rl.run.state import run_status

_STYLE = {"done": "green", "running": "bold cyan", "interrupted": "yellow", "todo": "dim", "changed": "bold red"}


@dataclass(frozen=True, slots=True)
class Progress:
    """Where one stage is."""

    state: str
    """done, running, interrupted, todo or changed."""
    step: str = ""
    """`12 of 20` of a training stage."""
    time: str = ""
    """What a finished stage took, or what is left of a running one."""
    score: str = ""
    """Task score of the stage's model on held-out questions; before the evaluation, its latest mean reward."""


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
    current = next((name for name, state in stages.items() if state == "todo"), None)
    scores = _scores(folder)
    progress = {name: _progress(recipe, folder, name, stages[name], scores) for name in stages}
    if current is not None and stage_dir(recipe, folder, current).root.is_dir():
        progress[current] = _current(recipe, folder, current, running=process is not None)
    table = Table("stage", "kind", "state", "step", "time", "score")
    for name, row in progress.items():
        state = f"[{_STYLE[row.state]}]{row.state}[/]"
        table.add_row(name, recipe.stages[name].kind, state, row.step, row.time, row.score)
    Console().print(table)
    for name, status in statuses.items():
        for reason in status.reasons:
            say(f"stage '{name}': {reason}")
    say(f"run: {folder.root}" + (f" (process {process} works on it)" if process is not None else ""))
    if folder.report_html.is_file():
        say(f"report: {folder.report_html}")
    say(f"next: {_next(run, folder, stages, process)}")


def _progress(recipe: Recipe, run: RunDir, name: str, state: str, scores: Mapping[str, float]) -> Progress:
    """A stage that is finished, or that nothing was done for."""
    manifest = read_manifest(stage_dir(recipe, run, name))
    if manifest is None:
        return Progress(state)
    steps, last = training_steps(recipe.stages[name]), metrics.last(stage_dir(recipe, run, name).metrics)
    step = str(last["step"]) if steps and last is not None else ""  # a stage may end before its last step
    score = f"{scores[name]:.3f}" if name in scores else ""
    return Progress(state, step, metrics.duration(manifest.seconds), score)


def _current(recipe: Recipe, run: RunDir, name: str, *, running: bool) -> Progress:
    """The first stage that is not finished and has a folder."""
    folder, steps = stage_dir(recipe, run, name), training_steps(recipe.stages[name])
    rows = metrics.rows(folder.metrics)
    step = f"{rows[-1]['step']} of {steps}" if rows else f"0 of {steps}" if steps else ""
    reward = f"reward {rows[-1]['reward/total/mean']:.3f}" if rows and "reward/total/mean" in rows[-1] else ""
    if running:
        left = metrics.seconds_left(rows, steps)
        return Progress("running", step, f"{metrics.duration(left)} left" if left is not None else "", reward)
    saved = checkpoints.steps(folder.checkpoints)
    note = (f"goes on after step {saved[-1]}" if saved else "starts over") if steps else ""
    return Progress("interrupted", step, note, reward)


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
