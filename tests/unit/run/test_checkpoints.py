"""Step checkpoints: bit flips, truncation, pointer, retention, other recipes, full disks, kills at any moment."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from made_runs import flip, save

from tagpr_rl.files import sha256_file
from tagpr_rl.run import checkpoints
from tagpr_rl.run.checkpoints import begin, choose, fault, publish, seal, staging, step_folder, steps
from tagpr_rl.types import TagprError

FACTS = {"stage": "guided", "config": {"stage": {"lr": 0.1}}, "tokenizer": {"tokenizer.json": "aa"}, "world_size": 1}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "090_guided" / "checkpoints"


def pointer(root: Path) -> str:
    return (root / checkpoints.POINTER).read_text()


def test_a_save_gets_its_name_with_its_manifest_and_the_pointer_follows(root: Path) -> None:
    identity = begin(root, FACTS, keep=2)
    folder = staging(root, identity) / "global_step_3"
    folder.mkdir(parents=True)
    (folder / "data.pt").write_text("x")
    assert steps(root) == [] and not step_folder(root, 3).exists()
    seal(folder, 3, identity)
    assert steps(root) == []  # sealed, not yet published
    assert publish(root, 3, identity)
    assert steps(root) == [3] and pointer(root) == "3"
    manifest = json.loads((step_folder(root, 3) / "manifest.json").read_text())
    assert manifest["files"] == {"data.pt": {"bytes": 1, "sha256": sha256_file(step_folder(root, 3) / "data.pt")}}
    assert fault(step_folder(root, 3)) is None


@pytest.mark.parametrize("keep, left", [(1, [5]), (2, [4, 5]), (9, [1, 2, 3, 4, 5])])
def test_retention_keeps_the_newest(root: Path, keep: int, left: list[int]) -> None:
    identity = begin(root, FACTS, keep=keep)
    for step in range(1, 6):
        save(root, step, identity)
        assert step in steps(root) and pointer(root) == str(step)
    assert steps(root) == left


def test_a_spared_checkpoint_stays_beside_the_newest(root: Path) -> None:
    identity = begin(root, FACTS, keep=9)
    for step in range(1, 6):
        save(root, step, identity)
    checkpoints.retain(root, 2, newest=5, spared={2})
    assert steps(root) == [2, 4, 5]
    checkpoints.retain(root, 1, newest=5)
    assert steps(root) == [5]


@pytest.mark.parametrize(
    "damage, said",
    [
        (lambda f: flip(f / "actor" / "model.pt"), "model.pt differs from what was saved"),
        (lambda f: (f / "data.pt").write_text("data"), "data.pt has 4 bytes of 9"),
        (lambda f: (f / "data.pt").unlink(), "data.pt is missing"),
        (lambda f: (f / "manifest.json").unlink(), "the save was not finished"),
        (lambda f: (f / "manifest.json").write_text("{"), "is not a checkpoint's manifest"),
        (lambda f: _edit(f / "manifest.json", "step", 7), "manifest.json was altered"),
    ],
)
def test_a_damaged_checkpoint_is_named_set_aside_and_the_one_before_is_taken(
    root: Path, damage: Any, said: str
) -> None:
    identity = begin(root, FACTS, keep=3)
    for step in (2, 4, 6):
        save(root, step, identity)
    damage(step_folder(root, 6))
    chosen = choose(root, begin(root, FACTS, keep=1))
    assert chosen.step == 4 and pointer(root) == "4"
    (note,) = chosen.notes
    assert said in note and note.endswith("going on from step 4")
    assert (root / "damaged_global_step_6").is_dir() and steps(root) == [2, 4]
    # keep=1 never drops the last good one for the damaged one
    save(root, 5, checkpoints.current(root))
    assert steps(root) == [5] and (root / "damaged_global_step_6").is_dir()
    save(root, 6, checkpoints.current(root))
    assert steps(root) == [6] and not (root / "damaged_global_step_6").exists()


def _edit(path: Path, key: str, value: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))


def test_where_none_is_whole_the_error_names_each_and_nothing_is_touched(root: Path) -> None:
    identity = begin(root, FACTS, keep=3)
    for step in (1, 2):
        flip(save(root, step, identity) / "data.pt")
    with pytest.raises(TagprError, match="no checkpoint to resume from is whole") as caught:
        choose(root, begin(root, FACTS, keep=3))
    assert "global_step_2/data.pt" in str(caught.value) and "global_step_1/data.pt" in str(caught.value)
    assert steps(root) == [1, 2]


def test_a_new_stage_and_a_save_that_never_ended_start_from_nothing(root: Path) -> None:
    assert choose(root, begin(root, FACTS, keep=2)) == checkpoints.Chosen(0)
    (root / "global_step_1").mkdir()
    (root / "global_step_1" / "model.pt").write_text("half")
    (root / checkpoints.POINTER).write_text("1")  # as verl itself may leave it
    chosen = choose(root, begin(root, FACTS, keep=2))
    assert chosen.step == 0 and "starting over" in chosen.notes[0]
    assert not (root / checkpoints.POINTER).exists()


@pytest.mark.parametrize(
    "change, said",
    [
        ({"config": {"stage": {"lr": 0.2}}}, "config.stage.lr: 0.1 -> 0.2"),
        ({"tokenizer": {"tokenizer.json": "bb"}}, "tokenizer.tokenizer.json: aa -> bb"),
        ({"stage": "explore"}, "stage: guided -> explore"),
        ({"world_size": 2}, r"was written by 1 training process\(es\); the recipe now has 2"),
    ],
)
def test_a_checkpoint_of_another_recipe_tokenizer_or_world_size_is_refused(
    root: Path, change: dict[str, Any], said: str
) -> None:
    save(root, 1, begin(root, FACTS, keep=2))
    with pytest.raises(TagprError, match=said):
        choose(root, begin(root, {**FACTS, **change}, keep=2))
    assert steps(root) == [1] and pointer(root) == "1"


def test_an_engine_that_loads_any_world_size_may(root: Path) -> None:
    save(root, 1, begin(root, FACTS, keep=2))
    assert choose(root, begin(root, {**FACTS, "world_size": 4}, keep=2, any_world_size=True)).step == 1


def test_an_attempt_that_was_replaced_publishes_nothing(root: Path) -> None:
    old = begin(root, FACTS, keep=2)
    save(root, 1, old)
    folder = step_folder(staging(root, old), 2)
    folder.mkdir(parents=True)
    seal(folder, 2, old)
    new = begin(root, FACTS, keep=2)  # removes what the old one has half written
    assert not folder.exists()
    folder.mkdir(parents=True)
    seal(folder, 2, old)
    assert not publish(root, 2, old)
    assert steps(root) == [1] and choose(root, new).step == 1


WRITER = """
import sys
from pathlib import Path
from tagpr_rl.run.checkpoints import *
root, first = Path(sys.argv[1]), int(sys.argv[2])
identity = begin(root, {"stage": "s"}, keep=2)
at = choose(root, identity).step
print("ready", at, flush=True)
for step in range(at + 1, at + 500):
    folder = step_folder(staging(root, identity), step)
    (folder / "actor").mkdir(parents=True)
    for i in range(4):
        (folder / "actor" / f"shard_{i}.pt").write_bytes(bytes([step % 256]) * 200_000)
    seal(folder, step, identity)
    publish(root, step, identity)
    print(step, flush=True)
