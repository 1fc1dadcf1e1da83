"""A new kind of stage is a config class, a stage file and a row; a stage's facts are computed once."""

from __future__ import annotations

import io
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
from rich.console import Console

from tagpr_rl.config import KINDS, Recipe, StageBase, TrainingStage, dump_recipe, recipe_from_dict, upstream
from tagpr_rl.config.kinds import Kind
from tagpr_rl.run import manifest, state
from tagpr_rl.run.layout import RunDir, stage_dir
from tagpr_rl.run.manifest import read_manifest
from tagpr_rl.stages.pipeline import run_pipeline, stage_function
from tagpr_rl.types import TagprError


class CountStage(TrainingStage):
    """Counts the files of the data stage."""

    kind: Literal["count"] = "count"
    init: str = "nothing"
    steps: int = 1
    suffix: str = ".json"


STAGE_FILE = """
from tagpr_rl.files import write_json
from tagpr_rl.stages.common import RESUMABLE, resume_from
from tagpr_rl.stages.context import StageResult

def run(context):
    context.guard_attempt()
    context.clean(*RESUMABLE)
    resume_from(context, context.dir.root)
    stage = context.recipe.stages[context.name]
    folder = context.nearest("data", reads=("lamp",)).root / "lamp"
    count = len(list(folder.rglob("*" + stage.suffix)))
    write_json(context.dir.root / "count.json", count)
    return StageResult(outputs=(context.dir.root / "count.json",), metrics={"files": float(count)})
"""


@pytest.fixture
def count_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "count_stage.py").write_text(STAGE_FILE, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(KINDS, "count", Kind(CountStage, "count_stage:run", lambda stage: ("data",)))
    Recipe.model_rebuild(force=True)
    yield
    del KINDS["count"]
    Recipe.model_rebuild(force=True)
    sys.modules.pop("count_stage", None)


def raw(out: Path, **stages: Any) -> dict[str, Any]:
    world = {"train_users": 4, "held_out_users": 2}
    log = {"wandb": "disabled"}
    return {"name": "r", "out": str(out), "data": {"world": world}, "log": log, "stages": stages}


def test_a_new_kind_is_validated_run_and_reused(count_kind: None, tmp_path: Path) -> None:
    recipe = recipe_from_dict(raw(tmp_path, data={"kind": "data"}, files={"kind": "count"}), source="x")
    assert upstream(recipe, "files") == ("data",)
    assert recipe_from_dict(dump_recipe(recipe), source="x") == recipe
    run, text = RunDir(tmp_path / "r"), io.StringIO()
    run_pipeline(recipe, run, console=Console(file=text, width=200))
    actual = read_manifest(stage_dir(recipe, run, "files"))
    assert actual is not None and actual.kind == "count" and actual.metrics == {"files": 16.0}  # 4 tasks x 2 splits x 2
    run_pipeline(recipe, run, console=Console(file=text, width=200))
    assert "files     done before" in text.getvalue()
    with pytest.raises(TagprError, match=r"stages\.files\.sufix: unknown key; did you mean 'suffix'\?"):
        recipe_from_dict(raw(tmp_path, data={"kind": "data"}, files={"kind": "count", "sufix": "x"}), source="x")
    with pytest.raises(TagprError, match=r"stages\.files: a stage of kind 'data' must come before it"):
        recipe_from_dict(raw(tmp_path, files={"kind": "count"}), source="x")


def test_a_stages_facts_are_computed_once(count_kind: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the pipeline, before the stage writes anything; not again for its attempt, checkpoints and manifest."""
    calls: Counter[str] = Counter()
    original = manifest.stage_inputs

    def counted(recipe: Recipe, run: RunDir, name: str) -> dict[str, str]:
        calls[name] += 1
        return original(recipe, run, name)

    monkeypatch.setattr(manifest, "stage_inputs", counted)
    monkeypatch.setattr(state, "stage_inputs", counted)
    recipe = recipe_from_dict(raw(tmp_path, data={"kind": "data"}, files={"kind": "count"}), source="x")
    run_pipeline(recipe, RunDir(tmp_path / "r"), console=Console(file=io.StringIO()))
    assert calls == {"data": 1, "files": 1}


@pytest.mark.parametrize("kind", KINDS)
def test_every_row_names_a_class_of_its_kind_and_a_function(kind: str) -> None:
    row = KINDS[kind]
    assert issubclass(row.config, StageBase) and row.config.model_fields["kind"].default == kind
    assert row.config.__doc__
    assert callable(stage_function(kind))
