"""Records and prompts -> tagged chains for SFT, with every rejection counted by its reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any

from tagpr_rl.chains.agreement import Agreement
from tagpr_rl.chains.balance import Member, balanced
from tagpr_rl.chains.evidence import (
    CANDIDATES,
    CommonClues,
    Evidence,
    ProfileSwap,
    summary,
    text_evidence,
    uses_profile,
)
from tagpr_rl.chains.keep import ANSWER_REASONS, KeepRules, Rejection, judge_answer
from tagpr_rl.chains.labellers.label import Labeller
from tagpr_rl.chains.similar import near_duplicates
from tagpr_rl.chains.teachers.interface import Teacher, TeacherRequest
from tagpr_rl.chains.teachers.write import Written, answer_of, text_for_file, write_chains
from tagpr_rl.tags.schema import TagSchema
from tagpr_rl.types import LampRecord, Prompt, TagprError


@dataclass(frozen=True, slots=True)
class ChainRow:
    """One tagged chain: an SFT example."""

    record_id: str
    task: str
    user_id: str
    messages: tuple[Mapping[str, str], ...]
    response: str
    """Rendered by tags.grammar.render; parses OK under the schema."""
    answer: str
    correct: bool
    """By `judge_answer`; False only where `wrong_fraction` let a wrong chain in."""
    item_ids: tuple[str, ...]
    """Profile items that the teacher saw; empty = without a profile."""
    sample: int


@dataclass(frozen=True, slots=True)
class RejectedChain:
    """A chain that was not kept, and why."""

    record_id: str
    task: str
    user_id: str
    sample: int
    reason: Rejection
    text: str
    """The teacher's text, writable as UTF-8."""
    detail: str = ""
    """More on the reason, in words."""


@dataclass(frozen=True, slots=True)
class ChainSet:
    """What `build_chains` made."""

    rows: tuple[ChainRow, ...]
    rejected: tuple[RejectedChain, ...]
    wrong: tuple[ChainRow, ...]
    """Well-formed chains with a wrong answer, kept in `rows` or not: PRMU's `wrong` pairs draw on them."""
    counts: Mapping[str, int]
    """asked, kept, kept_wrong, and one key for each `Rejection`; kept and rejections sum to asked."""
    agreement: Agreement | None
    """Of the two labellings; None when `label_twice` is off."""
    evidence: Mapping[str, float | int | None] = field(default_factory=dict)
    """evidence.summary over the well-formed, right chains that had a profile; empty when the check is off."""
    generic: tuple[ChainRow, ...] = ()
    """Right chains rejected as NO_EVIDENCE: PRMU's `no_evidence` pairs draw on them."""

    @property
    def kappa(self) -> float | None:
        """Cohen's kappa over all steps labelled twice."""
        return self.agreement.kappa if self.agreement is not None else None


Judged = tuple[Written, Rejection | None]
Key = tuple[str, str]


