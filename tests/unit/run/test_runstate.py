"""Stage states: what makes a finished stage stale, how the change is named, damaged and altered files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from made_runs import finish, finish_all, recipe

from tagpr_rl.config import Recipe, dump_recipe, upstream
from tagpr_rl.files import sha256_file, write_json, write_text
from tagpr_rl.run import state as runstate
from tagpr_rl.run.layout import RunDir, stage_dir
from tagpr_rl.run.manifest import hash_outputs, read_manifest, stage_config_sha256, verify_outputs
from tagpr_rl.types import TagprError


def states(recipe: Recipe, run: RunDir) -> dict[str, str]:
    return {name: status.status for name, status in runstate.run_status(recipe, run).items()}


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return RunDir(tmp_path / "r")


def test_upstream_names_what_a_stage_reads() -> None:
    r = recipe()
    assert {name: upstream(r, name) for name in r.stages} == {
        "data": (),
        "model": ("data",),
        "prompts": ("data", "model"),
        "base": ("data", "model"),
        "chains": ("data", "model"),
        "sft": ("data", "base", "chains"),
        "prmu": ("chains", "sft"),
        "guided": ("prompts", "sft", "prmu"),
        "explore": ("prompts", "guided"),
        "eval": ("data", "base", "explore"),
    }


def test_a_new_run_is_all_todo_and_a_finished_one_all_done(run: RunDir) -> None:
    r = recipe()
    assert set(states(r, run).values()) == {"todo"}
    finish_all(r, run)
    assert set(states(r, run).values()) == {"done"}
    assert runstate.require_unchanged(r, run)["eval"].reasons == ()


def test_an_interrupted_run_goes_on_where_it_stopped(run: RunDir) -> None:
    r = recipe()
    for name in ("data", "model", "base"):
        finish(r, run, name)
    write_text(stage_dir(r, run, "chains").root / "half.txt", "no manifest")
    assert list(states(r, run).values()) == ["done", "done", "todo", "done"] + ["todo"] * 6
    runstate.require_unchanged(r, run)


@pytest.mark.parametrize(
    "change, first, reason",
    [
        (lambda raw: raw["stages"]["sft"].update(lr=0.5), "sft", "stage.lr: 0.003 -> 0.5"),
        (lambda raw: raw["stages"]["explore"].update(seed=9), "explore", "stage.seed: 1 -> 9"),
        (
            lambda raw: raw["stages"]["guided"].update(weights={"alpha": 0.3}),
            "guided",
            "stage.weights.alpha: 0.2 -> 0.3",
        ),
        (lambda raw: raw.update(data={"world": {"seed": 5}}), "data", "data.world.seed: 1 -> 5"),
        (lambda raw: raw.update(model={"tiny": {"hidden": 32}}), "model", "model.tiny.hidden: 64 -> 32"),
        (lambda raw: raw.update(platform={"device": "cuda"}), "base", "platform.device: cpu -> cuda"),
        (
            lambda raw: raw.update(data={"prompt": {"max_response_tokens": 64}}),
            "model",
            "data.prompt.max_response_tokens: 96 -> 64",
        ),
    ],
)
def test_a_changed_value_is_named_and_everything_after_it_is_stale(
    run: RunDir, change: Callable[[dict[str, Any]], None], first: str, reason: str
) -> None:
    finish_all(recipe(), run)
    changed = recipe(change)
    actual = runstate.run_status(changed, run)
    assert actual[first].status == "changed"
    assert reason in actual[first].reasons
    stale = {first}
    for name in changed.stages:
        if stale & set(upstream(changed, name)):
            stale.add(name)
    assert {name for name, status in actual.items() if status.status == "changed"} >= stale
    with pytest.raises(TagprError) as caught:
        runstate.require_unchanged(changed, run)
    message = str(caught.value)
    assert f"stage '{first}': {reason}" in message
    assert "--fresh" in message and "name=" in message and str(run.root) in message


def test_a_late_change_leaves_earlier_stages_done(run: RunDir) -> None:
    finish_all(recipe(), run)
    actual = states(recipe(lambda raw: raw["stages"]["explore"].update(steps=3)), run)
    assert [name for name, state in actual.items() if state == "changed"] == ["explore", "eval"]


@pytest.mark.parametrize(
    "change",
    [
        lambda raw: raw.update(log={"wandb": "disabled"}),
        lambda raw: raw.update(platform={"threads": 7, "zmq_timeout_s": 9}),
        lambda raw: raw["stages"]["sft"].update(save_every=10),
        lambda raw: raw.update(out="elsewhere", name="other"),
    ],
)
def test_what_changes_no_result_is_not_a_change(run: RunDir, change: Callable[[dict[str, Any]], None]) -> None:
    finish_all(recipe(), run)
    assert set(states(recipe(change), run).values()) == {"done"}


def test_a_stage_made_again_with_another_result_makes_the_later_ones_stale(run: RunDir) -> None:
    r = recipe()
    finish_all(r, run)
    finish(r, run, "guided", text="other weights")
    actual = runstate.run_status(r, run)
    assert [name for name in actual if actual[name].status == "changed"] == ["explore", "eval"]
    assert actual["explore"].reasons == ("the content of stage guided changed",)


def test_a_stage_made_again_with_the_same_result_changes_nothing(run: RunDir) -> None:
    r = recipe()
    finish_all(r, run)
    finish(r, run, "guided")
    assert set(states(r, run).values()) == {"done"}


def test_a_deleted_stage_is_todo_and_the_stages_that_read_it_are_stale(run: RunDir) -> None:
    r = recipe()
    finish_all(r, run)
    stage_dir(r, run, "prmu").manifest.unlink()
    actual = runstate.run_status(r, run)
    assert actual["prmu"].status == "todo"
    assert actual["guided"].reasons == ("stage prmu, which it reads, is to be made again",)
    assert actual["sft"].status == "done"


def with_files(folder: Path) -> Recipe:
    return recipe(lambda raw: raw.update(data={"lamp_dir": str(folder), "tasks": ["LaMP_2"]}))


def test_the_content_of_the_users_files_counts_but_not_their_place(tmp_path: Path, run: RunDir) -> None:
    for place in ("a", "b"):
        write_json(tmp_path / place / "LaMP_2" / "dev_questions.json", [{"id": "1"}])
    finish_all(with_files(tmp_path / "a"), run)
    assert set(states(with_files(tmp_path / "b"), run).values()) == {"done"}

    write_json(tmp_path / "b" / "LaMP_2" / "dev_questions.json", [{"id": "2"}])
    assert runstate.stage_status(with_files(tmp_path / "b"), run, "data").reasons == (
        "the content of lamp_dir/LaMP_2/dev_questions.json changed",
    )
    write_json(tmp_path / "a" / "LaMP_2" / "dev_outputs.json", {})
    assert runstate.stage_status(with_files(tmp_path / "a"), run, "data").reasons == (
        "lamp_dir/LaMP_2/dev_outputs.json was not read when the stage was made",
    )
    reasons = runstate.stage_status(recipe(), run, "data").reasons
    assert "data.from_files: true -> false" in reasons


def test_an_edited_schema_file_is_noticed(tmp_path: Path, run: RunDir) -> None:
    schema = tmp_path / "tags.yaml"
    schema.write_text("version: 1\n")
    r = recipe(lambda raw: raw.update(schema_file=str(schema)))
    finish_all(r, run)
    schema.write_text("version: 2\n")
    assert runstate.stage_status(r, run, "model").reasons == ("the content of schema_file changed",)
    assert runstate.stage_status(r, run, "data").status == "done"
    assert "the content of schema_file changed" in runstate.stage_status(r, run, "chains").reasons
    schema.unlink()
    assert runstate.stage_status(r, run, "model").reasons == (
        "schema_file is missing; it was read when the stage was made",
    )


def test_a_manifest_reads_back_as_written(run: RunDir) -> None:
    r = recipe()
    finish(r, run, "data")
    folder = stage_dir(r, run, "data")
    manifest = read_manifest(folder)
    assert manifest is not None
    assert (manifest.stage, manifest.kind, manifest.seconds) == ("data", "data", 1.5)
    assert (dict(manifest.metrics), manifest.notes) == ({"m": 0.25}, ("n",))
    assert manifest.outputs == {"hf/model.txt": sha256_file(folder.hf / "model.txt")}
    assert manifest.config["data"]["world"] == dump_recipe(r)["data"]["world"]
    assert manifest.config_sha256 == stage_config_sha256(r, "data")


@pytest.mark.parametrize(
    "text, part",
    [
        ('{"stage": "data", ', "not valid JSON"),
        ("", "not valid JSON"),
        ("[]", "found list"),
        ('{"stage": "data"}', "expected the keys"),
        (
            '{"stage":"a","kind":"data","started":"","seconds":1,"inputs":[],"config_sha256":"","outputs":{}}',
            "'inputs' must be a mapping",
        ),
    ],
)
def test_a_damaged_manifest_is_named_with_the_remedy(run: RunDir, text: str, part: str) -> None:
    r = recipe()
    folder = stage_dir(r, run, "data")
    write_text(folder.manifest, text)
    for call in (lambda: read_manifest(folder), lambda: runstate.run_status(r, run)):
        with pytest.raises(TagprError) as caught:
            call()
        message = str(caught.value)
        assert part in message and str(folder.manifest) in message and f"Delete the folder {folder.root}" in message


def test_a_flipped_bit_or_a_missing_output_is_found(run: RunDir) -> None:
    r = recipe()
    finish(r, run, "data")
    folder = stage_dir(r, run, "data")
    manifest = read_manifest(folder)
    assert manifest is not None
    verify_outputs(folder, manifest)

    file = folder.hf / "model.txt"
    good = file.read_bytes()
    file.write_bytes(bytes([good[0] ^ 1]) + good[1:])
    with pytest.raises(TagprError, match="differs from what the stage wrote"):
        verify_outputs(folder, manifest)
    with pytest.raises(TagprError, match="differs"):
        verify_outputs(folder, manifest, only=["hf"])
    verify_outputs(folder, manifest, only=["train.parquet", "h"])

    file.unlink()
    with pytest.raises(TagprError, match=r"model\.txt.* is missing"):
        verify_outputs(folder, manifest)


def test_an_output_that_was_not_written_stops_the_manifest(run: RunDir) -> None:
    r = recipe()
    folder = stage_dir(r, run, "data")
    with pytest.raises(TagprError, match="was not written"):
        hash_outputs(folder, [folder.root / "train.parquet"])


def test_compare_names_nested_keys() -> None:
    old = {"a": {"b": 1, "c": [1, 2]}, "d": None}
    assert runstate.compare(old, {"a": {"b": 2, "c": [1, 2]}, "e": True}) == [
        "a.b: 1 -> 2",
        "d: null -> (not set)",
        "e: (not set) -> true",
    ]
    assert runstate.compare(old, json.loads(json.dumps(old))) == []
