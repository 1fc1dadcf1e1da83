"""Who asked which question: people linked by their profiles, and a folder's setting looked at, not believed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from hashlib import sha256

from tagpr_rl.types import LampRecord, TagprError

MIN_OVERLAP = 0.7
"""Least share of the smaller profile's items that two profiles of one person have in common."""
MIN_OVERLAP_OF_LARGER = 0.5
"""The same for the larger profile. Only undated profiles are asked for it: popular films make a small profile look like
a part of a large one, and a dated profile grows."""
NAMED = 5
"""People that a message names."""


def files_with_users(records: Iterable[LampRecord]) -> set[tuple[str, str]]:
    """(task, split) of the files that say who asked; the official user split's files do not.

    A user may have a question's id by chance, so one question cannot tell.
    """
    return {(record.task, record.split) for record in records if record.user_id != record.id}


def link_users(records: Sequence[LampRecord], min_overlap: float = MIN_OVERLAP) -> list[LampRecord]:
    """Give questions of one person one `user_id`, in files that have none (the official user split).

    In that split the profiles of one person's questions are nearly the same, and each holds the other question's item
    with its gold. Two questions of a task are linked if their profiles share two items or more, at least `min_overlap`
    of the smaller profile's distinct items, and half of the larger one's if the items have no dates. Items compare by
    content and date. Give all splits of a folder at once: a person may stand in several. Records whose file names the
    user stay as they are. A person's id is the task, split and id of their first question.
    """
    if not 0.5 <= min_overlap <= 1.0:
        raise TagprError(f"min_overlap is {min_overlap}; it must lie in [0.5, 1]")
    numbers: dict[tuple[str | None, ...], int] = {}
    known = files_with_users(records)
    named = [(record.task, record.split) in known for record in records]
    contents = [
        frozenset[int]() if has_user else _contents(record, numbers)
        for record, has_user in zip(records, named, strict=True)
    ]
    dated = [any(item.date is not None for item in record.profile) for record in records]
    n_holders = Counter(item for items in contents for item in items)
    parent = list(range(len(records)))

    def root(index: int) -> int:
        while parent[index] != index:
            parent[index] = parent[parent[index]]
            index = parent[index]
        return index

    def alike(a: int, b: int) -> bool:
        small, large = sorted((len(contents[a]), len(contents[b])))
        least = max(2.0, min_overlap * small)
        if not (dated[a] and dated[b]):
            least = max(least, MIN_OVERLAP_OF_LARGER * large)
        return least <= small and len(contents[a] & contents[b]) >= least

    members: dict[int, list[int]] = {}  # root -> the group's questions
    groups: dict[int, set[int]] = {}  # item -> questions whose roots are the groups that hold it
    for index in sorted(range(len(records)), key=lambda index: -len(contents[index])):
        # Two profiles that share min_overlap of the smaller one's items also share one of any (1 - min_overlap) of them
        # plus one: the smaller one looks up the rarest such part among the larger ones, which came before it.
        items = contents[index]
        probes = sorted(items, key=lambda item: (n_holders[item], item))[: int(len(items) * (1 - min_overlap)) + 1]
        own = [index]
        for group in {root(other) for item in probes for other in groups.get(item, ())}:
            if any(alike(index, other) for other in reversed(members[group])):
                own = members.pop(group) + own
                first, second = sorted((root(index), group))
                parent[second] = first
        members[root(index)] = own
        for item in items:
            groups.setdefault(item, set()).add(root(index))
    return [
        record if named[index] else replace(record, user_id=_person(records[root(index)]))
        for index, record in enumerate(records)
    ]


def _person(first: LampRecord) -> str:
    return f"{first.task}/{first.split}/{first.id}"


def _contents(record: LampRecord, numbers: dict[tuple[str | None, ...], int]) -> frozenset[int]:
    """A number for each of the profile's items, the same for items of one task, date and content."""
    return frozenset(
        numbers.setdefault((record.task, item.date, *(item.fields[key] for key in sorted(item.fields))), len(numbers))
        for item in record.profile
    )


def require_comparable_people(records: Sequence[LampRecord], source: str) -> None:
    """TagprError if one file of a task names its users and the other does not: nobody could be found in both."""
    named = files_with_users(records)
    for task, split in sorted({(record.task, record.split) for record in records} - named):
        if other := next((name for name in sorted(named) if name[0] == task), None):
            raise TagprError(
                f"{source}: {task}'s {other[1]} questions have a user_id and its {split} questions have none, so "
                "people of one file cannot be found in the other. Give both files user ids, or neither"
            )