def build_chains(
    records: Sequence[LampRecord],
    prompts: Sequence[Prompt],
    teacher: Teacher,
    labeller: Labeller,
    schema: TagSchema,
    rules: KeepRules,
    *,
    samples: int = 1,
    seed: int = 0,
    empty_prompts: Mapping[str, Prompt] | None = None,
    swap: ProfileSwap | None = None,
) -> ChainSet:
    """Tagged chains for `records[i]` read through `prompts[i]`, `samples` each.

    `empty_prompts`: record id -> its prompt without a profile, for generation tasks' "better than without the
    profile" rule (without it that answer counts as scoring 0). `swap` is needed when `rules.evidence` is on.
    `seed` decides which chains balance drops and which wrong chains `wrong_fraction` lets in. Order of rows = order
    of records. Raises TagprError when records and prompts do not belong together.
    """
    requests = _requests(records, prompts, samples)
    batch = write_chains(requests, teacher, labeller, schema, rules)
    plain = _answers_without_profile(requests, empty_prompts or {}, teacher)
    judged = [_judged(item, rules, plain) for item in batch.items]
    right = {i for i, (_, reason) in enumerate(judged) if reason is None}
    proof = _evidence(judged, teacher, rules, swap)
    judged = [_proven(one, proof.get(i), rules) for i, one in enumerate(judged)]
    judged = _without_repeats(judged)
    judged = _without_near_repeats(judged, rules)
    judged = _balanced(judged, rules, seed)
    wrong = [i for i, (item, reason) in enumerate(judged) if reason in ANSWER_REASONS and item.response]
    n_kept = sum(reason is None for _, reason in judged)
    room = int(rules.wrong_fraction / (1 - rules.wrong_fraction) * n_kept + 0.5)
    fit = [i for i in wrong if i not in proof or uses_profile(proof[i], rules.evidence)]
    let_in = set(Random(f"wrong/{seed}").sample(fit, min(room, len(fit))))
    rows, rejected = [], []
    for i, (item, reason) in enumerate(judged):
        if reason is None or i in let_in:
            rows.append(_row(item, reason is None))
        else:
            rejected.append(_rejected(item, reason))
    counts = Counter(one.reason.value for one in rejected)
    tally = {"asked": len(requests), "kept": len(rows), "kept_wrong": len(let_in)}
    tally |= {reason.value: counts[reason.value] for reason in Rejection}
    assert len(rows) + counts.total() == len(requests), "every chain has one outcome"
    return ChainSet(
        tuple(rows),
        tuple(rejected),
        tuple(_row(judged[i][0], False) for i in wrong),
        tally,
        batch.agreement,
        summary([proof[i] for i in proof if i in right], rules.evidence) if proof else {},
        tuple(_row(item, True) for item, reason in judged if reason is Rejection.NO_EVIDENCE),
    )


def _requests(records: Sequence[LampRecord], prompts: Sequence[Prompt], samples: int) -> list[TeacherRequest]:
    if len(records) != len(prompts):
        raise TagprError(f"chains: {len(records)} records but {len(prompts)} prompts; give one prompt per record")
    for record, prompt in zip(records, prompts, strict=True):
        if prompt.record_id != record.id:
            raise TagprError(f"chains: record {record.id!r} came with the prompt of {prompt.record_id!r}; align them")
    return [
        TeacherRequest(record, prompt, sample)
        for record, prompt in zip(records, prompts, strict=True)
        for sample in range(samples)
    ]


def _answers_without_profile(
    requests: Sequence[TeacherRequest], prompts: Mapping[str, Prompt], teacher: Teacher
) -> dict[Key, str | Rejection]:
    """The teacher's answer without the profile, or why there is none, where a prompt for it was given."""
    asked: dict[Key, TeacherRequest] = {}
    for request in requests:
        prompt = prompts.get(request.record.id)
        if prompt is not None and prompt.task == request.record.task:
            asked[_key(request.record)] = TeacherRequest(request.record, prompt)
    replies = teacher.generate(list(asked.values())) if asked else []
    return dict(zip(asked, map(answer_of, replies), strict=True))


def _key(record: LampRecord) -> Key:
    """Ids are unique within a task only."""
    return record.task, record.id


def _judged(item: Written, rules: KeepRules, plain: Mapping[Key, str | Rejection]) -> Judged:
    if item.reason is not None:
        return item, item.reason
    record = item.request.record
    return item, judge_answer(rules, record, item.answer, plain.get(_key(record)))


