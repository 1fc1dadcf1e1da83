"""What training stages share: their facts on disk, trackers, resuming, progress, and publishing weights."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from tagpr_rl.backend.session.supervisor import LostPartError, begin, is_done, value
from tagpr_rl.backend.tracking.settings import TrackingSettings
from tagpr_rl.backend.tracking.tracker import warnings_file
from tagpr_rl.backend.trainer.overrides import StagePaths, world_size
from tagpr_rl.config import GrpoStage, PrmuStage, Recipe, TrainingStage, training_steps
from tagpr_rl.config.placement import prmu_processes
from tagpr_rl.files import sha256_file, write_json
from tagpr_rl.monitor.alerts import ALERTS, read_alerts
from tagpr_rl.run import checkpoints, metrics
from tagpr_rl.run.layout import RunDir, stage_dir
from tagpr_rl.run.manifest import read_manifest
from tagpr_rl.run.resume import ATTEMPT, fact_changes
from tagpr_rl.run.trackers import step_offset, tracker_id
from tagpr_rl.stages.context import StageContext
from tagpr_rl.types import TagprError

RESUMABLE = ("checkpoints", "metrics.jsonl", "rollouts", ATTEMPT, ALERTS)
"""The point from which an interrupted training stage continues."""
RESULTS_TIMEOUT_S = 120.0
LINE_EVERY_S = 60.0
"""Progress without a terminal: one line in this time."""
Describe = Callable[[dict[str, Any]], str]
_TOKENIZER_FILES = ("tokenizer*", "vocab*", "merges*", "special_tokens*", "added_tokens*", "chat_template*")


def steps_within(steps: int, batch_size: int, examples: int, max_epochs: float) -> int:
    """`steps`, or as many as make `max_epochs` passes over the examples; at least 1."""
    return max(1, min(steps, math.ceil(max_epochs * examples / batch_size)))


def capped(steps: int, wanted: int, examples: int, max_epochs: float) -> tuple[str, ...]:
    """The note that a stage's few examples allow fewer steps than the recipe has; empty if they allow all."""
    if steps == wanted:
        return ()
    return (f"{steps} of {wanted} steps: max_epochs={max_epochs:g} passes over {examples} examples",)


def stage_paths(context: StageContext, init: str, train: Path) -> StagePaths:
    """Files and folders of the stage, starting from the weights of stage `init`."""
    return StagePaths(
        model=context.model_folder(init),
        train=train.resolve(),
        checkpoints=context.dir.checkpoints.resolve(),
        rollouts=context.dir.rollouts.resolve(),
    )


def tracking(context: StageContext) -> dict[str, Any]:
    """`tracking_settings` of the stage as a plain dict."""
    return asdict(tracking_settings(context.recipe, context.run, context.name, context.outages))


def tracking_settings(recipe: Recipe, run: RunDir, name: str, outages: Sequence[str] = ()) -> TrackingSettings:
    """How the stage `name` logs: all stages of a run are one run at its trackers.

    After an outage the rest of this process's stages are recorded offline, at once and without another warning.
    """
    log = recipe.log
    mode = "offline" if outages and log.wandb == "online" else log.wandb
    return TrackingSettings(
        metrics_file=str(stage_dir(recipe, run, name).metrics.resolve()),
        wandb_mode=mode,
        wandb_dir=str(run.root.resolve()),
        project=log.project,
        group=recipe.name,
        stage=name,
        run_id=tracker_id(run),
        step_offset=step_offset(recipe, name),
        tensorboard=log.tensorboard,
        alerts=stage.alerts.model_dump() if isinstance(stage := recipe.stages[name], GrpoStage) else None,
    )