def shared_people(train: Iterable[LampRecord], held_out: Iterable[LampRecord]) -> list[str]:
    """The people with questions on both sides, in the order of training."""
    evaluated = {record.user_id for record in held_out}
    return [user for user in dict.fromkeys(record.user_id for record in train) if user in evaluated]


def require_setting(train: Sequence[LampRecord], held_out: Sequence[LampRecord], setting: str, source: str) -> None:
    """TagprError if the files in `source` are not of the `setting` (user or time) that the recipe names.

    Dates, or most of the evaluated people in training, make a time split. A few of them in training are a mistake in
    the files: `require_new_people`.
    """
    shared = shared_people(train, held_out)
    n_evaluated = len({record.user_id for record in held_out})
    dated = any(item.date is not None for side in (train, held_out) for record in side for item in record.profile)
    if setting == "time":
        if not dated and 2 * len(shared) <= n_evaluated:
            raise TagprError(
                f"{source}: data.split is time, but no profile item has a date and {len(shared) or 'none'} of the "
                f"{n_evaluated} people of dev have questions in train: these are files of a user split. Set "
                "data.split: user"
            )
        return
    signs = ["profile items have dates"] if dated else []
    if shared:
        signs.append(f"{len(shared)} of {n_evaluated} people of dev ({_names(shared)}) have questions in train, too")
    if dated or 2 * len(shared) > n_evaluated:
        raise TagprError(
            f"{source}: data.split is user, but {' and '.join(signs)}: these are files of a time split. Set "
            "data.split: time, which measures later questions of the same people"
        )


def require_new_people(
    train: Sequence[LampRecord], held_out: Sequence[LampRecord], source: str, *, n_skipped: int = 0
) -> None:
    """TagprError, with names, if a person has questions in both training and evaluation.

    `n_skipped` records are left out already, for the number in the remedy.
    """
    shared = shared_people(train, held_out)
    if shared:
        n_questions = sum(record.user_id in set(shared) for record in train)
        raise TagprError(
            f"{source}: {len(shared)} people have questions in both train and dev ({_names(shared)}), so that their "
            f"profiles give golds away. Take their {n_questions} questions out of train, or set data.skip_defective: "
            f"{n_questions + n_skipped} to leave them out"
        )


def with_one_question(records: Iterable[LampRecord]) -> tuple[list[str], int]:
    """(people with a single question, number of people)."""
    questions = Counter(record.user_id for record in records)
    return [user for user, count in questions.items() if count == 1], len(questions)


def require_several_questions(records: Iterable[LampRecord], where: str) -> None:
    """TagprError if most people have one question: a vector of their own would stand for the question."""
    single, n_people = with_one_question(records)
    if 2 * len(single) > n_people:
        raise TagprError(
            f"{where}: a learned vector for each user, but {len(single)} of {n_people} training users "
            f"({_names(single)}) have one question, which the vector would stand for; set {where}.identity: false "
            "with user: attention, or give files with several questions of a person"
        )


def _names(people: Sequence[str]) -> str:
    more = f" and {len(people) - NAMED} more" if len(people) > NAMED else ""
    return ", ".join(map(repr, people[:NAMED])) + more


def tasks_of_one_user(records: Sequence[LampRecord]) -> tuple[str, ...]:
    """Tasks whose questions all have the same user, so that no profile can be swapped."""
    users: dict[str, set[str]] = {}
    for record in records:
        users.setdefault(record.task, set()).add(record.user_id)
    return tuple(task for task, own in users.items() if len(own) < 2)


def set_aside(records: Sequence[LampRecord], fraction: float) -> tuple[list[LampRecord], list[LampRecord]]:
    """(the others, those of a `fraction` of the users), both in order; the same users however the records are ordered.

    TagprError if one side would be without a user.
    """
    if not fraction:
        return list(records), []
    users = sorted({record.user_id for record in records}, key=lambda user: sha256(f"aside/{user}".encode()).digest())
    count = max(1, round(fraction * len(users)))
    if count >= len(users):
        raise TagprError(
            f"data.validation_fraction={fraction:g} sets {count} of {len(users)} training users aside, and none would "
            "be left to train on; lower it, or take more users"
        )
    aside = set(users[:count])
    return [r for r in records if r.user_id not in aside], [r for r in records if r.user_id in aside]
