"""The finished stages' figures, written to the run's W&B summary and to TensorBoard."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace

from rich.console import Console
from rich.markup import escape

from tagpr_rl.backend.tracking.settings import settings_dict
from tagpr_rl.config import Recipe
from tagpr_rl.run.layout import RunDir, stage_dir
from tagpr_rl.run.manifest import read_manifest
from tagpr_rl.run.trackers import step_offset
from tagpr_rl.stages.train import tracking_settings

TIMEOUT_S = 120.0


def results(recipe: Recipe, run: RunDir) -> dict[str, float]:
    """`<stage>/<figure>` of every finished stage, from the manifests."""
    found: dict[str, float] = {}
    for name in recipe.stages:
        manifest = read_manifest(stage_dir(recipe, run, name))
        if manifest is not None:
            found |= {f"{name}/{key}": value for key, value in manifest.metrics.items()}
            found[f"{name}/seconds"] = manifest.seconds
    return found


def track_results(recipe: Recipe, run: RunDir, console: Console, outages: Sequence[str] = ()) -> None:
    """Send `results` to the run's trackers. What goes wrong there is said and stops nothing."""
    last = list(recipe.stages)[-1]
    settings = tracking_settings(recipe, run, last, outages)
    if settings.wandb_mode == "disabled" and not settings.tensorboard:
        return
    stage = recipe.stages[last]
    settings = replace(settings, step_offset=step_offset(recipe, last) + getattr(stage, "steps", 0))
    text = json.dumps({"settings": settings_dict(settings), "results": results(recipe, run)})
    command = [sys.executable, "-m", "tagpr_rl.backend.tracking.wandb_run"]
    try:
        done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=TIMEOUT_S)
        said = done.stdout.strip() if done.returncode == 0 else (done.stderr.strip().splitlines() or ["?"])[-1]
    except subprocess.TimeoutExpired:
        said = f"the trackers did not take the results within {TIMEOUT_S:.0f} s"
    if said:
        console.print(f"[yellow]results: {escape(said[:600])}[/yellow]", highlight=False, soft_wrap=True)