def resume_from(context: StageContext, model: Path) -> checkpoints.Chosen:
    """The checkpoint that verl will resume from (step 0 = none). Metrics and rollouts after it are dropped."""
    recipe, name = context.recipe, context.name
    stage = recipe.stages[name]
    assert isinstance(stage, TrainingStage)
    tokenizer = [path for part in _TOKENIZER_FILES for path in sorted(model.glob(part)) if path.is_file()]
    facts = {
        "stage": name,
        "config": context.facts.config,
        "inputs": context.facts.inputs,
        "tokenizer": {path.name: sha256_file(path) for path in tokenizer},
        "world_size": prmu_processes(recipe.platform, stage) if isinstance(stage, PrmuStage) else world_size(recipe),
    }
    root = context.dir.checkpoints
    # DeepSpeed's shards of PRMU alone are read by as many processes as wrote them.
    elastic = not (isinstance(stage, PrmuStage) and stage.strategy == "deepspeed")
    identity = checkpoints.begin(root, facts, keep=stage.keep_checkpoints, any_world_size=elastic)
    chosen = checkpoints.choose(root, identity, partial(fact_changes, recipe, name))
    for note in chosen.notes:
        context.warn(f"{name}: {note}")
    metrics.trim(context.dir.metrics, chosen.step)
    for file in context.dir.rollouts.glob("step_*.*"):
        if int(file.stem.removeprefix("step_")) > chosen.step:
            file.unlink()
    return chosen


def last_checkpoint(context: StageContext, steps: int) -> Path:
    """The checkpoint of the last step. TagprError if training ended without one, so that no stage counts as finished
    halfway."""
    saved = checkpoints.steps(context.dir.checkpoints)
    rows = metrics.last(context.dir.metrics) or {"step": 0}
    if not saved or saved[-1] != steps or rows["step"] != steps:
        raise TagprError(
            f"stage '{context.name}' ended at step {rows['step']} of {steps}, with checkpoints of the steps "
            f"{saved or 'none'}; `tagpr resume {context.run.root}` goes on"
        )
    return checkpoints.step_folder(context.dir.checkpoints, steps)


def stage_notes(context: StageContext, start: checkpoints.Chosen) -> tuple[str, ...]:
    """Remarks for the manifest on how the stage went."""
    path = warnings_file(context.dir.root)
    warned = tuple(path.read_text(encoding="utf-8").splitlines()) if path.is_file() else ()
    alerts = tuple(f"alert at step {a.step}, {a.kind}: {a.text}" for a in read_alerts(context.dir.root / ALERTS))
    return (*start.notes, *((f"resumed from step {start.step}",) if start.step else ()), *warned, *alerts)


def wait_with_progress(
    console: Console, label: str, path: Path, steps: int, describe: Describe, done: Callable[[float], bool]
) -> None:
    """Show progress until `done(seconds)` (which waits at most that long) says so.

    A terminal gets a bar with the time left; anything else (a file, a job's log) gets a line a minute.
    """
    if not console.is_terminal:
        last_line = time.monotonic()
        while not done(0.5):
            if time.monotonic() - last_line >= LINE_EVERY_S:
                last_line = time.monotonic()
                console.print(progress_line(label, metrics.rows(path), steps, describe), highlight=False, markup=False)
        return
    columns = (
        TextColumn("  {task.description:<10}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[figures]}"),
    )
    row = metrics.last(path)
    with Progress(*columns, console=console, speed_estimate_period=3600.0) as progress:
        task = progress.add_task(label, total=steps, completed=row["step"] if row else 0, figures="starting")
        while not done(0.5):
            row = metrics.last(path)
            if row is not None:
                progress.update(task, completed=row["step"], figures=describe(row))
        row = metrics.last(path)
        if row is not None:
            progress.update(task, completed=row["step"], figures=describe(row))


def progress_line(label: str, rows: list[metrics.Row], steps: int, describe: Describe) -> str:
    """`guided: step 12 of 20, 4 min left, reward 0.52`."""
    if not rows:
        return f"{label}: starting"
    left = metrics.seconds_left(rows, steps)
    time_left = f", {metrics.duration(left)} left" if left is not None else ""
    return f"{label}: step {rows[-1]['step']} of {steps}{time_left}, {describe(rows[-1])}"


