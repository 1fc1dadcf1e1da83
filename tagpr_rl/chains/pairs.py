"""Preference pairs for PRMU: a right chain against one written for another user, without a profile, or wrongly."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from random import Random

from tagpr_rl.chains.build import ChainRow, ChainSet, Written, write_chains
from tagpr_rl.chains.keep import KeepRules
from tagpr_rl.chains.label import Labeller
from tagpr_rl.chains.teacher import Teacher, TeacherRequest
from tagpr_rl.data.retrieve import bm25_scores
from tagpr_rl.data.tasks import TASKS
from tagpr_rl.tags.schema import TagSchema
from tagpr_rl.types import LampRecord, Prompt, TagprError

CROSS, NONE, WRONG = "cross_profile", "no_profile", "wrong"
CANDIDATES = 8
"""Other users looked at per question; the one whose profile is nearest to the question is taken (hard pairs)."""


@dataclass(frozen=True, slots=True)
class PairCandidate:
    """The fields of prmu.pairs.PairRow (chains may not import prmu): `PairRow(**dataclasses.asdict(c))`."""

    record_id: str
    task: str
    user_id: str
    other_user_id: str
    question: str
    profile_texts: tuple[str, ...]
    chosen: str
    rejected: str
    kind: str


def profile_texts(record: LampRecord) -> tuple[str, ...]:
    """The items as LaMP writes them into a prompt, *with* the user's label, score or title (LaMP's retrieval text
    has none for LaMP_2 and LaMP_3, and a preference cannot be read without it)."""
    return tuple(TASKS[record.task].item_line(dict(item.fields)).strip() for item in record.profile)


def build_pairs(
    chains: ChainSet,
    records: Sequence[LampRecord],
    make_prompt: Callable[[LampRecord], Prompt],
    teacher: Teacher,
    labeller: Labeller,
    schema: TagSchema,
    rules: KeepRules,
    *,
    kinds: Iterable[str] = (CROSS, NONE, WRONG),
    max_pairs: int | None = None,
    seed: int = 0,
) -> list[PairCandidate]:
    """Pairs for the chains of `chains.rows` that are right and were written with a profile, one chain per record.

    `make_prompt(record)` retrieves from the record's profile and builds the prompt: it is called with the
    question's record whose profile is another user's, or empty. `wrong` pairs need wrong chains for the same record
    (`samples` > 1). Pairs with equal answers are dropped, and so are rejected texts of bad form: they would be told
    apart without looking at the user. `max_pairs` draws records evenly at random.
    """
    by_id = {record.id: record for record in records}
    chosen: dict[str, ChainRow] = {}
    for row in chains.rows:
        if row.correct and row.item_ids:
            chosen.setdefault(row.record_id, row)
    missing = [record_id for record_id in chosen if record_id not in by_id]
    if missing:
        raise TagprError(f"pairs: the chains name record {missing[0]!r}, which is not among the records given")
    wanted = tuple(kinds)
    order = sorted(chosen)
    Random(f"pairs/{seed}").shuffle(order)
    if max_pairs is not None:
        order = order[:max_pairs]  # each record may give several pairs; more records are never needed
    asked = [by_id[record_id] for record_id in order]
    made: list[PairCandidate] = []
    if CROSS in wanted:
        pool = _pool(records)
        swaps = [(r, _other(r, pool[r.task], seed)) for r in asked]
        found = [(r, other) for r, other in swaps if other is not None]
        lent = [replace(r, profile=other.profile) for r, other in found]
        for (r, other), item in zip(found, _write(lent, make_prompt, teacher, labeller, schema, rules), strict=True):
            made += _pair(r, chosen[r.id], item.response, item.answer, CROSS, other.user_id)
    if NONE in wanted:
        bare = [replace(r, profile=()) for r in asked]
        for r, item in zip(asked, _write(bare, make_prompt, teacher, labeller, schema, rules), strict=True):
            made += _pair(r, chosen[r.id], item.response, item.answer, NONE, "")
    if WRONG in wanted:
        for row in chains.wrong:
            if row.record_id in chosen and row.item_ids and row.record_id in set(order):
                made += _pair(by_id[row.record_id], chosen[row.record_id], row.response, row.answer, WRONG, "")
    Random(f"order/{seed}").shuffle(made)
    return made if max_pairs is None else made[:max_pairs]


def _write(
    records: Sequence[LampRecord],
    make_prompt: Callable[[LampRecord], Prompt],
    teacher: Teacher,
    labeller: Labeller,
    schema: TagSchema,
    rules: KeepRules,
) -> list[Written]:
    requests = [TeacherRequest(record, make_prompt(record)) for record in records]
    return write_chains(requests, teacher, labeller, schema, rules)[0]


def _pair(
    record: LampRecord, chosen: ChainRow, rejected: str, answer: str, kind: str, other: str
) -> list[PairCandidate]:
    """The pair, or nothing when it shows no preference: no rejected response, or the same answer."""
    if not rejected or answer.strip() == chosen.answer.strip():
        return []
    texts = profile_texts(record)
    return [
        PairCandidate(
            record.id, record.task, record.user_id, other, record.input, texts, chosen.response, rejected, kind
        )
    ]


def _pool(records: Sequence[LampRecord]) -> dict[str, list[LampRecord]]:
    """Task -> one record per user that has a profile."""
    pool: dict[str, dict[str, LampRecord]] = {}
    for record in records:
        if record.profile:
            pool.setdefault(record.task, {}).setdefault(record.user_id, record)
    return {task: list(users.values()) for task, users in pool.items()}


def _other(record: LampRecord, pool: Sequence[LampRecord], seed: int) -> LampRecord | None:
    """Among a few random other users, the one with the item nearest to the question; None when there is no other."""
    rng = Random(f"other/{seed}/{record.id}")
    others = [r for r in rng.sample(pool, min(CANDIDATES + 1, len(pool))) if r.user_id != record.user_id]
    if not others:
        return None
    spec = TASKS[record.task]
    query = spec.query(record)
    best = [max(bm25_scores([spec.item_text(item) for item in r.profile], query)) for r in others[:CANDIDATES]]
    return others[best.index(max(best))]
