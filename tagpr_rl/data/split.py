"""Hold out users, never questions: questions of one person give each other's golds away in their profiles."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tagpr_rl.data.lamp import folders_present, load_folder, splits_present
from tagpr_rl.data.people import (
    link_users,
    require_comparable_people,
    require_new_people,
    require_setting,
    shared_people,
)
from tagpr_rl.types import LampRecord, TagprError

SHOWN = 5
"""Defective records that a message shows."""


@dataclass(frozen=True, slots=True)
class FolderSplit:
    """A folder's questions in two parts, with everyone's `user_id`."""

    train: list[LampRecord]
    held_out: list[LampRecord]
    skipped: tuple[str, ...]
    """A message for each record that was left out: its file, the record and what is wrong with it."""


def split_folder(
    folder: Path,
    tasks: Sequence[str],
    held_out_fraction: float,
    seed: int,
    *,
    setting: str = "user",
    skip_defective: int = 0,
    query: bool = False,
) -> FolderSplit:
    """The official files in `folder`, divided into training and held out.

    If every task has train and dev files, these are the two sides. A single labelled split is divided by user
    (`link_users`, `split_by_user`). At most `skip_defective` records that LaMP's shapes refuse (`stream_lamp`; `query`
    as there) are left out. Raises TagprError for more of them, for a task without files or golds, for a mixture of
    both kinds, for files that are not of `setting`, and for people on both sides of the user split.
    """
    source = f"data.lamp_dir={folder}"
    if not folder.is_dir():
        wrong = "it is a file" if folder.exists() else "no such folder"
        raise TagprError(f"{source}: {wrong}; it must be a folder that holds <task>/<split>_questions.json")
    present = {task: splits_present(folder, task) for task in tasks}
    for task, splits in present.items():
        if not splits:
            raise TagprError(
                f"{source}: no {task}/train_questions.json or {task}/dev_questions.json there"
                f"{folders_present(folder)}; give the folder that holds one folder per task, or take the task out of "
                "data.tasks"
            )
    faults: list[str] = []

    def load(tasks: Iterable[str], split: str) -> list[LampRecord]:
        return load_folder(folder, tasks, split, golds=True, query=query, on_fault=faults.append)

    both = [task for task, splits in present.items() if {"train", "dev"} <= set(splits)]
    if both and len(both) < len(present):
        raise TagprError(
            f"{source}: {', '.join(both)} have train and dev files but other tasks have one of them; users could be in "
            "both parts. Run them separately"
        )
    if both:
        sides = load(both, "train"), load(both, "dev")
        at_most(faults, skip_defective, source)
        train, held_out, known = _new_people(*sides, setting, folder)
        if len(faults) + len(known) > skip_defective:
            require_new_people([*train, *known], held_out, source, n_skipped=len(faults))
        faults += [f"{folder}: {r.task} train record {r.id!r}: dev has questions of {r.user_id!r}, too" for r in known]
    else:
        if setting == "time":
            raise TagprError(
                f"{source}: data.split is time, which needs train and dev files (later questions of the same people), "
                "and one of them is not there. Set data.split: user to hold out people"
            )
        parts = (load([task], "dev" if "dev" in splits else splits[0]) for task, splits in present.items())
        records = [record for part in parts for record in part]
        at_most(faults, skip_defective, source)
        train, held_out = split_by_user(link_users(records), held_out_fraction, seed)
    if not train or not held_out:
        raise TagprError(f"{source}: {len(faults)} records left out as defective, and no others on one side")
    return FolderSplit(train, held_out, tuple(faults))


def _new_people(
    train: Sequence[LampRecord], held_out: Sequence[LampRecord], setting: str, folder: Path
) -> tuple[list[LampRecord], list[LampRecord], list[LampRecord]]:
    """(train, held out, training questions of people who are evaluated, in the user split), with everyone linked."""
    require_comparable_people([*train, *held_out], f"data.lamp_dir={folder}")
    linked = link_users([*train, *held_out])
    train, held_out = linked[: len(train)], linked[len(train) :]
    require_setting(train, held_out, setting, f"data.lamp_dir={folder}")
    shared = set(shared_people(train, held_out)) if setting == "user" else set()
    known = [record for record in train if record.user_id in shared]
    return [record for record in train if record.user_id not in shared], held_out, known


def at_most(faults: Sequence[str], most: int, source: str) -> tuple[str, ...]:
    """The faults, if there are at most `most`; otherwise TagprError with their number and the first of them."""
    if len(faults) <= most:
        return tuple(faults)
    if len(faults) == 1:
        raise TagprError(f"{faults[0]}. Mend the record, or set data.skip_defective: 1 to leave it out")
    rest = f" ... and {len(faults) - SHOWN} more; `tagpr data check` lists them" if len(faults) > SHOWN else ""
    raise TagprError(
        f"{source}: {len(faults)} records are defective, and data.skip_defective leaves out at most {most}: "
        f"{'; '.join(faults[:SHOWN])}{rest}. Mend them, or set data.skip_defective: {len(faults)} to leave them out"
    )


def user_fraction(user_id: str, seed: int) -> float:
    """A number in [0, 1) that depends on the user and the seed alone (SHA-256)."""
    digest = hashlib.sha256(f"{seed}/{user_id}".encode()).digest()
    return int.from_bytes(digest[:6], "big") / float(1 << 48)


def split_by_user(
    records: Sequence[LampRecord], held_out_fraction: float, seed: int
) -> tuple[list[LampRecord], list[LampRecord]]:
    """(train, held out), each in the order given; about `held_out_fraction` of the users are held out.

    A user's side depends on the user and the seed alone, so it is the same in every task and stays when users are
    added. Files without user ids (the official user split) need `link_users` first.
    Raises TagprError if the fraction is not inside (0, 1) or a side stays empty.
    """
    if not 0.0 < held_out_fraction < 1.0:
        raise TagprError(f"held_out_fraction is {held_out_fraction}; it must lie between 0 and 1, both excluded")
    train: list[LampRecord] = []
    held_out: list[LampRecord] = []
    for record in records:
        side = held_out if user_fraction(record.user_id, seed) < held_out_fraction else train
        side.append(record)
    if not train or not held_out:
        users = len({record.user_id for record in records})
        empty = "held-out" if train or not records else "training"
        raise TagprError(
            f"splitting {len(records)} records of {users} users with held_out_fraction {held_out_fraction} "
            f"and seed {seed} leaves the {empty} side empty; use another seed or fraction, or more users"
        )
    return train, held_out
