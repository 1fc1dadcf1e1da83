"""A run from another run's stages: what is taken, what is made anew and why, and that either run outlives the other."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from made_runs import RAW, finish, finish_all, flip, recipe

from tagpr_rl.cli import main
from tagpr_rl.cli.run import remove_run
from tagpr_rl.config import Recipe, dump_recipe, parse_override
from tagpr_rl.files import write_json, write_text
from tagpr_rl.run.branch import from_override, require_another_run, take_stages
from tagpr_rl.run.layout import RunDir, stage_dir
from tagpr_rl.run.manifest import identity, read_manifest, verify_outputs
from tagpr_rl.run.resume import resume_point
from tagpr_rl.run.state import run_status
from tagpr_rl.types import TagprError


@pytest.fixture
def source(tmp_path: Path) -> RunDir:
    """A finished run; its recipe is made_runs.RAW."""
    run = RunDir(tmp_path / "first")
    finish_all(recipe(), run)
    for name in ("sft", "guided"):
        write_text(stage_dir(recipe(), run, name).metrics, '{"step": 1}\n')
    write_json(run.resolved, dump_recipe(recipe()))
    return run


def second(source: RunDir, until: str | None = None, **guided: Any) -> Recipe:
    """A recipe that starts from `source` and differs in its guided stage."""

    def change(raw: dict[str, Any]) -> None:
        raw.update(name="second", from_run={"run": str(source.root), "until": until})
        raw["stages"]["guided"].update(guided)

    return recipe(change)


def statuses(made: Recipe, run: RunDir) -> dict[str, str]:
    return {name: state.status for name, state in run_status(made, run).items()}


BEFORE_GUIDED = list(RAW["stages"])[:7]


def test_a_late_change_takes_every_earlier_stage(source: RunDir, tmp_path: Path) -> None:
    made, run = second(source, lr=0.5), RunDir(tmp_path / "second")
    lines = take_stages(made, run)
    assert [line.split()[1] for line in lines] == ["linked"] * 7 + ["is"] * 3
    assert "guided    is made anew: stage.lr: 0.0003 -> 0.5" in lines
    assert "explore   is made anew: stage guided, which it reads, is to be made again" in lines
    assert statuses(made, run) == {name: "done" if name in BEFORE_GUIDED else "todo" for name in made.stages}
    assert resume_point(made, run).stage == "guided"


def test_weights_are_one_file_and_growing_files_two(source: RunDir, tmp_path: Path) -> None:
    made, run = second(source, lr=0.5), RunDir(tmp_path / "second")
    take_stages(made, run)
    old, new = stage_dir(recipe(), source, "sft"), stage_dir(made, run, "sft")
    assert (old.hf / "model.txt").stat().st_ino == (new.hf / "model.txt").stat().st_ino
    assert old.metrics.stat().st_ino != new.metrics.stat().st_ino
    assert new.metrics.read_text() == old.metrics.read_text()


def test_the_manifest_says_where_a_stage_comes_from_and_keeps_its_identity(source: RunDir, tmp_path: Path) -> None:
    made, run = second(source, lr=0.5), RunDir(tmp_path / "second")
    take_stages(made, run)
    old, new = read_manifest(stage_dir(recipe(), source, "prmu")), read_manifest(stage_dir(made, run, "prmu"))
    assert old is not None and new is not None and identity(old) == identity(new)
    assert new.details["from_run"] == {"run": str(source.root), "name": "r", "identity": identity(old)}
    assert new.notes == ("n", f"linked from run r ({source.root})") and new.metrics == old.metrics


@pytest.mark.parametrize("gone", ["first", "second"])
def test_either_run_outlives_the_other(source: RunDir, tmp_path: Path, gone: str) -> None:
    made, run = second(source, lr=0.5), RunDir(tmp_path / "second")
    take_stages(made, run)
    write_json(run.resolved, dump_recipe(made))
    remove_run(RunDir(tmp_path / gone))  # as --fresh does
    left, of = (run, made) if gone == "first" else (source, recipe())
    assert not (tmp_path / gone).exists()
    for name in BEFORE_GUIDED:
        folder = stage_dir(of, left, name)
        manifest = read_manifest(folder)
        assert manifest is not None
        verify_outputs(folder, manifest)


def test_until_takes_no_later_stage_and_stops_at_a_difference(source: RunDir, tmp_path: Path) -> None:
    made, run = second(source, until="sft"), RunDir(tmp_path / "second")
    assert len(take_stages(made, run)) == 6
    assert statuses(made, run)["prmu"] == "todo"
    other = RunDir(tmp_path / "third")
    with pytest.raises(TagprError, match="stage 'guided' cannot be taken from") as caught:
        take_stages(second(source, until="guided", lr=0.5), other)
    assert "stage.lr: 0.0003 -> 0.5" in str(caught.value) and "--from" in str(caught.value)


def test_an_unfinished_stage_is_made_anew_or_stops(source: RunDir, tmp_path: Path) -> None:
    stage_dir(recipe(), source, "prmu").manifest.unlink()
    lines = take_stages(second(source), RunDir(tmp_path / "second"))
    assert "prmu      is made anew: the other run has not finished a stage of this name" in lines
    with pytest.raises(TagprError, match="has not finished a stage of this name"):
        take_stages(second(source, until="prmu"), RunDir(tmp_path / "third"))


def test_a_damaged_file_of_the_other_run_is_an_error(source: RunDir, tmp_path: Path) -> None:
    flip(stage_dir(recipe(), source, "sft").hf / "model.txt")
    with pytest.raises(TagprError, match=r"060_sft/hf/model\.txt, an output of stage 'sft', differs"):
        take_stages(second(source), RunDir(tmp_path / "second"))


def test_stages_may_have_another_place_in_the_recipe(source: RunDir, tmp_path: Path) -> None:
    def change(raw: dict[str, Any]) -> None:
        raw.update(name="second", from_run={"run": str(source.root)})
        stages = list(raw["stages"].items())
        raw["stages"] = dict([*stages[:6], ("first", {"kind": "evaluate", "models": ["sft"]}), *stages[6:]])

    made, run = recipe(change), RunDir(tmp_path / "second")
    lines = take_stages(made, run)
    assert [line.split()[0] for line in lines if "made anew" in line] == ["first"]
    assert (run.root / "080_prmu" / "manifest.json").is_file() and (source.root / "070_prmu").is_dir()
    assert statuses(made, run) == {name: "todo" if name == "first" else "done" for name in made.stages}


def test_another_file_system_gets_copies_and_the_console_says_so(
    source: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_link(*_: Any, **__: Any) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", no_link)
    made, run = second(source), RunDir(tmp_path / "second")
    assert all(" copied from " in line for line in take_stages(made, run))
    shutil.rmtree(source.root)
    assert set(statuses(made, run).values()) == {"done"}


def test_a_link_to_a_given_model_stays_a_link(source: RunDir, tmp_path: Path) -> None:
    given = tmp_path / "given"
    write_text(given / "model.txt", "weights of model")
    hf = stage_dir(recipe(), source, "model").hf
    shutil.rmtree(hf)
    hf.symlink_to(given)
    made, run = second(source), RunDir(tmp_path / "second")
    take_stages(made, run)
    assert stage_dir(made, run, "model").hf.is_symlink()
    assert set(statuses(made, run).values()) == {"done"}


def test_a_run_that_exists_goes_on_and_is_not_started_again(source: RunDir, tmp_path: Path) -> None:
    made, run = second(source, lr=0.5), RunDir(tmp_path / "second")
    take_stages(made, run)
    write_json(run.resolved, dump_recipe(made))
    finish(made, run, "guided")
    shutil.rmtree(source.root)  # no longer needed
    assert take_stages(made, run) == ()
    with pytest.raises(TagprError, match=r"exists and was not started from elsewhere; use another name"):
        take_stages(second(RunDir(Path("elsewhere"))), run)
    assert take_stages(recipe(), run) == ()


def test_a_run_cannot_start_from_itself(source: RunDir) -> None:
    with pytest.raises(TagprError, match="cannot start from itself; give the new run another name"):
        take_stages(second(source), source)
    mirrored = recipe(lambda raw: raw.update(mirror="s3://b/runs", from_run={"run": "s3://b/runs/r/"}))
    with pytest.raises(TagprError, match="s3://b/runs/r cannot start from itself"):
        require_another_run(mirrored, source)


def test_fresh_never_deletes_the_run_that_is_started_from(source: RunDir, tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(json.dumps({**RAW, "name": "first", "out": str(tmp_path)}), encoding="utf-8")
    assert main(["run", str(path), "--from", str(source.root), "--fresh"]) == 2
    assert set(statuses(recipe(), source).values()) == {"done"}


def test_what_is_no_run_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(TagprError, match="is no run's folder"):
        take_stages(second(RunDir(tmp_path / "none")), RunDir(tmp_path / "second"))


@pytest.mark.parametrize(
    "text, run, until",
    [
        ("runs/demo", "runs/demo", None),
        ("runs/demo:prmu", "runs/demo", "prmu"),
        ("s3://bucket/runs/demo", "s3://bucket/runs/demo", None),
        ("s3://bucket/runs/demo:sft", "s3://bucket/runs/demo", "sft"),
        ("it's: here", "it's: here", None),
    ],
)
def test_the_options_text_is_an_override(text: str, run: str, until: str | None) -> None:
    assert parse_override(from_override(text)) == ("from_run", {"run": run, "until": until})


def test_an_unknown_stage_is_named(tmp_path: Path) -> None:
    with pytest.raises(TagprError, match=r"from_run\.until: no stage is called 'pmru'; did you mean 'prmu'\?"):
        second(RunDir(tmp_path), until="pmru")
