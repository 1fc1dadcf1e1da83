"""`tagpr replay`: rewards and advantages of a finished grpo stage, recomputed from its saved responses.

Every response is parsed and scored again from its text, and the advantages are computed from those rewards with the
code that the trainer's hook calls. What PRMU said is taken from the file, or asked again with `--prmu`.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from tagpr_rl.cli.arguments import RunName
from tagpr_rl.config import GrpoStage, Recipe
from tagpr_rl.reward.advantages.step import ResponseParts, response_parts
from tagpr_rl.reward.rubric import Rubric, Weights, breakdown_row
from tagpr_rl.reward.update import AdvantageRules, Credit, credit_batch
from tagpr_rl.run.layout import RunDir, stage_dir
from tagpr_rl.run.open import open_run
from tagpr_rl.tags.schema import default_schema, load_schema
from tagpr_rl.types import TagprError, did_you_mean

TOLERANCE, TOLERANCE_RESCORED = 1e-6, 1e-4
"""PRMU's scores depend on what shares a batch by float32 rounding, and groups of near-equal rewards magnify it."""
NUMBERS = ("total", "task", "format", "tag", "prmu", "repetition")
_NEEDED = ("record_id", "task", "sample", "response", "gold", "advantage", "prmu_status", "parse_status")

Line = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Recomputed:
    """One response's rewards and credit, computed again."""

    row: Mapping[str, Any]
    parts: ResponseParts
    credit: Credit


@dataclass(frozen=True, slots=True)
class Difference:
    """How far one column of a step's lines is from what was recomputed."""

    column: str
    responses: int
    largest: float
    """Absolute; 1 per response where the column is a word."""
    beyond: int
    """Responses further off than the tolerance."""
    where: str
    """Task, record and sample of the largest difference."""


