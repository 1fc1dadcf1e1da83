"""`tagpr run` and `tagpr resume`: make a recipe's stages, or go on with those of a run."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated

import typer

from tagpr_rl.cli.arguments import (
    Overrides,
    RecipeName,
    RunName,
    Until,
    check_stage,
    full_install,
    out_folder,
    say,
    warn,
)
from tagpr_rl.preflight.examine import planned, require_ready
from tagpr_rl.run.branch import from_override, require_another_run
from tagpr_rl.run.layout import RunDir
from tagpr_rl.run.mirror import mirror_of
from tagpr_rl.run.open import open_recipe, open_run, planned_run
from tagpr_rl.run.resume import exclusive, resume_point
from tagpr_rl.run.state import require_unchanged, run_status
from tagpr_rl.types import TagprError


def command(
    recipe: RecipeName,
    overrides: Overrides = None,
    until: Until = None,
    source: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="RUN[:STAGE]",
            help="Start a new run from this run's finished stages: those that are equal, or all up to STAGE.",
        ),
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Delete the run's folder first.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan instead: `tagpr plan`.")] = False,
) -> None:
    """Make every stage of RECIPE that is not done yet, and print the results.

    The run's folder is <out>/<name> of the recipe. A run that was interrupted goes on where it stopped; finished
    stages are kept, and refused if they were made from other inputs.

    Example: tagpr run demo name=second stages.guided.lr=1e-4 --from runs/demo
    """
    overrides = [*(overrides or ()), *([from_override(source)] if source is not None else ())]
    if dry_run:
        from tagpr_rl.cli.plan import command as plan

        plan(recipe, overrides)
        return
    loaded, folder = planned_run(open_recipe(recipe, overrides))
    check_stage(until, loaded.stages)
    require_another_run(loaded, folder)
    require_ready(planned(loaded, folder, until, fresh=fresh), warn)
    if fresh:
        remove_run(folder)
        if (mirror := mirror_of(loaded)) is not None:
            mirror.remove()
    require_unchanged(loaded, folder)
    folder.root.mkdir(parents=True, exist_ok=True)
    full_install("tagpr_rl.stages.pipeline").run_pipeline(loaded, folder, until=until)


def resume(
    run: RunName,
    until: Until = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="With a URL: the local folder of runs.", callback=out_folder)
    ] = None,
) -> None:
    """Go on with an interrupted RUN, between stages or in the middle of one, from its last checkpoint.

    The run's own recipe is used, as it was started. A run at a URL is first copied to this machine.

    Example: tagpr resume runs/demo
    """
    recipe, folder = open_run(run, out=out, say=say)
    check_stage(until, recipe.stages)
    point = resume_point(recipe, folder)
    say(f"run {folder.root}: {point.describe()}")
    if point.stage is None and recipe.mirror is None:
        return
    require_ready(planned(recipe, folder, until), warn)
    full_install("tagpr_rl.stages.pipeline").run_pipeline(recipe, folder, until=until)
    left = [name for name, state in run_status(recipe, folder, until=until).items() if state.status != "done"]
    assert not left, f"the pipeline ended with unfinished stages: {left}"


def remove_run(run: RunDir) -> None:
    """Delete a run's folder. Refuses (TagprError) a folder that holds anything else."""
    if not run.root.exists():
        return
    if not run.resolved.is_file() and any(path != run.lock for path in run.root.iterdir()):
        raise TagprError(f"--fresh: {run.root} holds files but no {run.resolved.name}; remove the folder by hand")
    with exclusive(run):
        shutil.rmtree(run.root)
