"""Preference pairs for PRMU: the row, its parquet file, the split by user and the leakage check. No torch."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from tagpr_rl.files import read_parquet, write_parquet
from tagpr_rl.types import PairRow, TagprError

USER_ONLY = "user_only"
COPIED, PADDED, SLIPPED, MALFORMED = "copied", "padded", "slipped", "malformed"
KINDS = ("cross_profile", "no_profile", "wrong", "no_evidence", COPIED, PADDED, SLIPPED, MALFORMED, USER_ONLY)
"""What `rejected` is:

cross_profile: a response written with another user's profile. no_profile: one written without a profile.
wrong: a response with the user's own profile and a wrong answer.
no_evidence: a response with the right answer whose thought does not use the profile.
copied: a thought that only copies the profile, before a wrong answer.
padded: `chosen` with one step repeated.
slipped: `chosen` with a wrong answer, or a wrong last step and answer, which do not follow from the thought.
malformed: `chosen` with a fault of form, which the parser does not accept.
user_only: as cross_profile, and the set holds the same pair with its responses swapped for the other user, so that
only the user decides which one is right.
"""


def check_pair(row: PairRow, where: str) -> PairRow:
    """Return `row`, or raise TagprError that begins with `where` and names the field at fault."""
    name = f"{where}: pair of record {row.record_id!r}"
    for field in ("record_id", "task", "user_id", "other_user_id", "question", "chosen", "rejected", "kind"):
        if not isinstance(getattr(row, field), str):
            raise TagprError(f"{name}: {field} is {getattr(row, field)!r}; give a string")
    for field in ("record_id", "user_id", "question", "chosen", "rejected"):
        if not getattr(row, field).strip():
            raise TagprError(f"{name}: {field} is empty; leave the pair out or fill it")
    if row.kind not in KINDS:
        raise TagprError(f"{name}: kind is {row.kind!r}; use one of {', '.join(KINDS)}")
    if not isinstance(row.profile_texts, tuple) or not all(isinstance(t, str) for t in row.profile_texts):
        raise TagprError(f"{name}: profile_texts is {row.profile_texts!r}; give a tuple of strings")
    if row.kind in ("cross_profile", USER_ONLY) and row.other_user_id in ("", row.user_id):
        raise TagprError(
            f"{name}: other_user_id is {row.other_user_id!r}; a {row.kind} pair needs another user than {row.user_id!r}"
        )
    if row.chosen == row.rejected:
        raise TagprError(f"{name}: chosen and rejected are the same text; leave the pair out")
    return row


def write_pairs(path: Path, rows: Sequence[PairRow]) -> None:
    """Write checked rows to a parquet file, atomically. An empty list is an error."""
    if not rows:
        raise TagprError(f"{path}: no pairs to write; the chains gave none")
    for row in rows:
        check_pair(row, str(path))
    write_parquet(path, map(asdict, rows), _schema())


def read_pairs(path: Path) -> list[PairRow]:
    """Read and check a parquet file of pairs. TagprError if missing, unreadable, empty or short of a column."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not path.is_file():
        raise TagprError(f"{path}: no such file; build the pairs first")
    try:
        columns = pq.read_schema(path).names
    except (pa.ArrowInvalid, OSError) as error:
        raise TagprError(f"{path}: not a parquet file ({error}); build the pairs again") from error
    missing = [f.name for f in fields(PairRow) if f.name not in columns]
    if missing:
        raise TagprError(f"{path}: column {missing[0]!r} is missing; build the pairs again")
    names = [f.name for f in fields(PairRow)]
    rows = [PairRow(**{**row, "profile_texts": tuple(row["profile_texts"] or ())}) for row in read_parquet(path, names)]
    if not rows:
        raise TagprError(f"{path}: holds no pairs; build the pairs again")
    return [check_pair(row, str(path)) for row in rows]


def _schema() -> Any:
    import pyarrow as pa

    kinds = {"profile_texts": pa.list_(pa.string())}
    return pa.schema([(f.name, kinds.get(f.name, pa.string())) for f in fields(PairRow)])