"""


@pytest.mark.slow
def test_killed_at_any_moment_the_pointer_names_a_whole_checkpoint(root: Path) -> None:
    """Ten writers, killed at random moments one after another: each goes on where the last good save was."""
    rng, reached = random.Random(7), 0
    for _ in range(10):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, root, "0"], stdout=subprocess.PIPE, text=True)
        assert writer.stdout is not None
        resumed = int(writer.stdout.readline().split()[1])
        assert resumed >= reached
        writer.stdout.readline()  # one step is saved
        began = time.monotonic()
        writer.stdout.readline()
        one = time.monotonic() - began
        time.sleep(rng.uniform(0, 2 * one))
        writer.kill()
        writer.wait()
        whole = steps(root)
        assert all(fault(step_folder(root, step)) is None for step in whole)
        named = int(pointer(root)) if (root / checkpoints.POINTER).exists() else 0
        assert named in (whole[-1:] or [0]) + whole[-2:-1]  # the folder has its name before the pointer has it
        reached = choose(root, begin(root, {"stage": "s"}, keep=2)).step
        assert reached == (whole[-1] if whole else 0)
    assert reached >= 20  # two whole steps each


def _mounted(folder: Path) -> bool:
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tagpr-test", str(folder)]
    return shutil.which("mount") is not None and subprocess.run(command, capture_output=True).returncode == 0


def test_a_full_disk_leaves_the_last_good_checkpoint(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    if not _mounted(disk):
        pytest.skip("may not mount a small file system here")
    try:
        root = disk / "checkpoints"
        identity = begin(root, FACTS, keep=2)
        save(root, 1, identity)
        folder = step_folder(staging(root, identity), 2)
        folder.mkdir(parents=True)
        with pytest.raises(OSError, match="No space left"):
            (folder / "model.pt").write_bytes(b"x" * 100_000)
        assert choose(root, begin(root, FACTS, keep=2)).step == 1
        assert not list(root.glob(".writing-*"))
        save(root, 2, checkpoints.current(root))
        assert steps(root) == [1, 2]
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)
