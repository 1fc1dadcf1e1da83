"""Step checkpoints of one stage: whole or not there, hashed, the newest good one chosen, the last good one kept.

    <stage>/checkpoints/
      identity.json                 what the attempt under way is made from, and who may publish
      .writing-<attempt>/           a save in progress; never read again
      global_step_<N>/manifest.json written last: the SHA-256 of every other file of the folder
      latest_checkpointed_iteration.txt   verl's pointer; written after the folder has its final name
      damaged_global_step_<N>/      set aside: a file differed from its hash

A save is written under a temporary name, synced, hashed and renamed. Nothing here imports torch.
"""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tagpr_rl.files import sha256_file, sha256_json, sync_folder, write_json, write_text
from tagpr_rl.run import metrics
from tagpr_rl.run.state import compare
from tagpr_rl.types import TagprError

POINTER = "latest_checkpointed_iteration.txt"
"""verl's name (verl/utils/checkpoint/checkpoint_manager.py, get_checkpoint_tracker_filename)."""
MANIFEST = "manifest.json"
_IDENTITY = "identity.json"
Differences = Callable[[Mapping[str, Any], Mapping[str, Any]], list[str]]
_STEP, _DAMAGED, _WRITING = "global_step_", "damaged_global_step_", ".writing-"


@dataclass(frozen=True, slots=True)
class Identity:
    """One attempt at a stage: what it is made from (`facts`), how many checkpoints it keeps, and its id."""

    attempt: str
    keep: int
    facts: Mapping[str, Any]
    """Plain JSON. A checkpoint with other facts is refused, key by key; `world_size` see `any_world_size`."""
    any_world_size: bool = False
    """The engine loads a checkpoint of another number of processes."""


@dataclass(frozen=True, slots=True)
class Chosen:
    """The checkpoint to go on from; step 0 = none. One note per checkpoint that was passed over."""

    step: int
    notes: tuple[str, ...] = ()


def step_folder(root: Path, step: int) -> Path:
    """`<root>/global_step_<step>`, as verl names it."""
    return root / f"{_STEP}{step}"


def begin(root: Path, facts: Mapping[str, Any], *, keep: int, any_world_size: bool = False) -> Identity:
    """Start an attempt: forget half-written saves, and let nobody but this attempt publish from now on.

    Processes of a killed attempt may live on for some seconds; what they save is refused by `publish`.
    """
    for leftover in root.glob(f"{_WRITING}*"):
        shutil.rmtree(leftover, ignore_errors=True)
    plain = json.loads(json.dumps(facts))
    identity = Identity(uuid.uuid4().hex[:12], keep, plain, any_world_size)
    write_json(root / _IDENTITY, {"attempt": identity.attempt, "keep": keep, "facts": plain})
    return identity


def current(root: Path) -> Identity:
    """The attempt that `begin` wrote last."""
    raw = json.loads((root / _IDENTITY).read_text(encoding="utf-8"))
    return Identity(raw["attempt"], raw["keep"], raw["facts"])


def staging(root: Path, identity: Identity) -> Path:
    """Where this attempt's saves are written: a folder that nothing reads."""
    return root / f"{_WRITING}{identity.attempt}"


def seal(folder: Path, step: int, identity: Identity) -> None:
    """Sync and hash every file below `folder`, then write its manifest. Call it when the save is complete."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / MANIFEST)
    with ThreadPoolExecutor(8) as pool:
        hashes = list(pool.map(_sync_and_hash, files))
    listed = {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": digest}
        for path, digest in zip(files, hashes, strict=True)
    }
    body = {"step": step, "facts": identity.facts, "files": listed}
    write_json(folder / MANIFEST, {**body, "sha256": sha256_json(body)})
    for inner in sorted({path.parent for path in files}):
        sync_folder(inner)
    sync_folder(folder)


def publish(root: Path, step: int, identity: Identity, spared: Collection[int] = ()) -> bool:
    """Give the sealed save of `step` its final name, point verl at it, drop old ones but those of the steps `spared`.

    Returns False, and changes nothing, if another attempt has begun since.
    """
    if current(root).attempt != identity.attempt:
        return False
    source, target = step_folder(staging(root, identity), step), step_folder(root, step)
    assert (source / MANIFEST).is_file(), f"{source} is not sealed"
    metrics.sync(root.parent / "metrics.jsonl")  # the rows up to this step must outlive it
    if target.exists():  # of an attempt that went further
        _drop(target)
    source.rename(target)
    sync_folder(root)
    point(root, step)
    shutil.rmtree(source.parent, ignore_errors=True)  # with verl's own pointer, which names a place that is gone
    retain(root, identity.keep, newest=step, spared=spared)
    return True


def point(root: Path, step: int) -> None:
    """Make verl's pointer name `step`, atomically; 0 removes it, and verl starts from the first step."""
    if step:
        write_text(root / POINTER, str(step))
    else:
        (root / POINTER).unlink(missing_ok=True)
    sync_folder(root)


