"""Runs made without training, for tests of what a run leaves on disk: stages with manifests, step checkpoints."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tagpr_rl.config import Recipe, recipe_from_dict
from tagpr_rl.files import write_text
from tagpr_rl.run.checkpoints import Identity, publish, seal, staging, step_folder
from tagpr_rl.run.layout import RunDir, stage_dir
from tagpr_rl.run.manifest import make_manifest, stage_facts, write_manifest

RAW: dict[str, Any] = {
    "name": "r",
    "stages": {
        "data": {"kind": "data"},
        "model": {"kind": "model"},
        "prompts": {"kind": "prompts"},
        "base": {"kind": "sft", "init": "model", "dataset": "direct"},
        "chains": {"kind": "chains"},
        "sft": {"kind": "sft", "init": "base"},
        "prmu": {"kind": "prmu", "init": "sft"},
        "guided": {"kind": "grpo", "init": "sft", "prmu": "prmu"},
        "explore": {"kind": "grpo", "init": "guided", "weights": {"beta": 0}},
        "eval": {"kind": "evaluate", "models": ["base", "explore"]},
    },
}


def recipe(change: Callable[[dict[str, Any]], None] | None = None) -> Recipe:
    raw = copy.deepcopy(RAW)
    if change is not None:
        change(raw)
    return recipe_from_dict(raw, source="x")


def finish(recipe: Recipe, run: RunDir, name: str, text: str = "weights") -> None:
    """What a stage does: write outputs, then the manifest."""
    facts = stage_facts(recipe, run, name)
    folder = stage_dir(recipe, run, name)
    write_text(folder.hf / "model.txt", f"{text} of {name}")
    manifest = make_manifest(
        folder, name, recipe.stages[name].kind, facts, outputs=[folder.hf], started="2026-01-01T00:00:00Z", seconds=1.5,
        metrics={"m": 0.25}, notes=("n",),
    )  # fmt: skip
    write_manifest(folder, manifest)


def finish_all(recipe: Recipe, run: RunDir) -> None:
    for name in recipe.stages:
        finish(recipe, run, name)


def save(root: Path, step: int, identity: Identity) -> Path:
    """What a trainer does."""
    folder = step_folder(staging(root, identity), step)
    (folder / "actor").mkdir(parents=True)
    (folder / "actor" / "model.pt").write_bytes(bytes([step]) * 1000)
    (folder / "data.pt").write_text(f"data of {step}")
    seal(folder, step, identity)
    assert publish(root, step, identity)
    return step_folder(root, step)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))
