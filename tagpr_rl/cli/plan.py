"""`tagpr plan`: what a recipe will do, before it does it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer
from rich.console import Console

from tagpr_rl.cli.arguments import Overrides, RecipeName, say
from tagpr_rl.config import GrpoStage, Recipe, SftStage
from tagpr_rl.config.recipe import nearest
from tagpr_rl.plan.show import print_plan, verdict
from tagpr_rl.preflight.examine import planned, require_ready
from tagpr_rl.preflight.machine import disk_bytes, runs_here, size_text
from tagpr_rl.run.layout import RunDir, stage_dir
from tagpr_rl.run.open import open_recipe, planned_run


def command(
    recipe: RecipeName,
    overrides: Overrides = None,
    verl: Annotated[bool, typer.Option("--verl", help="Print verl's keys of each training stage, too.")] = False,
    formulas: Annotated[
        bool, typer.Option("--formulas", help="Print the memory of every part and its formula, in place of sums.")
    ] = False,
) -> None:
    """Print what RECIPE will do, and run nothing: stages, devices, batch arithmetic, memory and hours.

    Then recipe, files and machine are checked as `tagpr run` checks them: every warning and every mistake is printed,
    and with a mistake the exit code is 2. What this machine alone lacks is a warning if the run belongs elsewhere. The
    last line is the verdict: the fullest device, the hours, and the disk.

    Example: tagpr plan lamp/qwen3_8b budget.device=H100-80GB
    """
    loaded, folder = planned_run(open_recipe(recipe, overrides or ()))
    print_plan(loaded, folder, Console(), verl_overrides if verl else None, formulas=formulas)
    plan = planned(loaded, folder)
    require_ready(plan, say, here=runs_here(plan))
    say(f"{verdict(loaded)}; checkpoints, weights and rollouts: at most {size_text(disk_bytes(plan))} on disk")


def verl_overrides(recipe: Recipe, run: RunDir, name: str) -> Sequence[str]:
    """The verl overrides of an SFT or GRPO stage as Hydra's `key=value`; none for other kinds."""
    stage = recipe.stages[name]
    if not isinstance(stage, SftStage | GrpoStage):
        return ()
    from tagpr_rl.backend.trainer.overrides import StagePaths, as_hydra, grpo_overrides, sft_overrides

    own = stage_dir(recipe, run, name)
    source = own  # an SFT stage writes its own rows; GRPO reads the prompts stage's
    if isinstance(stage, GrpoStage):
        prompts = nearest(recipe, name, "prompts")
        assert prompts is not None  # a recipe without one is refused
        source = stage_dir(recipe, run, prompts)
    paths = StagePaths(
        model=stage_dir(recipe, run, stage.init).hf.absolute(),
        train=(source.root / "train.parquet").absolute(),
        checkpoints=own.checkpoints.absolute(),
        rollouts=own.rollouts.absolute(),
    )
    build = grpo_overrides if isinstance(stage, GrpoStage) else sft_overrides
    return as_hydra(build(recipe, name, paths))
