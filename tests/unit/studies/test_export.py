"""Export: the folder loads in transformers with the numbers of the stage, its card tells where it comes from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from made_runs import flip, recipe

from tagpr_rl.cli import main
from tagpr_rl.config import dump_recipe
from tagpr_rl.files import sha256_file, write_json
from tagpr_rl.report.cards.model_card import lineage
from tagpr_rl.run.layout import RunDir, stage_dir
from tagpr_rl.run.manifest import make_manifest, stage_config_sha256, stage_facts, write_manifest
from tagpr_rl.types import TagprError

pytestmark = pytest.mark.torch

METRIC = {"task": "LaMP_2", "name": "accuracy", "value": 0.75, "low": 0.5, "high": 1.0}
EVAL = {"score": 0.8531, "n": 80, "metrics": [METRIC]}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tagpr_rl.model.tiny import build_tiny

    folder = tmp_path_factory.mktemp("tiny") / "hf"
    build_tiny(folder, corpus_texts=["a b c d e f g h"], hidden=32, layers=1, heads=2, ffn=32, seed=3)
    return folder


@pytest.fixture
def run(tmp_path: Path, tiny: Path) -> RunDir:
    """A finished run whose guided stage holds a real tiny model."""
    import shutil

    r, run = recipe(), RunDir(tmp_path / "r")
    write_json(run.resolved, dump_recipe(r))
    write_json(run.environment, {"tagpr_rl": "0.9", "commit": "abc", "packages": {"transformers": "5.0"}})
    for name in r.stages:
        facts = stage_facts(r, run, name)
        folder = stage_dir(r, run, name)
        shutil.copytree(tiny, folder.hf)
        outputs = [folder.hf]
        if name == "eval":
            write_json(folder.root / "eval.json", {"models": {"base": EVAL, "explore": EVAL}})
            outputs.append(folder.root / "eval.json")
        manifest = make_manifest(
            folder, name, r.stages[name].kind, facts, outputs=outputs, started="", seconds=1.0, metrics={"loss": 0.25}
        )
        write_manifest(folder, manifest)
    return run


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_transformers_loads_it_with_the_stages_numbers(run: RunDir, dtype: str, capsys: Any) -> None:
    import torch
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM, AutoTokenizer

    assert main(["export", str(run.root), "--stage", "explore", "--dtype", dtype]) == 0
    folder = run.root / "export" / f"explore-{dtype}"
    assert capsys.readouterr().out.strip() == str(folder)
    source = load_file(stage_dir(recipe(), run, "explore").hf / "model.safetensors")
    wanted = getattr(torch, dtype)
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.dtype == wanted
    state = model.state_dict()
    for name, tensor in source.items():
        assert torch.equal(state[name], tensor.to(wanted))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.decode(tokenizer("a b c")["input_ids"]) == "a b c"
    ids = torch.tensor([tokenizer("a b")["input_ids"]])
    assert model.generate(ids, max_new_tokens=2, do_sample=False).shape[1] <= ids.shape[1] + 2
    facts = json.loads((folder / "tagpr_export.json").read_text())
    assert facts["files"] == {p.name: sha256_file(p) for p in sorted(folder.iterdir()) if p.name != "tagpr_export.json"}
    assert list(facts["lineage"]) == ["model", "base", "sft", "guided", "explore"]
    assert facts["bytes"] == facts["parameters"] * (4 if dtype == "float32" else 2)
    assert sorted(p.name for p in folder.parent.iterdir()) == [folder.name]  # nothing half-written beside it


def test_the_card_names_recipe_lineage_and_scores_and_no_path_of_this_machine(run: RunDir) -> None:
    assert main(["export", str(run.root), "--stage", "explore"]) == 0
    card = (run.root / "export" / "explore-float32" / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: transformers\n") and "# r: stage `explore`" in card
    assert "| LaMP_2 | accuracy | 0.7500 | 0.5000 to 1.0000 |" in card and "mean task score 0.8531" in card
    for stage in ("data", "model", "base", "chains", "sft", "prmu", "guided", "explore"):
        assert f"\n| {stage} | " in card
    assert stage_config_sha256(recipe(), "sft")[:16] in card
    assert str(run.root) not in card and str(run.root.parent) not in card
    assert main(["export", str(run.root), "--stage", "sft"]) == 0
    assert "Not evaluated in this run." in (run.root / "export" / "sft-float32" / "README.md").read_text()
    assert "It answers directly" not in card


def test_lineage_follows_init() -> None:
    assert lineage(recipe(), "sft") == ("model", "base", "sft")


@pytest.mark.parametrize(
    "stage, said",
    [
        ("prmu", "PRMU is a reward model"),
        ("data", "a stage of kind 'data' has no model; choose one of model, base, sft, guided, explore"),
        ("gided", "no such stage"),
    ],
)
def test_what_has_no_policy_is_refused(run: RunDir, stage: str, said: str, capsys: Any) -> None:
    assert main(["export", str(run.root), "--stage", stage]) == 2
    assert said in capsys.readouterr().err
    assert not (run.root / "export").exists()


def test_altered_or_unfinished_weights_and_a_taken_folder_are_refused(run: RunDir, tmp_path: Path, capsys: Any) -> None:
    export = ["export", str(run.root), "--stage", "guided", "--out"]
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "thesis.txt").write_text("precious")
    assert main([*export, str(tmp_path / "taken")]) == 2
    assert (tmp_path / "taken" / "thesis.txt").read_text() == "precious"
    folder = stage_dir(recipe(), run, "guided")
    flip(folder.hf / "model.safetensors")
    assert main([*export, str(tmp_path / "new")]) == 2
    assert "model.safetensors, an output of stage 'guided', differs" in capsys.readouterr().err
    folder.manifest.unlink()
    assert main([*export, str(tmp_path / "new")]) == 2
    assert "it is not finished" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_a_failure_midway_leaves_nothing(run: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tagpr_rl.model import convert

    def fail(*_: object, **__: object) -> None:
        raise TagprError("no room")

    monkeypatch.setattr(convert, "save_file", fail)
    out = tmp_path / "far" / "model"
    assert main(["export", str(run.root), "--stage", "guided", "--out", str(out)]) == 2
    assert list(out.parent.iterdir()) == []