def retain(root: Path, keep: int, *, newest: int, spared: Collection[int] = ()) -> None:
    """Keep the `keep` newest complete checkpoints up to `newest`; what is later or damaged and older goes.

    `newest` has just been written and is kept whatever `keep` is; those `spared` are kept beside.
    """
    whole = steps(root)
    stale = [step for step in whole if step > newest]
    older = [step for step in whole if step < newest and step not in spared]
    for step in stale + older[: max(0, len(older) - (keep - 1))]:
        _drop(step_folder(root, step))
    for step in _numbered(root, _DAMAGED):
        if step <= newest:
            _drop(root / f"{_DAMAGED}{step}")


def _drop(folder: Path) -> None:
    """Delete a folder that a kill must not leave half deleted under its name."""
    gone = folder.with_name(f"{_WRITING}dropped-{folder.name}")
    shutil.rmtree(gone, ignore_errors=True)
    folder.rename(gone)
    shutil.rmtree(gone, ignore_errors=True)


def steps(root: Path) -> list[int]:
    """Steps with a complete checkpoint, in ascending order; files are not compared with their hashes."""
    names = [path.parent.name.removeprefix(_STEP) for path in root.glob(f"{_STEP}*/{MANIFEST}")]
    return sorted(int(name) for name in names if name.isdigit())


def fault(folder: Path) -> str | None:
    """What is wrong with a checkpoint's files, naming the first one; None if all are as written."""
    manifest = folder / MANIFEST
    try:
        raw = json.loads(manifest.read_text(encoding="utf-8"))
        body = {key: raw[key] for key in ("step", "facts", "files")}
        if sha256_json(body) != raw["sha256"]:
            return f"{manifest} was altered (its SHA-256 is not the recorded one)"
    except FileNotFoundError:
        return f"{manifest} is missing: the save was not finished"
    except (ValueError, KeyError, TypeError) as error:
        return f"{manifest} is not a checkpoint's manifest ({type(error).__name__}: {error})"
    if folder.name.removeprefix(_DAMAGED).removeprefix(_STEP) != str(body["step"]):
        return f"{folder} holds a checkpoint of step {body['step']}"
    for name, known in body["files"].items():
        path = folder / name
        if not path.is_file():
            return f"{path} is missing"
        if (size := path.stat().st_size) != known["bytes"]:
            return f"{path} has {size} bytes of {known['bytes']}"
    with ThreadPoolExecutor(8) as pool:
        hashes = pool.map(sha256_file, [folder / name for name in body["files"]])
        for (name, known), digest in zip(body["files"].items(), hashes, strict=True):
            if digest != known["sha256"]:
                return f"{folder / name} differs from what was saved (its SHA-256 is not the recorded one)"
    return None


def choose(root: Path, identity: Identity, differences: Differences = compare) -> Chosen:
    """The newest checkpoint whose files are all as they were saved; verl's pointer is set to it.

    A damaged checkpoint is set aside under another name, and the notes say so. `differences` compares a checkpoint's
    facts with those of this attempt. Raises TagprError if a checkpoint is of another recipe, tokenizer or number of
    processes, or if none of several is good.
    """
    notes: list[str] = []
    bad: list[tuple[Path, str]] = []
    numbers = sorted(_numbered(root, _STEP), reverse=True)
    chosen = 0
    for step in numbers:
        folder = step_folder(root, step)
        problem = fault(folder)
        if problem is None:
            require_same(folder, identity, differences)
            chosen = step
            break
        bad.append((folder, problem))
    had_manifest = [problem for folder, problem in bad if (folder / MANIFEST).is_file()]
    if had_manifest and not chosen:
        raise TagprError(
            "no checkpoint to resume from is whole:\n  "
            + "\n  ".join(problem for _, problem in bad)
            + f"\nDelete {root} to start the stage over, or put a good copy of a checkpoint there."
        )
    for folder, problem in bad:
        aside = folder.with_name(_DAMAGED + folder.name.removeprefix(_STEP))
        shutil.rmtree(aside, ignore_errors=True)
        folder.rename(aside)
        where = f"going on from step {chosen}" if chosen else "starting over"
        notes.append(f"checkpoint set aside: {problem}; {where}")
    if root.is_dir():
        point(root, chosen)
    return Chosen(chosen, tuple(notes))


def require_same(folder: Path, identity: Identity, differences: Differences = compare) -> None:
    """Raise TagprError if a whole checkpoint was made from other facts than this attempt."""
    raw = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    recorded, present = dict(raw["facts"]), dict(identity.facts)
    was, now = recorded.pop("world_size", None), present.pop("world_size", None)
    if was != now and not identity.any_world_size:
        raise TagprError(
            f"checkpoint {folder} was written by {was} training process(es); the recipe now has {now}, and this "
            f"engine loads its own number only. Resume with nodes x devices_per_node = {was}, "
            f"or delete {folder.parent} to start the stage over."
        )
    changes = differences(recorded, present)
    if changes:
        raise TagprError(
            f"checkpoint {folder} is of another recipe, tokenizer or input; it has -> this stage has:\n  "
            + "\n  ".join(changes)
            + f"\nDelete {folder.parent} to start the stage over, or use another folder (name=<new name>)."
        )


def _numbered(root: Path, prefix: str) -> list[int]:
    names = [path.name.removeprefix(prefix) for path in root.glob(f"{prefix}*") if path.is_dir()]
    return [int(name) for name in names if name.isdigit()]


def _sync_and_hash(path: Path) -> str:
    with path.open("rb") as handle:
        os.fsync(handle.fileno())
    return sha256_file(path)
