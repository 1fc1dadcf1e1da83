"""Hold out users, never questions: questions of one person give each other's golds away in their profiles."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from tagpr_rl.data.lamp import load_folder, splits_present
from tagpr_rl.types import LampRecord, TagprError


def split_folder(
    folder: Path, tasks: Sequence[str], held_out_fraction: float, seed: int
) -> tuple[list[LampRecord], list[LampRecord]]:
    """(train, held out) of the official files in `folder`.

    If every task has train and dev files, these are the two sides. A single labelled split is divided by user
    (`link_users`, `split_by_user`). Raises TagprError for a task without files or golds, and for a mixture of both.
    """
    if not folder.is_dir():
        raise TagprError(f"data.lamp_dir={folder}: no such folder; it must hold <task>/<split>_questions.json")
    present = {task: splits_present(folder, task) for task in tasks}
    for task, splits in present.items():
        if not splits:
            raise TagprError(
                f"data.lamp_dir={folder}: no {task}/train_questions.json or {task}/dev_questions.json there; "
                "give the folder that holds one folder per task, or take the task out of data.tasks"
            )
    both = [task for task, splits in present.items() if {"train", "dev"} <= set(splits)]
    if len(both) == len(present):
        return load_folder(folder, both, "train"), load_folder(folder, both, "dev")
    if both:
        raise TagprError(
            f"data.lamp_dir={folder}: {', '.join(both)} have train and dev files but other tasks have one of "
            "them; users could be in both parts. Run them separately"
        )
    records: list[LampRecord] = []
    for task, splits in present.items():
        records += load_folder(folder, [task], "dev" if "dev" in splits else splits[0])
    without_gold = [record.id for record in records if record.gold is None]
    if without_gold:
        raise TagprError(
            f"data.lamp_dir={folder}: question {without_gold[0]!r} and {len(without_gold) - 1} others have no "
            "gold; training and evaluation need <split>_outputs.json beside <split>_questions.json"
        )
    return split_by_user(link_users(records), held_out_fraction, seed)


def user_fraction(user_id: str, seed: int) -> float:
    """A number in [0, 1) that depends on the user and the seed alone (SHA-256)."""
    digest = hashlib.sha256(f"{seed}/{user_id}".encode()).digest()
    return int.from_bytes(digest[:6], "big") / float(1 << 48)


def split_by_user(
    records: Sequence[LampRecord], held_out_fraction: float, seed: int
) -> tuple[list[LampRecord], list[LampRecord]]:
    """(train, held out), each in the order given; about `held_out_fraction` of the users are held out.

    A user's side depends on the user and the seed alone, so it is the same in every task and stays when users are
    added. In files without user ids (the official user split) each question counts as a user: see `link_users`.
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


def link_users(records: Sequence[LampRecord], min_overlap: float = 0.7) -> list[LampRecord]:
    """Give questions of one person one `user_id`, in files that have none (the official user split).

    In that split the profiles of one person's questions are nearly the same, and each holds the other question's item
    with its gold. Two questions of a task are linked if their profiles share two items or more, and at least
    `min_overlap` of the smaller profile's distinct items (compared by content). Records whose file names the user
    stay as they are. A group's user id is the task's name and the id of its first question.
    """
    if not 0.5 <= min_overlap <= 1.0:
        raise TagprError(f"min_overlap is {min_overlap}; it must lie in [0.5, 1]")
    parent = list(range(len(records)))

    def root(index: int) -> int:
        while parent[index] != index:
            parent[index] = parent[parent[index]]
            index = parent[index]
        return index

    contents = [_contents(record) if record.user_id == record.id else frozenset() for record in records]
    holders: dict[tuple[str, ...], list[int]] = {}
    for index, items in enumerate(contents):
        for item in items:
            holders.setdefault(item, []).append(index)
    for index, items in enumerate(contents):
        # Two profiles that share min_overlap of their items also share one of any (1 - min_overlap) of them plus one:
        # only holders of the rarest such part are compared.
        probes = sorted(items, key=lambda item: (len(holders[item]), item))[: int(len(items) * (1 - min_overlap)) + 1]
        for other in {holder for item in probes for holder in holders[item]}:
            least = min(len(items), len(contents[other]))
            if other != index and least >= 2 and len(items & contents[other]) >= min_overlap * least:
                first, second = sorted((root(index), root(other)))
                parent[second] = first
    return [
        replace(record, user_id=f"{record.task}/{records[root(index)].id}") if record.user_id == record.id else record
        for index, record in enumerate(records)
    ]


def _contents(record: LampRecord) -> frozenset[tuple[str, ...]]:
    """A profile's items by content, with the task, so that only items of one task compare equal."""
    return frozenset((record.task, *(item.fields[key] for key in sorted(item.fields))) for item in record.profile)
