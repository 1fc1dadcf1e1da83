"""`tagpr resume`: go on with a run from its own recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tagpr_rl.cli.arguments import RunName, Until, check_stage, full_install, say
from tagpr_rl.run.open import open_run
from tagpr_rl.run.resume import resume_point
from tagpr_rl.run.state import run_status


def command(
    run: RunName,
    until: Until = None,
    out: Annotated[Path | None, typer.Option(metavar="FOLDER", help="With a URL: the local folder of runs.")] = None,
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
    full_install("tagpr_rl.stages.pipeline").run_pipeline(recipe, folder, until=until)
    left = [name for name, state in run_status(recipe, folder, until=until).items() if state.status != "done"]
    assert not left, f"the pipeline ended with unfinished stages: {left}"
