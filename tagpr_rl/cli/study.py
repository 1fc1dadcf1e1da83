"""`tagpr study` measures a finished run on users that no training has seen; `tagpr export` writes its models."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.table import Table

from tagpr_rl.cli.arguments import RunName, StageName, full_install, out_folder, say
from tagpr_rl.config import GrpoStage, Recipe, dump_recipe
from tagpr_rl.files import write_json
from tagpr_rl.monitor.view import Section, StageFacts, as_json, sections
from tagpr_rl.report.cards.prmu_page import prmu_summary
from tagpr_rl.reward.components import component_names
from tagpr_rl.run.layout import stage_dir
from tagpr_rl.run.open import open_run
from tagpr_rl.run.trackers import step_offset, tracker_id
from tagpr_rl.stages.common import results
from tagpr_rl.tags.schema import default_schema, load_schema
from tagpr_rl.types import TagprError

TIMEOUT_S = 60.0
_MISSING = 3  # backend.tracking.wandb_view.MISSING

commands = typer.Typer(add_completion=False, no_args_is_help=True, help="Measure a finished run.")

Questions = Annotated[int, typer.Option("--questions", min=2, metavar="N", help="About this many held-out questions.")]


@commands.command()
def prmu(
    run: RunName,
    stage: StageName = None,
    questions: Questions = 400,
    samples: Annotated[int, typer.Option(metavar="N", help="Responses to each question; a power of 2.")] = 8,
) -> None:
    """Measure a reward model (default: the recipe's first) on held-out users.

    Accuracy, controls, calibration, best-of-N and probes, as JSON and as a page.

    Example: tagpr study prmu runs/demo
    """
    recipe, folder = open_run(run)
    measure = full_install("tagpr_rl.studies.prmu_eval").prmu_eval
    path: Path = measure(recipe, folder, stage, questions=questions, samples=samples, console=Console())
    Console().print(prmu_table(_read(path)))
    say(path)
    say(path.with_suffix(".html"))


@commands.command()
def faithful(run: RunName, stage: StageName = None, questions: Questions = 200) -> None:
    """Measure whether answers follow from their thoughts, and thoughts from the profile.

    Alters a thought or a profile and lets the model answer again. The stage is an sft or grpo stage that reasons;
    default: the last finished one.

    Example: tagpr study faithful runs/demo --questions 100
    """
    recipe, folder = open_run(run)
    measure = full_install("tagpr_rl.studies.faithful").faithful
    path: Path = measure(recipe, folder, stage, questions=questions, console=Console())
    Console().print(faithful_table(_read(path)))
    say(path)


@commands.command("wandb-view")
def wandb_view(
    run: RunName,
    entity: Annotated[
        str, typer.Option(metavar="NAME", help="W&B user or team; default: the logged-in user's own.")
    ] = "",
    as_text: Annotated[
        bool, typer.Option("--json", help="Print the view; no server and no W&B package needed.")
    ] = False,
) -> None:
    """Save a curated view of a run's metrics to the W&B server, or print it.

    Example: tagpr study wandb-view runs/demo --json
    """
    recipe, folder = open_run(run)
    view = as_json(view_of(recipe))
    if as_text:
        sys.stdout.write(json.dumps(view, indent=1) + "\n")
        return
    record = folder.root / "wandb_view.json"
    request = {
        "entity": entity, "project": recipe.log.project, "name": f"{recipe.name}: curated", "sections": view,
        "url": _read(record)["url"] if record.is_file() else "",
    }  # fmt: skip
    url = _saved(request)
    write_json(record, {"url": url})
    say(url)


@commands.command("wandb-files")
def wandb_files(run: RunName) -> None:
    """Write RUN once more for W&B, as one folder with every step once, and print the command that uploads it.

    For runs that were killed and went on: what their processes recorded lacks some steps and has others twice. The
    metrics of all stages, the recipe and the results are in it; sample tables and alerts are not.

    Example: tagpr study wandb-files runs/demo
    """
    recipe, folder = open_run(run)
    target = folder.root / "wandb_files"
    shutil.rmtree(target, ignore_errors=True)
    settings = {
        "metrics_file": "", "wandb_mode": "offline", "wandb_dir": str(target.resolve()), "project": recipe.log.project,
        "group": recipe.name, "stage": "", "run_id": tracker_id(folder),
    }  # fmt: skip
    stages = [
        [name, step_offset(recipe, name), str(path.resolve())]
        for name in recipe.stages
        if (path := stage_dir(recipe, folder, name).metrics).is_file()
    ]
    if not stages:
        raise TagprError(f"{folder.root} has no metrics yet; run its recipe first")
    request = {
        "settings": settings,
        "config": dump_recipe(recipe),
        "stages": stages,
        "results": results(recipe, folder),
    }
    command = [sys.executable, "-m", "tagpr_rl.backend.tracking.wandb_files"]
    process = subprocess.run(command, input=json.dumps(request), capture_output=True, text=True, check=False)
    if process.returncode != 0:
        lines = process.stderr.strip().splitlines() or ["no message"]
        raise TagprError(f"W&B's package did not write the files: {lines[-1][:500]}")
    say(f"wandb sync {process.stdout.strip().splitlines()[-1]}")


def _read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def export(
    run: RunName,
    stage: Annotated[str, typer.Option(metavar="STAGE", help="A model, sft or grpo stage.")],
    dtype: Annotated[Literal["float32", "bfloat16"], typer.Option()] = "float32",
    out: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Default: RUN/export/STAGE-DTYPE.", callback=out_folder)
    ] = None,
) -> None:
    """Write the model of a finished stage of RUN as a Hugging Face folder, with a model card.

    Adapters are merged into the weights.

    Example: tagpr export runs/demo --stage explore --dtype bfloat16
    """
    recipe, folder = open_run(run)
    say(full_install("tagpr_rl.studies.export").export(recipe, folder, stage, dtype=dtype, out=out))


def prmu_table(facts: Mapping[str, Any]) -> Table:
    """The main figures of `prmu`."""
    table = Table(title=f"{facts['run']}, stage {facts['stage']} (user: {facts['user']})", show_header=False)
    for label, text in prmu_summary(facts):
        table.add_row(label, text.replace("[", r"\["))
    return table


def faithful_table(facts: Mapping[str, Any]) -> Table:
    """Of `faithful`: one row per alteration, then one per tag whose step was dropped."""
    own = facts["own_score"]
    table = Table(
        title=f"{facts['run']}, stage {facts['stage']}: {facts['well_formed']} of {facts['questions']} questions "
        f"answered in form, own score {own[0]:.3f}",
        caption="mean over tasks \\[95 % interval over users]",
    )
    for heading in ("altered", "questions", "answer changed", "score", "change of the score"):
        table.add_column(heading, justify="left" if heading == "altered" else "right")
    rows = {**facts["alterations"], **{f"  drop_step: {tag}": row for tag, row in facts["tags"].items()}}
    for name, row in rows.items():
        changed, score, change = (row[key] for key in ("changed", "score", "score_change"))
        table.add_row(
            name,
            str(row["n"]),
            f"{changed[0]:.1%} \\[{changed[1]:.1%}, {changed[2]:.1%}]",
            f"{score[0]:.3f}",
            f"{change[0]:+.3f} \\[{change[1]:+.3f}, {change[2]:+.3f}]",
        )
    return table


def view_of(recipe: Recipe) -> list[Section]:
    """The view of a recipe's GRPO stages. TagprError if it has none."""
    stages = [
        StageFacts(
            name=name,
            components=component_names(stage.terms),
            prmu=stage.uses_prmu,
            kl=stage.kl_coef > 0,
            gap=not stage.reuse_rollout_logprobs or stage.mini_batches == 1,
            entropy="actor/entropy_loss" if stage.reuse_rollout_logprobs else "actor/entropy",
            validated=stage.validation is not None,
        )
        for name, stage in recipe.stages.items()
        if isinstance(stage, GrpoStage)
    ]
    if not stages:
        raise TagprError(f"recipe {recipe.name}: no stage of the kind grpo, so there is nothing to show")
    schema = load_schema(recipe.schema_file) if recipe.schema_file else default_schema()
    return sections(stages, recipe.data.tasks, schema.names)


def _saved(request: dict[str, Any]) -> str:
    """The saved view's URL; the work is done in a process that ends, since W&B's client retries for minutes."""
    command = [sys.executable, "-m", "tagpr_rl.backend.tracking.wandb_view"]
    try:
        process = subprocess.run(command, input=json.dumps(request), capture_output=True, text=True, timeout=TIMEOUT_S)
    except subprocess.TimeoutExpired:
        raise TagprError(
            f"W&B did not answer within {TIMEOUT_S:g} s; the view was not saved. `--json` prints it without a server"
        ) from None
    if process.returncode == _MISSING:
        raise TagprError(
            "the package 'wandb-workspaces' is not installed; `pip install wandb-workspaces`, or use --json"
        )
    if process.returncode != 0:
        lines = process.stderr.strip().splitlines() or ["no message"]
        raise TagprError(f"W&B did not take the view: {lines[-1][:500]}. `--json` prints it without a server")
    return process.stdout.strip().splitlines()[-1]
