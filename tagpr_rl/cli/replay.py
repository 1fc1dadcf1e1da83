"""`tagpr replay`: rewards and advantages of a finished grpo stage, recomputed from its saved responses.

PRMU's scores are taken from the file, or asked again with `--prmu`.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from tagpr_rl.cli.arguments import RunName
from tagpr_rl.config import GrpoStage, Recipe
from tagpr_rl.reward.replay import TOLERANCE, TOLERANCE_RESCORED, Line, compare, read_lines, recompute, step_files
from tagpr_rl.reward.rubric import Rubric
from tagpr_rl.reward.update import AdvantageRules
from tagpr_rl.run.layout import RunDir, stage_dir
from tagpr_rl.run.open import open_run
from tagpr_rl.tags.schema import default_schema, load_schema
from tagpr_rl.types import TagprError, did_you_mean


def command(
    run: RunName,
    stage: Annotated[str, typer.Argument(metavar="STAGE", help="A grpo stage of the run.")],
    step: Annotated[int | None, typer.Option(metavar="N", help="This step only; default: all.")] = None,
    prmu: Annotated[bool, typer.Option("--prmu", help="Score the responses with the stage's PRMU again.")] = False,
) -> None:
    """Compute the rewards and advantages of a grpo STAGE of RUN again from its saved responses, and compare.

    Prints the largest difference of every column. Exits with 1 if a response differs by more than the tolerance.

    Example: tagpr replay runs/demo guided
    """
    recipe, folder = open_run(run)
    block = recipe.stages.get(stage)
    if not isinstance(block, GrpoStage):
        known = [name for name, other in recipe.stages.items() if isinstance(other, GrpoStage)]
        hint = did_you_mean(stage, known, otherwise=f"its grpo stages are {', '.join(known) or 'none'}")
        raise TagprError(f"'{stage}' is no grpo stage of the run; {hint}")
    files = step_files(stage_dir(recipe, folder, stage).rollouts, step)
    rubric, rules = stage_rules(recipe, block)
    tolerance = TOLERANCE_RESCORED if prmu else TOLERANCE
    table = Table(title=f"{stage}: saved against recomputed, tolerance {tolerance:g}")
    for heading in ("step", "column", "responses", "largest difference", "beyond", "where"):
        table.add_column(heading)
    wrong = 0
    for number, file in files:
        lines = read_lines(file, rubric)
        scores = _prmu_scores(recipe, folder, stage, lines) if prmu else None
        for difference in compare(lines, recompute(rubric, rules, lines, scores), rubric, tolerance):
            wrong += difference.beyond
            shown = (f"{difference.largest:.1e}", str(difference.beyond), difference.where if difference.beyond else "")
            table.add_row(str(number), difference.column, str(difference.responses), *shown)
    Console().print(table)
    if wrong:
        raise typer.Exit(1)


def stage_rules(recipe: Recipe, stage: GrpoStage) -> tuple[Rubric, AdvantageRules]:
    """What the stage was rewarded by, and how its rewards became advantages."""
    schema = load_schema(recipe.schema_file) if recipe.schema_file is not None else default_schema()
    rules = AdvantageRules(**stage.advantage.rules(), terms=stage.terms)
    return Rubric(schema, stage.terms), rules


def _prmu_scores(recipe: Recipe, run: RunDir, stage: str, lines: Sequence[Line]) -> list[float]:
    scores: list[float] = importlib.import_module("tagpr_rl.studies.rescore").prmu_scores(recipe, run, stage, lines)
    return scores
