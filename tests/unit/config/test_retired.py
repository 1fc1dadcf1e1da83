"""Retired keys: an error with the remedy in a recipe, dropped from what an old run recorded."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from made_runs import RAW, finish_all, recipe, save

from tagpr_rl.config import dump_recipe, load_recipe, recipe_from_dict
from tagpr_rl.config.retired import RETIRED, remedy, without_retired
from tagpr_rl.files import sha256_json, write_json
from tagpr_rl.run import state
from tagpr_rl.run.checkpoints import Chosen, begin, choose
from tagpr_rl.run.layout import RunDir, stage_dir
from tagpr_rl.run.manifest import identity, read_manifest, stage_config, stage_facts
from tagpr_rl.run.open import read_resolved
from tagpr_rl.run.resume import ATTEMPT, fact_changes, resume_point
from tagpr_rl.types import TagprError


@pytest.mark.parametrize(
    "old, new",
    [
        ({"log": {"trackers": ["jsonl"]}}, {"log": {"tensorboard": False, "wandb": "disabled"}}),
        (
            {"log": {"trackers": ["wandb", "tensorboard"], "wandb": "online"}},
            {"log": {"wandb": "online", "tensorboard": True}},
        ),
        ({"stages": {"g": {"norm_advantage_by_std": False}}}, {"stages": {"g": {"advantage": {"normalise": "none"}}}}),
        ({"stages": {"g": {"weights": {"beta": 0.1}}}}, {"stages": {"g": {"weights": {"beta": 0.1, "gate": False}}}}),
        ({"stages": {"g": {"weights": {"gate": True}}}}, {"stages": {"g": {"weights": {"gate": True}}}}),
        (
            {"stages": {"c": {"keep": {"evidence": {"require": "text", "shown": 2}, "label_twice": False}}}},
            {"stages": {"c": {"keep": {"profile_evidence": "text", "min_agreement": 0.0}}}},
        ),
        (
            {"stages": {"c": {"keep": {"near_duplicates": {"scope": "user"}, "balance": {"max_per_user": 3}}}}},
            {"stages": {"c": {"keep": {"duplicate_scope": "user", "max_per_user": 3}}}},
        ),
    ],
)
def test_an_old_run_keeps_the_values_of_keys_that_have_a_successor(old: dict[str, Any], new: dict[str, Any]) -> None:
    """With the real table: what an earlier release recorded, and what it means today."""
    with pytest.MonkeyPatch.context() as patch:
        for key in list(RETIRED):
            patch.delitem(RETIRED, key)
        for key, text in REAL_TABLE.items():
            patch.setitem(RETIRED, key, text)
        assert without_retired(old) == new


REAL_TABLE = dict(RETIRED)


@pytest.fixture(autouse=True)
def table(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = {
        "stages.*.old_key": "set lr instead",
        "old_block": "leave it out: memory is always checked",
        "data.retrieval.stemmer": "words are never stemmed",
    }
    for key in list(RETIRED):
        monkeypatch.delitem(RETIRED, key)
    for key, text in rows.items():
        monkeypatch.setitem(RETIRED, key, text)


def test_a_row_covers_its_key_any_stage_and_what_is_below() -> None:
    assert remedy("stages.guided.old_key") == remedy("stages.sft.old_key.deep") == "set lr instead"
    assert remedy("old_block.a.b") == remedy("old_block") == "leave it out: memory is always checked"
    assert remedy("stages.guided") is None
    assert remedy("stages.guided.other") is None
    assert remedy("data.retrieval") is None


def test_a_recipe_with_a_retired_key_is_told_the_remedy(tmp_path: Path) -> None:
    raw = {**RAW, "old_block": {"x": 1}}
    with pytest.raises(TagprError) as caught:
        recipe_from_dict(raw, source="mine.yaml")
    assert str(caught.value) == (
        "recipe mine.yaml has 1 mistake(s):\n"
        "  old_block: this key no longer exists; leave it out: memory is always checked"
    )
    path = tmp_path / "mine.yaml"
    path.write_text(json.dumps(RAW), encoding="utf-8")
    with pytest.raises(TagprError, match=r"stages\.sft\.old_key: this key no longer exists; set lr instead"):
        load_recipe(path, ("stages.sft.old_key=3",))


def test_recorded_keys_are_dropped_and_nothing_else() -> None:
    raw: dict[str, Any] = {
        "old_block": {"x": 1},
        "data": {"retrieval": {"stemmer": "porter", "k": 4}, "limit": 3},
        "stages": {"a": {"old_key": 1, "lr": 2}, "b": {"kind": "data"}},
    }
    assert without_retired(raw) == {
        "data": {"retrieval": {"k": 4}, "limit": 3},
        "stages": {"a": {"lr": 2}, "b": {"kind": "data"}},
    }
    assert raw["stages"]["a"]["old_key"] == 1


def as_of_an_earlier_release(config: dict[str, Any]) -> dict[str, Any]:
    """A stage's recorded values with a key that is gone, and without one that is new and has its default."""
    old: dict[str, Any] = json.loads(json.dumps(config))
    old["stage"]["old_key"] = 7
    del old["stage"]["seed"]
    if "retrieval" in old["data"]:
        old["data"]["retrieval"]["stemmer"] = "porter"
    return old


