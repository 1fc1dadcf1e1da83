"""`tagpr cluster`: files for a cluster, jobs on a Ray cluster."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from tagpr_rl.cli.arguments import Overrides, RecipeName, full_install, out_folder, say, warn
from tagpr_rl.preflight.examine import planned, require_ready
from tagpr_rl.run.open import open_recipe, planned_run, recipe_path

commands = typer.Typer(add_completion=False, no_args_is_help=True, help="Run a recipe on a cluster.")

Address = Annotated[
    str, typer.Option("--address", metavar="URL", help="Ray's dashboard, for example http://127.0.0.1:8265.")
]


@commands.command()
def render(
    recipe: RecipeName,
    target: Annotated[Literal["docker", "kuberay", "skypilot", "slurm"], typer.Option()],
    overrides: Overrides = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Write the files there instead of printing them.", callback=out_folder),
    ] = None,
) -> None:
    """Make the files that run RECIPE on a cluster, from its platform and cluster blocks.

    Example: tagpr cluster render lamp/qwen3_8b_4nodes --target slurm --out jobs
    """
    from tagpr_rl.deploy.render import as_text, write_files
    from tagpr_rl.deploy.render import render as make

    loaded = open_recipe(recipe, overrides or ())
    files = make(loaded, target, recipe_path(recipe), overrides or ())
    require_ready(planned(*planned_run(loaded)), warn, here=False)
    if out is None:
        sys.stdout.write(as_text(files))
        return
    for path in write_files(out, files):
        say(path)


@commands.command()
def submit(
    recipe: RecipeName,
    address: Address,
    overrides: Overrides = None,
    no_follow: Annotated[bool, typer.Option("--no-follow", help="Return once the job is submitted.")] = False,
    pass_env: Annotated[bool, typer.Option("--pass-env", help="Send the values of cluster.env with the job.")] = False,
) -> None:
    """Run RECIPE on a Ray cluster: print the job's id, then its output until it ends.

    Example: tagpr cluster submit lamp/qwen3_8b --address http://127.0.0.1:8265 cluster.storage=/mnt/runs
    """
    loaded = open_recipe(recipe, overrides or ())
    require_ready(planned(*planned_run(loaded)), warn, here=False)
    succeeded = full_install("tagpr_rl.backend.session.jobs").submit_and_follow(
        loaded, recipe_path(recipe), overrides or [], address, pass_env=pass_env, following=not no_follow
    )
    if not succeeded:
        raise typer.Exit(1)


@commands.command()
def jobs(
    action: Annotated[Literal["status", "logs", "stop"], typer.Argument(metavar="status|logs|stop")],
    job: Annotated[str, typer.Argument(metavar="ID", help="As `tagpr cluster submit` printed it.")],
    address: Address,
    follow: Annotated[bool, typer.Option("--follow", help="logs: until the job ends.")] = False,
) -> None:
    """Print a submitted job's status or output, or stop it.

    Example: tagpr cluster jobs logs raysubmit_x1 --address http://127.0.0.1:8265 --follow
    """
    if not full_install("tagpr_rl.backend.session.jobs").manage(action, job, address, following=follow):
        raise typer.Exit(1)
