"""Preference pairs for PRMU: a right chain against one written for another user, without a profile, or wrongly."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from random import Random

from tagpr_rl.chains.build import ChainRow, ChainSet
from tagpr_rl.chains.evidence import ProfilePool
from tagpr_rl.chains.keep import KeepRules
from tagpr_rl.chains.labellers.label import Labeller
from tagpr_rl.chains.teachers.interface import Teacher, TeacherRequest
from tagpr_rl.chains.teachers.write import Written, write_chains
from tagpr_rl.prompts.rows import profile_texts
from tagpr_rl.tags.schema import TagSchema
from tagpr_rl.types import LampRecord, PairRow, Prompt, TagprError

CROSS, NONE, WRONG, GENERIC = "cross_profile", "no_profile", "wrong", "no_evidence"


def build_pairs(
    chains: ChainSet,
    records: Sequence[LampRecord],
    make_prompt: Callable[[LampRecord], Prompt],
    teacher: Teacher,
    labeller: Labeller,
    schema: TagSchema,
    rules: KeepRules,
    *,
    kinds: Iterable[str] = (CROSS, NONE, WRONG, GENERIC),
    max_pairs: int | None = None,
    seed: int = 0,
) -> list[PairRow]:
    """Pairs for the chains of `chains.rows` that are right and were written with a profile, one chain per record.

    `make_prompt(record)` retrieves from the record's profile and builds the prompt: it is called with the
    question's record whose profile is another user's, or empty. `wrong` and `no_evidence` pairs need a wrong chain, or
    one that does not use the profile, for the same record (`samples` > 1). Pairs with equal answers are dropped, but
    for `no_evidence`: there the answer is right and the thought is not this user's. So are rejected texts of bad form:
    they would be told apart without looking at the user. `max_pairs` draws records evenly at random.
    """
    by_id = {(record.task, record.id): record for record in records}
    chosen: dict[tuple[str, str], ChainRow] = {}
    for row in chains.rows:
        if row.correct and row.item_ids:
            chosen.setdefault((row.task, row.record_id), row)
    missing = [key for key in chosen if key not in by_id]
    if missing:
        raise TagprError(f"pairs: the chains name record {missing[0]!r}, which is not among the records given")
    wanted = tuple(kinds)
    order = sorted(chosen, key=lambda key: (key[1], key[0]))
    Random(f"pairs/{seed}").shuffle(order)
    if max_pairs is not None:
        order = order[:max_pairs]  # each record may give several pairs; more records are never needed
    asked = [by_id[key] for key in order]
    made: list[PairRow] = []

    def write(lent: Sequence[LampRecord]) -> Sequence[Written]:
        requests = [TeacherRequest(record, make_prompt(record)) for record in lent]
        return write_chains(requests, teacher, labeller, schema, rules).items

    if CROSS in wanted:
        pool = ProfilePool(records, seed)
        loans = [(r, loan) for r in asked if (loan := pool.swap(r)) is not None]
        for (r, (_, user)), item in zip(loans, write([lent for _, (lent, _) in loans]), strict=True):
            made += _pair(r, chosen[r.task, r.id], item.response, item.answer, CROSS, user)
    if NONE in wanted:
        for r, item in zip(asked, write([replace(r, profile=()) for r in asked]), strict=True):
            made += _pair(r, chosen[r.task, r.id], item.response, item.answer, NONE, "")
    drawn = set(order)
    for kind, rows in ((WRONG, chains.wrong), (GENERIC, chains.generic)):
        for row in rows if kind in wanted else ():
            key = row.task, row.record_id
            if row.item_ids and key in drawn:
                made += _pair(by_id[key], chosen[key], row.response, row.answer, kind, "")
    Random(f"order/{seed}").shuffle(made)
    return made if max_pairs is None else made[:max_pairs]


def _pair(record: LampRecord, chosen: ChainRow, rejected: str, answer: str, kind: str, other: str) -> list[PairRow]:
    """The pair, or nothing when it shows no preference: no rejected response, or the same answer."""
    same = answer.strip() == chosen.answer.strip() and kind != GENERIC
    if not rejected or same or rejected == chosen.response:
        return []
    texts = profile_texts(record)
    return [
        PairRow(record.id, record.task, record.user_id, other, record.input, texts, chosen.response, rejected, kind)
    ]