def old_run(root: Path) -> RunDir:
    """A finished run whose recorded recipe values an earlier release wrote."""
    made, run = recipe(), RunDir(root)
    finish_all(made, run)
    dumped = dump_recipe(made)
    dumped["stages"]["sft"]["old_key"] = 7
    write_json(run.resolved, {**dumped, "old_block": {"x": 1}})
    identities: dict[str, str] = {}
    for name in made.stages:
        folder = stage_dir(made, run, name)
        raw = json.loads(folder.manifest.read_text(encoding="utf-8"))
        raw["config"] = as_of_an_earlier_release(raw["config"])
        raw["config_sha256"] = sha256_json(raw["config"])
        raw["inputs"] = {key: identities.get(key, value) for key, value in raw["inputs"].items()}
        write_json(folder.manifest, raw)
        manifest = read_manifest(folder)
        assert manifest is not None
        identities[f"stage {name}"] = identity(manifest)
    return run


def test_a_finished_old_run_is_read_and_counts_as_done(tmp_path: Path) -> None:
    run = old_run(tmp_path / "r")
    read = read_resolved(run)
    assert read == recipe()
    assert {status.status for status in state.require_unchanged(read, run).values()} == {"done"}


def test_a_real_change_is_still_seen_in_an_old_run(tmp_path: Path) -> None:
    run = old_run(tmp_path / "r")
    changed = recipe(lambda raw: raw["stages"]["sft"].update(lr=0.5, seed=2))
    reasons = state.run_status(changed, run)["sft"].reasons
    assert reasons == ("stage.lr: 0.003 -> 0.5", "stage.seed: 1 -> 2")


def test_an_interrupted_old_run_goes_on(tmp_path: Path) -> None:
    run = old_run(tmp_path / "r")
    made = read_resolved(run)
    folder = stage_dir(made, run, "explore")
    for path in (folder.manifest, stage_dir(made, run, "eval").manifest):
        path.unlink()
    facts = asdict(stage_facts(made, run, "explore"))
    write_json(folder.root / ATTEMPT, {**facts, "config": as_of_an_earlier_release(facts["config"])})
    assert resume_point(made, run).stage == "explore"
    changed = recipe(lambda raw: raw["stages"]["explore"].update(lr=0.5))
    with pytest.raises(TagprError, match=r"config\.stage\.lr: 0\.0003 -> 0\.5"):
        resume_point(changed, run)


def test_a_checkpoint_of_an_old_run_is_gone_on_from(tmp_path: Path) -> None:
    made = recipe()
    facts = {"config": stage_config(made, "sft"), "world_size": 1}
    old = {**facts, "config": as_of_an_earlier_release(facts["config"])}
    save(tmp_path / "c", 3, begin(tmp_path / "c", old, keep=2))
    identity = begin(tmp_path / "c", facts, keep=2)

    def differences(recorded: Any, now: Any) -> list[str]:
        return fact_changes(made, "sft", recorded, now)

    assert choose(tmp_path / "c", identity, differences) == Chosen(3)
    with pytest.raises(TagprError, match="of another recipe"):
        choose(tmp_path / "c", identity)
