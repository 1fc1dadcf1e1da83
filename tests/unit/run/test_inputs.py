"""Folders of models that a stage reads count by their content: a PRMU's backbone, a teacher's weights."""

from __future__ import annotations

from pathlib import Path

from tagpr_rl.config import load_recipe
from tagpr_rl.run.layout import RunDir
from tagpr_rl.run.manifest import stage_inputs

SMOKE = Path(__file__).resolve().parents[3] / "recipes/smoke.yaml"


def test_a_backbone_and_a_teacher_replaced_in_place_are_seen(tmp_path: Path) -> None:
    model = tmp_path / "m"
    model.mkdir()
    weights = model / "model.safetensors"
    overrides = (f"stages.prmu.backbone={model}", f"stages.chains.teacher={{kind: vllm, model: {model}}}")
    recipe, run = load_recipe(SMOKE, overrides), RunDir(tmp_path / "run")
    for stage, what in (("prmu", "backbone"), ("chains", "teacher")):
        weights.write_bytes(b"old")
        before = stage_inputs(recipe, run, stage)[f"{what}/model.safetensors"]
        weights.write_bytes(b"new")
        assert stage_inputs(recipe, run, stage)[f"{what}/model.safetensors"] != before
