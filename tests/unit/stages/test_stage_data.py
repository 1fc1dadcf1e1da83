"""The data stage through the command line: what it writes, and one clear error for each kind of bad input."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tagpr_rl.cli import main
from tagpr_rl.data.lamp import load_folder, write_lamp
from tagpr_rl.data.world.generate import WorldConfig, make_world

RECIPE = "recipes/demo.yaml"
ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(autouse=True)
def in_the_project(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


@pytest.fixture
def lamp(tmp_path: Path) -> Path:
    """Official files of a small world: LaMP_2, dev split only, 20 users."""
    world = make_world(WorldConfig(seed=3, train_users=1, dev_users=20, time_users=0))
    write_lamp(tmp_path / "lamp", "LaMP_2", "dev", world.records("dev", task="LaMP_2"))
    return tmp_path / "lamp"


def data_stage(tmp_path: Path, lamp: Path | None, *arguments: str) -> int:
    where = [f"data.lamp_dir={lamp}", "data.tasks=[LaMP_2]"] if lamp else []
    return main(["run", RECIPE, f"out={tmp_path / 'runs'}", *where, *arguments, "--until", "data"])


def facts(tmp_path: Path) -> dict[str, Any]:
    return dict(json.loads((tmp_path / "runs" / "demo" / "010_data" / "data.json").read_text(encoding="utf-8")))


def edit(path: Path, change: Callable[[Any], Any]) -> None:
    path.write_text(json.dumps(change(json.loads(path.read_text(encoding="utf-8")))), encoding="utf-8")


def test_a_single_labelled_split_is_divided_by_user(tmp_path: Path, lamp: Path) -> None:
    assert data_stage(tmp_path, lamp) == 0
    actual = facts(tmp_path)
    assert actual["n_questions"] == 40  # 20 users, 8 questions each, a quarter of them LaMP_2
    written = tmp_path / "runs" / "demo" / "010_data" / "lamp"
    train, held_out = (load_folder(written, ["LaMP_2"], split) for split in ("train", "dev"))
    assert len(train) + len(held_out) == 40
    assert not {r.user_id for r in train} & {r.user_id for r in held_out}


def test_the_world_has_its_bounds_and_the_sizes_asked_for(tmp_path: Path) -> None:
    sizes = ("data.world.train_users=10", "data.world.held_out_users=5", "data.world.time_users=4")
    assert data_stage(tmp_path, None, *sizes, "data.tasks=[LaMP_1,LaMP_3]") == 0
    actual = facts(tmp_path)
    assert actual["by_task"] == {task: {"train": 20, "held_out": 10} for task in ("LaMP_1", "LaMP_3")}
    for bound in actual["bounds"].values():
        assert set(bound) == {"LaMP_1", "LaMP_3", "mean"}
        assert bound["mean"] == pytest.approx((bound["LaMP_1"] + bound["LaMP_3"]) / 2)


def test_an_empty_profile_is_served_not_refused(tmp_path: Path, lamp: Path) -> None:
    edit(lamp / "LaMP_2" / "dev_questions.json", lambda rows: [{**rows[0], "profile": []}, *rows[1:]])
    assert data_stage(tmp_path, lamp) == 0
    assert facts(tmp_path)["empty_profiles"] == 1


def truncate(lamp: Path) -> None:
    path = lamp / "LaMP_2" / "dev_questions.json"
    path.write_text(path.read_text(encoding="utf-8")[:-200], encoding="utf-8")


def drop_golds(lamp: Path) -> None:
    (lamp / "LaMP_2" / "dev_outputs.json").unlink()


BAD = {
    "missing folder": (lambda lamp: None, ["data.lamp_dir=/no/such/folder"], ["/no/such/folder"]),
    "missing task": (lambda lamp: None, ["data.tasks=[LaMP_5]"], ["LaMP_5", "train_questions.json"]),
    "truncated": (truncate, [], ["dev_questions.json"]),
    "duplicate id": (
        lambda lamp: edit(lamp / "LaMP_2" / "dev_questions.json", lambda rows: [*rows, rows[0]]),
        [],
        ["dev_questions.json", "twice"],
    ),
    "unmatched gold": (
        lambda lamp: edit(
            lamp / "LaMP_2" / "dev_outputs.json",
            lambda found: {**found, "golds": [{**found["golds"][0], "id": "nobody"}, *found["golds"][1:]]},
        ),
        [],
        ["dev_outputs.json", "no gold in"],
    ),
    "missing golds": (drop_golds, [], ["gold", "outputs.json"]),
    "unknown key": (lambda lamp: None, ["data.retreival.k=3"], ["data.retreival", "retrieval"]),
    "world size": (
        lambda lamp: None,
        ["data.world.questions_per_user=6"],
        ["data.world.questions_per_user", "multiple of 4"],
    ),
    "world without the task": (
        lambda lamp: None,
        ["data.lamp_dir=null", "data.tasks=[LaMP_7]"],
        ["LaMP_7", "lamp_dir"],
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_gives_one_message_and_leaves_no_manifest(
    case: str, tmp_path: Path, lamp: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil, arguments, named = BAD[case]
    spoil(lamp)
    assert data_stage(tmp_path, lamp, *arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and "Traceback" not in error
    for word in named:
        assert word in error
    assert not list(tmp_path.glob("runs/*/*/manifest.json"))


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "runs").write_text("a file where the folder should be", encoding="utf-8")
    assert data_stage(tmp_path, None) == 2
    error = capsys.readouterr().err
    assert str(tmp_path / "runs") in error and "out=" in error


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")
def test_a_full_disk_is_one_clear_message(tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(small)], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip("no permission to mount")
    try:
        command = [sys.executable, "launch.py", "run", RECIPE, f"out={small}", "--until", "data"]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 2
        assert "no space is left" in done.stderr and "Traceback" not in done.stderr
        assert not list(small.glob("*/*/manifest.json"))
        left = {path.name for path in small.rglob(".*") if path.is_file()}
        assert left <= {".lock"}  # no temporary file left behind
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_few_examples_end_a_training_stage_early() -> None:
    from tagpr_rl.stages.common import steps_within

    assert steps_within(1300, 16, 7300, 20.0) == 1300  # 2.8 passes
    assert steps_within(1300, 16, 38, 20.0) == 48  # 20 * 38 / 16 = 47.5
    assert steps_within(10, 16, 16, 0.01) == 1


def test_max_epochs_of_a_recipe_is_that_limit() -> None:
    from tagpr_rl.config import PrmuStage, SftStage, load_recipe
    from tagpr_rl.stages.common import steps_within

    limits = ["stages.sft.max_epochs=0.5", "stages.prmu.max_epochs=3", "stages.prmu.user_shards=4"]
    stages = load_recipe(ROOT / RECIPE, limits).stages
    sft, prmu = stages["sft"], stages["prmu"]
    assert isinstance(sft, SftStage) and isinstance(prmu, PrmuStage)
    assert steps_within(sft.steps, sft.batch_size, 3200, sft.max_epochs) == 100  # half of 3200 / 16
    assert steps_within(prmu.steps, prmu.batch_size, 80, prmu.max_epochs) == 30  # 3 times 80 / 8
    assert prmu.user_shards == 4