def command(
    run: RunName,
    stage: Annotated[str, typer.Argument(metavar="STAGE", help="A grpo stage of the run.")],
    step: Annotated[int | None, typer.Option("--step", metavar="N", help="This step only; default: all.")] = None,
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
    tolerance = TOLERANCE_RESCORED if prmu else TOLERANCE
    table = Table(title=f"{stage}: saved against recomputed, tolerance {tolerance:g}")
    for heading in ("step", "column", "responses", "largest difference", "beyond", "where"):
        table.add_column(heading)
    wrong = 0
    for step, file in files:
        lines = read_lines(file)
        scores = _prmu_scores(recipe, folder, stage, lines) if prmu else None
        for difference in compare(lines, recompute(recipe, block, lines, scores), tolerance):
            wrong += difference.beyond
            shown = (f"{difference.largest:.1e}", str(difference.beyond), difference.where if difference.beyond else "")
            table.add_row(str(step), difference.column, str(difference.responses), *shown)
    Console().print(table)
    if wrong:
        raise typer.Exit(1)


def _prmu_scores(recipe: Recipe, run: RunDir, stage: str, lines: Sequence[Line]) -> list[float]:
    scores: list[float] = importlib.import_module("tagpr_rl.studies.rescore").prmu_scores(recipe, run, stage, lines)
    return scores


def step_files(folder: Path, step: int | None) -> list[tuple[int, Path]]:
    """(step, file) of a stage's saved responses. TagprError where there are none of the step asked for."""
    found = sorted((int(file.stem.removeprefix("step_")), file) for file in folder.glob("step_*.jsonl"))
    chosen = [item for item in found if step is None or item[0] == step]
    if not chosen:
        steps = f"of step {step}; saved steps: {', '.join(str(n) for n, _ in found) or 'none'}" if step else ""
        raise TagprError(f"{folder} holds no saved responses {steps}".rstrip())
    return chosen


def read_lines(file: Path) -> list[dict[str, Any]]:
    """The lines of a step. TagprError that names the line where one is not whole."""
    lines = []
    for number, text in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            line = json.loads(text)
            missing = [key for key in (*_NEEDED, *(f"reward_{name}" for name in NUMBERS)) if key not in line]
        except (json.JSONDecodeError, TypeError) as error:
            raise TagprError(f"{file}, line {number}: no JSON object ({error}); the file was changed or cut") from None
        if missing:
            raise TagprError(f"{file}, line {number}: {', '.join(missing)} missing; this is no file of saved responses")
        lines.append(line)
    return lines


def recompute(
    recipe: Recipe, stage: GrpoStage, lines: Sequence[Line], scores: Sequence[float] | None = None
) -> list[Recomputed]:
    """Rewards and credit of one step's responses, in the lines' order; `scores` in the place of PRMU's saved ones."""
    schema = load_schema(recipe.schema_file) if recipe.schema_file is not None else default_schema()
    prefilled = recipe.model.thought_prefilled
    rubric = Rubric(schema, Weights(**stage.weights.model_dump()), prefilled=prefilled)
    rules = AdvantageRules(**stage.advantage_rules())
    rows, parts = [], []
    for i, line in enumerate(lines):
        said = line["reward_prmu"] if scores is None else scores[i]
        score = said if line["prmu_status"] == "scored" else None
        facts = {"task": line["task"], "gold": line["gold"], "prmu": score, "prmu_status": line["prmu_status"]}
        rows.append(breakdown_row(rubric.score(line["response"], **facts)))
        parts.append(response_parts(line["response"], schema, prefilled=prefilled))
    credits: list[Credit] = [Credit()] * len(lines)
    for update in sorted({line.get("update", 0) for line in lines}):  # advantages are those of one update
        at = [i for i, line in enumerate(lines) if line.get("update", 0) == update]
        groups = [str(lines[i].get("group") or f"{lines[i]['task']}/{lines[i]['record_id']}") for i in at]
        found = credit_batch([rows[i] for i in at], groups, [parts[i] for i in at], rules)
        for i, credit in zip(at, found, strict=True):
            credits[i] = credit
    return [Recomputed(*item) for item in zip(rows, parts, credits, strict=True)]


def compare(lines: Sequence[Line], again: Sequence[Recomputed], tolerance: float = TOLERANCE) -> list[Difference]:
    """One `Difference` per column: reward components, statuses, advantages, step credit, who took part."""
    columns: dict[str, list[float]] = {f"reward_{name}": [] for name in NUMBERS}
    columns |= {name: [] for name in ("parse_status", "advantage", "step_credit", "masked")}
    for line, new in zip(lines, again, strict=True):
        for name in NUMBERS:
            columns[f"reward_{name}"].append(abs(line[f"reward_{name}"] - new.row[name]))
        columns["parse_status"].append(float(line["parse_status"] != new.row["parse_status"]))
        columns["advantage"].append(abs(line["advantage"] - new.credit.advantage))
        columns["step_credit"].append(_step_difference(line.get("step_credit") or (), new))
        columns["masked"].append(float(line.get("why", "") != new.credit.why))
    found = []
    for column, values in columns.items():
        worst = max(range(len(values)), key=values.__getitem__, default=None)
        largest = values[worst] if worst is not None else 0.0
        place = "/".join(str(lines[worst][key]) for key in ("task", "record_id", "sample")) if worst is not None else ""
        beyond = sum(not value <= tolerance for value in values)
        found.append(Difference(column, len(values), largest, beyond, place))
    return found


def _step_difference(saved: Sequence[Mapping[str, Any]], new: Recomputed) -> float:
    """The largest difference of a step's advantage; 1 or more where the steps are not the same ones."""
    own = new.credit.steps
    if any(not 0 <= item["step"] < len(own) or item["tag"] != new.parts.steps[item["step"]].tag for item in saved):
        return 1.0
    if len(saved) != len(own) and any(own):
        return 1.0
    return max((abs(item["advantage"] - own[item["step"]]) for item in saved), default=0.0)
