"""Exports a finished stage as a Hugging Face folder with a model card. The folder appears when it is complete."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tagpr_rl.config import Recipe
from tagpr_rl.config.kinds import WEIGHTS
from tagpr_rl.files import sha256_file, sync_folder, write_json, write_text
from tagpr_rl.report.cards.model_card import evaluations, lineage, model_card
from tagpr_rl.run.layout import RunDir, stage_dir
from tagpr_rl.run.manifest import read_manifest, verify_outputs
from tagpr_rl.types import StageManifest, TagprError


def export(recipe: Recipe, run: RunDir, name: str, *, dtype: str = "float32", out: Path | None = None) -> Path:
    """Write stage `name`'s weights as `dtype` with their card to `out`; returns the folder.

    Without `out` it is `<run>/export/<stage>-<dtype>`. Raises TagprError for a stage that has no policy or is
    not finished, for weights that are not those the stage wrote, and for a folder that exists.
    """
    folder = _policy(recipe, run, name)
    target = out if out is not None else run.root / "export" / f"{name}-{dtype}"
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise TagprError(f"{target} exists; remove it, or choose another folder with --out")
    manifests = {s: m for s in recipe.stages if (m := read_manifest(stage_dir(recipe, run, s))) is not None}
    verify_outputs(folder, manifests[name], only=("hf",))
    from tagpr_rl.model.convert import convert

    target.parent.mkdir(parents=True, exist_ok=True)
    temp = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        new = temp / "hf"
        counts = convert(folder.hf, new, dtype)
        environment = json.loads(run.environment.read_text(encoding="utf-8")) if run.environment.is_file() else {}
        scores = _scores(recipe, run, name, manifests)
        card = model_card(recipe, name, manifests, scores, dtype=dtype, counts=counts, environment=environment)
        write_text(new / "README.md", card)
        chain = {s: manifests[s].config_sha256 for s in lineage(recipe, name) if s in manifests}
        files = {path.name: sha256_file(path) for path in sorted(new.iterdir()) if path.is_file()}
        write_json(
            new / "tagpr_export.json",
            {"recipe": recipe.name, "stage": name, "dtype": dtype, **counts, "lineage": chain, "files": files},
        )
        if target.is_dir():
            target.rmdir()
        new.rename(target)
        sync_folder(target.parent)
    finally:
        shutil.rmtree(temp, ignore_errors=True)
    return target


def _policy(recipe: Recipe, run: RunDir, name: str) -> Any:
    """Folder of the finished stage, if it has a language model to export."""
    makers = [other for other, stage in recipe.stages.items() if stage.kind in WEIGHTS]
    if name not in recipe.stages:
        raise TagprError(f"--stage {name}: no such stage; those with a model are {', '.join(makers)}")
    kind = recipe.stages[name].kind
    folder = stage_dir(recipe, run, name)
    if kind == "prmu":
        raise TagprError(
            f"--stage {name}: PRMU is a reward model with user embeddings, which no language-model server loads. "
            f"Its folder is {folder.root / 'prmu'}; `tagpr_rl.prmu.serving.score.Scorer` reads it"
        )
    if kind not in WEIGHTS:
        raise TagprError(f"--stage {name}: a stage of kind '{kind}' has no model; choose one of {', '.join(makers)}")
    if read_manifest(folder) is None:
        raise TagprError(f"--stage {name}: it is not finished; `tagpr resume {run.root}` goes on with the run")
    return folder


def _scores(
    recipe: Recipe, run: RunDir, name: str, manifests: Mapping[str, StageManifest]
) -> dict[str, Mapping[str, Any]]:
    """Finished evaluation stage -> its result for this stage's model."""
    results = {}
    for stage in evaluations(recipe, name):
        if stage in manifests:
            folder = stage_dir(recipe, run, stage)
            verify_outputs(folder, manifests[stage], only=("eval.json",))
            results[stage] = json.loads((folder.root / "eval.json").read_text(encoding="utf-8"))["models"][name]
    return results