def users_of(rows: Iterable[PairRow]) -> set[str]:
    """The ids of the pairs' users (`user_id`)."""
    return {row.user_id for row in rows}


def check_leakage(train: Sequence[PairRow], validation: Sequence[PairRow]) -> None:
    """Raise TagprError if a validation user is in training: as a pair's user, or as the user of its `rejected`."""
    unseen = users_of(validation)
    for row in train:
        for role, user in (("user_id", row.user_id), ("other_user_id", row.other_user_id)):
            if user in unseen:
                raise TagprError(
                    f"pairs: user {user!r} is in validation and also in training ({role} of record "
                    f"{row.record_id!r}); split the pairs by user"
                )


@dataclass(frozen=True, slots=True)
class PairSplit:
    """Training pairs, and two sets to measure on."""

    train: tuple[PairRow, ...]
    seen: tuple[PairRow, ...]
    """New records of training users."""
    unseen: tuple[PairRow, ...]
    """All records of users that training never shows."""
    dropped: int
    """Number of training pairs left out because their `rejected` was written for an unseen user."""


def split_by_user(
    rows: Sequence[PairRow], *, unseen_fraction: float = 0.15, seen_fraction: float = 0.1, seed: int = 0
) -> PairSplit:
    """Hold out whole users, then whole records of the remaining users. No user and no record is in two sets.

    At least one user is held out and at least one remains. A training row is dropped, and counted, if its `rejected`
    was written for a held-out user. `unseen_fraction`: share of users, in (0, 1). `seen_fraction`: share of records,
    in [0, 1).
    """
    users = sorted(users_of(rows))
    if len(users) < 2:
        raise TagprError(f"pairs: {len(users)} user(s) in {len(rows)} pairs; at least 2 are needed to hold one out")
    if not 0 < unseen_fraction < 1 or not 0 <= seen_fraction < 1:
        raise TagprError(
            f"pairs: unseen_fraction {unseen_fraction} must be in (0, 1), seen_fraction {seen_fraction} in [0, 1)"
        )
    rng = random.Random(seed)
    rng.shuffle(users)
    held = set(users[: min(len(users) - 1, max(1, round(unseen_fraction * len(users))))])
    stay = [row for row in rows if row.user_id not in held]
    records = sorted({(row.user_id, row.record_id) for row in stay})
    rng.shuffle(records)
    n_seen = min(math.ceil(seen_fraction * len(records)), len(records) - 1)
    seen_records = set(records[:n_seen])
    seen = [row for row in stay if (row.user_id, row.record_id) in seen_records]
    train = [row for row in stay if (row.user_id, row.record_id) not in seen_records]
    clean = [row for row in train if row.other_user_id not in held]
    if not clean:
        raise TagprError("pairs: every training pair involves a held-out user; give more users")
    split = PairSplit(
        train=tuple(clean),
        seen=tuple(seen),
        unseen=tuple(row for row in rows if row.user_id in held),
        dropped=len(train) - len(clean),
    )
    check_leakage(split.train, split.unseen)
    return split


def user_only_pairs(rows: Sequence[PairRow], profiles: Mapping[tuple[str, str], tuple[str, ...]]) -> list[PairRow]:
    """Pairs that differ only in the user: each cross_profile pair, and the same pair swapped for the other user.

    The other user's profile is `profiles[task, other_user_id]`; a row is left out if that is missing or empty. Any
    score that ignores the user gets exactly half of these pairs right.
    """
    pairs = []
    for row in rows:
        profile = profiles.get((row.task, row.other_user_id))
        if row.kind == "cross_profile" and profile:
            swapped = replace(
                row, kind=USER_ONLY, user_id=row.other_user_id, other_user_id=row.user_id, profile_texts=profile,
                chosen=row.rejected, rejected=row.chosen,
            )  # fmt: skip
            pairs += [replace(row, kind=USER_ONLY), swapped]
    return pairs
