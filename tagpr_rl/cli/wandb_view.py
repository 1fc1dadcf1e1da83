"""`launch.py wandb-view`: the curated W&B view of a run's recipe, as JSON or saved to the W&B server."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from rich.console import Console

from tagpr_rl.config import GrpoStage, Recipe
from tagpr_rl.files import write_json
from tagpr_rl.monitor.view import Section, StageFacts, as_json, sections
from tagpr_rl.run.layout import RunDir
from tagpr_rl.run.state import read_resolved
from tagpr_rl.tags.schema import default_schema, load_schema
from tagpr_rl.types import TagprError

TIMEOUT_S = 60.0
_MISSING = 3  # backend.wandb_view.MISSING


def add_commands(commands: Any) -> None:
    """Add `wandb-view RUN` to the top parser's commands."""
    view = commands.add_parser("wandb-view", help="save the curated view of a run's metrics to the W&B server")
    view.add_argument("target", metavar="RUN", type=Path, help="a run's folder")
    view.add_argument("--entity", default="", help="W&B user or team; default: the logged-in user's own")
    view.add_argument("--json", action="store_true", help="print the view; no server and no W&B package is needed")


def run_command(arguments: argparse.Namespace, console: Console) -> int:
    """Print or save the view. TagprError: no run, no GRPO stage, no package, or a server that does not take it."""
    run = RunDir(arguments.target)
    if not run.resolved.is_file():
        raise TagprError(f"{arguments.target} is no run's folder (it has no {run.resolved.name})")
    recipe = read_resolved(run)
    view = as_json(view_of(recipe))
    if arguments.json:
        sys.stdout.write(json.dumps(view, indent=1) + "\n")
        return 0
    known = run.root / "wandb_view.json"
    earlier = json.loads(known.read_text(encoding="utf-8"))["url"] if known.is_file() else ""
    given = {
        "entity": arguments.entity, "project": recipe.log.project, "name": f"{recipe.name}: curated", "sections": view,
        "url": earlier,
    }  # fmt: skip
    url = _saved(given)
    write_json(known, {"url": url})
    console.print(url, soft_wrap=True, highlight=False, markup=False)
    return 0


def view_of(recipe: Recipe) -> list[Section]:
    """The view of a recipe's GRPO stages. TagprError where it has none."""
    stages = [
        StageFacts(
            name=name,
            prmu=stage.prmu is not None and stage.weights.beta > 0,
            kl=stage.kl_coef > 0,
            gap=not stage.reuse_rollout_logprobs or stage.mini_batches == 1,
            entropy="actor/entropy_loss" if stage.reuse_rollout_logprobs else "actor/entropy",
        )
        for name, stage in recipe.stages.items()
        if isinstance(stage, GrpoStage)
    ]
    if not stages:
        raise TagprError(f"recipe {recipe.name}: no stage of the kind grpo, so there is nothing to show")
    schema = load_schema(recipe.schema_file) if recipe.schema_file else default_schema()
    return sections(stages, recipe.data.tasks, schema.names)


def _saved(given: dict[str, Any]) -> str:
    """The saved view's URL; the work is done in a process that ends, since W&B's client retries for minutes."""
    command = [sys.executable, "-m", "tagpr_rl.backend.tracking.wandb_view"]
    try:
        done = subprocess.run(command, input=json.dumps(given), capture_output=True, text=True, timeout=TIMEOUT_S)
    except subprocess.TimeoutExpired:
        raise TagprError(
            f"W&B did not answer within {TIMEOUT_S:g} s; the view was not saved. `--json` prints it without a server"
        ) from None
    if done.returncode == _MISSING:
        raise TagprError(
            "the package 'wandb-workspaces' is not installed; `pip install wandb-workspaces`, or use --json"
        )
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or ["no message"]
        raise TagprError(f"W&B did not take the view: {lines[-1][:500]}. `--json` prints it without a server")
    return done.stdout.strip().splitlines()[-1]