def wait_for(context: StageContext, task: Any, steps: int, describe: Callable[[dict[str, Any]], str]) -> None:
    """Show progress until the Ray task ends; mirror checkpoints and pass on alerts meanwhile. Raises what it raised."""
    shown = len(read_alerts(context.dir.root / ALERTS))

    def tell_alerts() -> None:
        nonlocal shown
        for alert in read_alerts(context.dir.root / ALERTS)[shown:]:
            context.warn(f"{context.name}: alert at step {alert.step}, {alert.kind}: {alert.text}")
            shown += 1

    def done(seconds: float) -> bool:
        _mirror_checkpoint(context)
        tell_alerts()
        return is_done(task, seconds)

    begin()
    wait_with_progress(context.console, context.name, context.dir.metrics, steps, describe, done)
    try:
        value(task)  # raises what the stage raised
    except LostPartError:
        raise  # the pipeline adds the stage, the logs and the command that goes on
    except TagprError as error:
        raise plain_error(error) from error
    finally:
        tell_alerts()
        warned = warnings_file(context.dir.root)
        for line in warned.read_text(encoding="utf-8").splitlines() if warned.is_file() else ():
            context.warn(f"{context.name}: {line}")
            context.outages.append(line)


def plain_error(error: TagprError) -> TagprError:
    """The original error. Ray wraps it once per task on the way, with the worker's traceback as text."""
    cause: BaseException = error
    while isinstance(inner := getattr(cause, "cause", None), BaseException):
        cause = inner
    return TagprError(str(cause))


def _mirror_checkpoint(context: StageContext) -> None:
    """Copy a new checkpoint to the run's URL. After a failure, which is printed, the next checkpoint is tried."""
    if context.mirror is None:
        return
    newest = (context.name, max(checkpoints.steps(context.dir.checkpoints), default=0))
    try:
        if newest != context.mirror.failed:
            context.mirror.push_checkpoint(context.run, context.dir)
    except TagprError as error:
        context.mirror.failed = newest
        context.warn(str(error))


def publish(context: StageContext, source: Path) -> None:
    """Copy verl's Hugging Face export to `hf/`, through a temporary name; an adapter is merged into its weights.

    verl writes fp32 tensors under a config that says bfloat16 (fsdp_checkpoint_manager.py:446); the config is made to
    say what the tensors are. transformers writes how attention was computed in training, which no reader has to follow.
    """
    temp = context.dir.root / ".hf"
    shutil.rmtree(temp, ignore_errors=True)
    shutil.copytree(source, temp)
    lora = context.recipe.lora
    if lora is not None:
        from tagpr_rl.backend.trainer.lora import merge_export

        merge_export(temp, lora.alpha / lora.rank)
    config = json.loads((temp / "config.json").read_text(encoding="utf-8"))
    for key in ("torch_dtype", "attn_implementation"):
        config.pop(key, None)
    config["dtype"] = "float32"
    write_json(temp / "config.json", config)
    shutil.rmtree(context.dir.hf, ignore_errors=True)
    temp.rename(context.dir.hf)


def results(recipe: Recipe, run: RunDir) -> dict[str, float]:
    """`<stage>/<figure>` of every finished stage, from the manifests."""
    figures: dict[str, float] = {}
    for name in recipe.stages:
        manifest = read_manifest(stage_dir(recipe, run, name))
        if manifest is not None:
            figures |= {f"{name}/{key}": value for key, value in manifest.metrics.items()}
            figures[f"{name}/seconds"] = manifest.seconds
    return figures


def track_results(recipe: Recipe, run: RunDir, console: Console, outages: Sequence[str] = ()) -> None:
    """Send `results` to the run's trackers. A tracker's failure is printed and stops nothing."""
    last = list(recipe.stages)[-1]
    settings = tracking_settings(recipe, run, last, outages)
    if settings.wandb_mode == "disabled" and not settings.tensorboard:
        return
    stage = recipe.stages[last]
    settings = replace(settings, step_offset=step_offset(recipe, last) + training_steps(stage))
    text = json.dumps({"settings": asdict(settings), "results": results(recipe, run)})
    command = [sys.executable, "-m", "tagpr_rl.backend.tracking.wandb_run"]
    try:
        done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=RESULTS_TIMEOUT_S)
        said = done.stdout.strip() if done.returncode == 0 else (done.stderr.strip().splitlines() or ["?"])[-1]
    except subprocess.TimeoutExpired:
        said = f"the trackers did not take the results within {RESULTS_TIMEOUT_S:.0f} s"
    if said:
        console.print(f"[yellow]results: {escape(said[:600])}[/yellow]", highlight=False, soft_wrap=True)
