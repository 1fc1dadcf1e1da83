"""Where the stages of a run are: the step at work, the time it has left, the latest reward or score."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from tagpr_rl.config import Recipe, training_steps
from tagpr_rl.run import checkpoints, metrics
from tagpr_rl.run.layout import RunDir, stage_dir
from tagpr_rl.run.manifest import read_manifest

Rows = Callable[[Path], list[metrics.Row]]
"""Reads a metrics.jsonl: `metrics.rows`, or a reader that keeps what it has read."""


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


def run_progress(
    recipe: Recipe,
    run: RunDir,
    states: Mapping[str, str],
    scores: Mapping[str, float],
    *,
    running: bool,
    rows: Rows = metrics.rows,
) -> dict[str, Progress]:
    """Stage -> where it is.

    Args:
        states: stage -> done, todo or changed.
        scores: stage -> mean task score, of the stages that were evaluated.
        running: whether a process works on the run.
    """
    progress = {name: stage_progress(recipe, run, name, state, scores) for name, state in states.items()}
    current = next((name for name, state in states.items() if state == "todo"), None)
    if current is not None and stage_dir(recipe, run, current).root.is_dir():
        progress[current] = current_progress(recipe, run, current, running=running, rows=rows)
    return progress


def stage_progress(recipe: Recipe, run: RunDir, name: str, state: str, scores: Mapping[str, float]) -> Progress:
    """A stage that is finished, or that nothing was done for."""
    manifest = read_manifest(stage_dir(recipe, run, name))
    if manifest is None:
        return Progress(state)
    steps, last = training_steps(recipe.stages[name]), metrics.last(stage_dir(recipe, run, name).metrics)
    step = str(last["step"]) if steps and last is not None else ""  # a stage may end before its last step
    score = f"{scores[name]:.3f}" if name in scores else ""
    return Progress(state, step, metrics.duration(manifest.seconds), score)


def current_progress(recipe: Recipe, run: RunDir, name: str, *, running: bool, rows: Rows = metrics.rows) -> Progress:
    """The first stage that is not finished and has a folder."""
    folder, steps = stage_dir(recipe, run, name), training_steps(recipe.stages[name])
    logged = rows(folder.metrics)
    step = f"{logged[-1]['step']} of {steps}" if logged else f"0 of {steps}" if steps else ""
    reward = f"reward {logged[-1]['reward/total/mean']:.3f}" if logged and "reward/total/mean" in logged[-1] else ""
    if running:
        left = metrics.seconds_left(logged, steps)
        return Progress("running", step, f"{metrics.duration(left)} left" if left is not None else "", reward)
    saved = checkpoints.steps(folder.checkpoints)
    note = (f"goes on after step {saved[-1]}" if saved else "starts over") if steps else ""
    return Progress("interrupted", step, note, reward)