def _evidence(
    judged: Sequence[Judged], teacher: Teacher, rules: KeepRules, swap: ProfileSwap | None
) -> dict[int, Evidence]:
    """Index -> what was found, for well-formed chains that had a profile; {} when the check is off."""
    if not rules.evidence.reads_words:
        return {}
    if swap is None:
        raise TagprError(f"keep.evidence.require is {rules.evidence.require!r}, and no other profiles were given")
    common = CommonClues(swap.pool.by_task, rules.evidence.common)
    # The pairs ask about the same other user as CANDIDATES gives: with a cache that answer is paid for once.
    candidates = CANDIDATES if rules.evidence.asks_teacher else 1
    found: dict[int, Evidence] = {}
    lent: dict[int, LampRecord] = {}
    for i, (item, reason) in enumerate(judged):
        request = item.request
        if not request.prompt.item_ids or not (reason is None or (reason in ANSWER_REASONS and item.response)):
            continue
        loan = swap.pool.swap(request.record, candidates)
        other = swap.shown(loan[0]) if loan else None
        found[i] = text_evidence(item.steps, request.record, request.items, other, common.of(request.record.task))
        if loan:
            lent[i] = loan[0]
    if rules.evidence.asks_teacher:
        asked = {_key(lent[i]): lent[i] for i in found if i in lent and judged[i][1] is None}
        replies = teacher.generate([TeacherRequest(r, swap.make_prompt(r)) for r in asked.values()])
        answers = dict(zip(asked, map(answer_of, replies), strict=True))
        for i in found:
            told = answers.get(_key(judged[i][0].request.record))
            if isinstance(told, str):
                found[i] = replace(found[i], changed=told.strip() != judged[i][0].answer.strip())
    return found


def _proven(judged: Judged, found: Evidence | None, rules: KeepRules) -> Judged:
    item, reason = judged
    if reason is None and found is not None and not uses_profile(found, rules.evidence):
        return item, Rejection.NO_EVIDENCE
    return judged


def _without_repeats(judged: Sequence[Judged]) -> list[Judged]:
    """Only the first of equal responses to one prompt stays."""
    seen: set[Any] = set()
    result = []
    for item, reason in judged:
        key = (item.request.record.task, item.request.record.id, item.request.prompt.item_ids, item.response)
        repeat = bool(item.response) and key in seen
        seen.add(key)
        result.append((item, Rejection.DUPLICATE if repeat else reason))
    return result


def _without_near_repeats(judged: Sequence[Judged], rules: KeepRules) -> list[Judged]:
    """Only the first of chains with nearly the same thought and the same answer stays, within the rules' scope."""
    scope = rules.near_duplicates.scope
    if scope == "off":
        return list(judged)
    alive = [i for i, (_, reason) in enumerate(judged) if reason is None]
    groups = []
    for i in alive:
        item, record = judged[i][0], judged[i][0].request.record
        within = {"record": (record.id, item.request.prompt.item_ids), "user": record.user_id, "all": None}[scope]
        groups.append((record.task, item.answer, within))
    twins = near_duplicates(["".join(judged[i][0].steps) for i in alive], groups, rules.near_duplicates)
    dropped = {i for i, twin in zip(alive, twins, strict=True) if twin}
    return [(item, Rejection.NEAR_DUPLICATE if i in dropped else reason) for i, (item, reason) in enumerate(judged)]


def _balanced(judged: Sequence[Judged], rules: KeepRules, seed: int) -> list[Judged]:
    alive = [i for i, (_, reason) in enumerate(judged) if reason is None]
    members = [
        Member(judged[i][0].request.record.task, judged[i][0].request.record.user_id, judged[i][0].tags) for i in alive
    ]
    stays = balanced(members, rules.balance, seed)
    dropped = {i for i, stay in zip(alive, stays, strict=True) if not stay}
    return [(item, Rejection.NOT_BALANCED if i in dropped else reason) for i, (item, reason) in enumerate(judged)]


def _row(item: Written, correct: bool) -> ChainRow:
    request = item.request
    record = request.record
    return ChainRow(
        record.id,
        record.task,
        record.user_id,
        request.prompt.messages,
        item.response,
        item.answer,
        correct,
        request.prompt.item_ids,
        request.sample,
    )


def _rejected(item: Written, reason: Rejection) -> RejectedChain:
    record, text, detail = item.request.record, text_for_file(item.text), text_for_file(item.detail)
    return RejectedChain(record.id, record.task, record.user_id, item.request.sample, reason, text, detail)
