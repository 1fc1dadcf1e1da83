"""Makes PRMU's preference pairs: a right chain against one for another user, without a profile, or wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from random import Random

from tagpr_rl.chains.build import ChainRow, ChainSet
from tagpr_rl.chains.evidence import ProfilePool
from tagpr_rl.chains.keep import KeepRules
from tagpr_rl.chains.labellers.label import Labeller
from tagpr_rl.chains.teachers.interface import Teacher, TeacherRequest
from tagpr_rl.chains.teachers.write import Draft, write_chains
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
    """Pairs for one right chain per record, taken from the chains of `chains.rows` that were written with a profile.

    Args:
        make_prompt: retrieves from a record's profile and builds the prompt. It gets the question's record with
            another user's profile, or with an empty one.
        kinds: which kinds of PairRow.kind to make. `wrong` and `no_evidence` need a second chain of the same record,
            so the chains stage must draw more than one sample.
        max_pairs: draw the records of at most so many pairs evenly at random.

    A pair is dropped if both answers are equal, except for `no_evidence`, whose answer is right and whose thought does
    not use the profile. It is also dropped if the rejected text has a bad form, since that alone would tell the two
    apart.
    """
    by_id = {(record.task, record.id): record for record in records}
    chosen = _right_chains(chains)
    if missing := [key for key in chosen if key not in by_id]:
        raise TagprError(f"pairs: the chains name record {missing[0]!r}, which is not among the records given")
    wanted = tuple(kinds)
    order = sorted(chosen, key=lambda key: (key[1], key[0]))
    Random(f"pairs/{seed}").shuffle(order)
    if max_pairs is not None:
        order = order[:max_pairs]  # each record may give several pairs; more records are never needed
    questions = [by_id[key] for key in order]
    pairs: list[PairRow] = []

    def write(changed: Sequence[LampRecord]) -> Sequence[Draft]:
        requests = [TeacherRequest(record, make_prompt(record), foreign=True) for record in changed]
        return write_chains(requests, teacher, labeller, schema, rules).items

    if CROSS in wanted:
        pool = ProfilePool(records, seed)
        swaps = [(r, swap) for r in questions if (swap := pool.swap(r)) is not None]
        for (r, (_, user)), item in zip(swaps, write([swapped for _, (swapped, _) in swaps]), strict=True):
            pairs += _pair(r, chosen[r.task, r.id], item.response, item.answer, CROSS, user)
    if NONE in wanted:
        for r, item in zip(questions, write([replace(r, profile=()) for r in questions]), strict=True):
            pairs += _pair(r, chosen[r.task, r.id], item.response, item.answer, NONE, "")
    drawn = set(order)
    for kind, rows in ((WRONG, chains.wrong), (GENERIC, chains.generic)):
        for row in rows if kind in wanted else ():
            key = row.task, row.record_id
            if row.item_ids and key in drawn:
                pairs += _pair(by_id[key], chosen[key], row.response, row.answer, kind, "")
    Random(f"order/{seed}").shuffle(pairs)
    return pairs if max_pairs is None else pairs[:max_pairs]


def _right_chains(chains: ChainSet) -> dict[tuple[str, str], ChainRow]:
    """(task, record id) -> the record's first chain that is right and was written with a profile."""
    chosen: dict[tuple[str, str], ChainRow] = {}
    for row in chains.rows:
        if row.correct and row.item_ids:
            chosen.setdefault((row.task, row.record_id), row)
    return chosen


def _pair(record: LampRecord, chosen: ChainRow, rejected: str, answer: str, kind: str, other: str) -> list[PairRow]:
    """[the pair], or [] if it shows no preference: no rejected response, or the same answer."""
    same = answer.strip() == chosen.answer.strip() and kind != GENERIC
    if not rejected or same or rejected == chosen.response:
        return []
    texts = profile_texts(record)
    return [
        PairRow(record.id, record.task, record.user_id, other, record.input, texts, chosen.response, rejected, kind)
    ]
