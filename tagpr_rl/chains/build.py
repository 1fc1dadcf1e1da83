"""Makes tagged chains for SFT from records and prompts, and counts every rejected chain by its reason."""

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
from tagpr_rl.chains.teachers.write import Draft, answer_of, text_for_file, write_chains
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
    """The output of tags.grammar.render. It parses OK under the schema."""
    answer: str
    correct: bool
    """The verdict of `judge_answer`. False only for the wrong chains that `wrong_fraction` admits."""
    item_ids: tuple[str, ...]
    """Ids of the profile items that the teacher saw; empty = it saw no profile."""
    sample: int


@dataclass(frozen=True, slots=True)
class RejectedChain:
    """A rejected chain with the reason."""

    record_id: str
    task: str
    user_id: str
    sample: int
    reason: Rejection
    text: str
    """The teacher's text, in a form that UTF-8 can encode."""
    detail: str = ""
    """Details of the reason."""


@dataclass(frozen=True, slots=True)
class ChainSet:
    """The result of `build_chains`."""

    rows: tuple[ChainRow, ...]
    rejected: tuple[RejectedChain, ...]
    wrong: tuple[ChainRow, ...]
    """All well-formed chains with a wrong answer, in `rows` or not. PRMU's `wrong` pairs are made of them."""
    counts: Mapping[str, int]
    """asked, kept, kept_wrong, and one key for each `Rejection`. kept plus all rejections equals asked."""
    agreement: Agreement | None
    """Agreement of the two labellings; None without `label_twice`."""
    evidence: Mapping[str, float | int | None] = field(default_factory=dict)
    """evidence.summary of the well-formed, right chains that had a profile; empty if the check is off."""
    generic: tuple[ChainRow, ...] = ()
    """Right chains rejected as NO_EVIDENCE. PRMU's `no_evidence` pairs are made of them."""

    @property
    def kappa(self) -> float | None:
        """Cohen's kappa over all steps that were labelled twice."""
        return self.agreement.kappa if self.agreement is not None else None


Verdict = tuple[Draft, Rejection | None]
"""A chain, and why it is rejected; None = it is kept so far."""
Key = tuple[str, str]
"""(task, record id): record ids are unique within a task only."""


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
    """Ask the teacher for `samples` chains for each `records[i]` with its prompt `prompts[i]`, and judge them.

    Args:
        empty_prompts: record id -> the record's prompt without a profile. A generation task keeps a chain only if its
            answer is better than the teacher's answer to that prompt; without such a prompt that answer scores 0.
        swap: asks the same question with another user's profile. Needed if `rules.evidence` is on.
        seed: decides which chains balance drops, and which wrong chains `wrong_fraction` admits.

    The rows are in the order of the records. TagprError if records and prompts do not belong together.
    """
    requests = _requests(records, prompts, samples)
    batch = write_chains(requests, teacher, labeller, schema, rules)
    plain = _answers_without_profile(requests, empty_prompts or {}, teacher)
    verdicts = [_judge(item, rules, plain) for item in batch.items]
    right = {i for i, (_, reason) in enumerate(verdicts) if reason is None}
    evidence = _evidence(verdicts, teacher, rules, swap)
    verdicts = [_with_evidence(verdict, evidence.get(i), rules) for i, verdict in enumerate(verdicts)]
    verdicts = _without_repeats(verdicts)
    verdicts = _without_near_repeats(verdicts, rules)
    verdicts = _balance(verdicts, rules, seed)
    wrong = [i for i, (item, reason) in enumerate(verdicts) if reason in ANSWER_REASONS and item.response]
    n_kept = sum(reason is None for _, reason in verdicts)
    room = int(rules.wrong_fraction / (1 - rules.wrong_fraction) * n_kept + 0.5)
    candidates = [i for i in wrong if i not in evidence or uses_profile(evidence[i], rules.evidence)]
    admitted = set(Random(f"wrong/{seed}").sample(candidates, min(room, len(candidates))))
    rows, rejected = [], []
    for i, (item, reason) in enumerate(verdicts):
        if reason is None or i in admitted:
            rows.append(_row(item, reason is None))
        else:
            rejected.append(_rejected(item, reason))
    counts = Counter(one.reason.value for one in rejected)
    totals = {"asked": len(requests), "kept": len(rows), "kept_wrong": len(admitted)}
    totals |= {reason.value: counts[reason.value] for reason in Rejection}
    assert len(rows) + counts.total() == len(requests), "every chain has one outcome"
    return ChainSet(
        tuple(rows),
        tuple(rejected),
        tuple(_row(verdicts[i][0], False) for i in wrong),
        totals,
        batch.agreement,
        summary([evidence[i] for i in evidence if i in right], rules.evidence) if evidence else {},
        tuple(_row(item, True) for item, reason in verdicts if reason is Rejection.NO_EVIDENCE),
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
    """The teacher's answer to each prompt without a profile, or the reason why there is none."""
    bare: dict[Key, TeacherRequest] = {}
    for request in requests:
        prompt = prompts.get(request.record.id)
        if prompt is not None and prompt.task == request.record.task:
            bare[_key(request.record)] = TeacherRequest(request.record, prompt, foreign=True)
    replies = teacher.generate(list(bare.values())) if bare else []
    return dict(zip(bare, map(answer_of, replies), strict=True))


def _key(record: LampRecord) -> Key:
    return record.task, record.id


def _judge(item: Draft, rules: KeepRules, plain: Mapping[Key, str | Rejection]) -> Verdict:
    if item.reason is not None:
        return item, item.reason
    record = item.request.record
    return item, judge_answer(rules, record, item.answer, plain.get(_key(record)))


def _evidence(
    verdicts: Sequence[Verdict], teacher: Teacher, rules: KeepRules, swap: ProfileSwap | None
) -> dict[int, Evidence]:
    """Index -> evidence of each well-formed chain that had a profile; {} if the check is off."""
    if not rules.evidence.reads_words:
        return {}
    if swap is None:
        raise TagprError(f"keep.evidence.require is {rules.evidence.require!r}, and no other profiles were given")
    common = CommonClues(swap.pool.by_task, rules.evidence.common)
    # The cross-profile pairs ask with the same other user, so a cache pays for that answer once.
    candidates = CANDIDATES if rules.evidence.asks_teacher else 1
    evidence: dict[int, Evidence] = {}
    swapped: dict[int, LampRecord] = {}
    for i, (item, reason) in enumerate(verdicts):
        request = item.request
        if not request.prompt.item_ids or not (reason is None or (reason in ANSWER_REASONS and item.response)):
            continue
        other_user = swap.pool.swap(request.record, candidates)
        other = swap.shown(other_user[0]) if other_user else None
        evidence[i] = text_evidence(item.steps, request.record, request.items, other, common.of(request.record.task))
        if other_user:
            swapped[i] = other_user[0]
    if rules.evidence.asks_teacher:
        records = {_key(swapped[i]): swapped[i] for i in evidence if i in swapped and verdicts[i][1] is None}
        replies = teacher.generate([TeacherRequest(r, swap.make_prompt(r), foreign=True) for r in records.values()])
        answers = dict(zip(records, map(answer_of, replies), strict=True))
        for i in evidence:
            item = verdicts[i][0]
            answer = answers.get(_key(item.request.record))
            if isinstance(answer, str):
                evidence[i] = replace(evidence[i], changed=answer.strip() != item.answer.strip())
    return evidence


def _with_evidence(verdict: Verdict, evidence: Evidence | None, rules: KeepRules) -> Verdict:
    item, reason = verdict
    if reason is None and evidence is not None and not uses_profile(evidence, rules.evidence):
        return item, Rejection.NO_EVIDENCE
    return verdict


def _without_repeats(verdicts: Sequence[Verdict]) -> list[Verdict]:
    """Reject all but the first of equal responses to one prompt."""
    seen: set[Any] = set()
    result = []
    for item, reason in verdicts:
        key = (item.request.record.task, item.request.record.id, item.request.prompt.item_ids, item.response)
        repeat = bool(item.response) and key in seen
        seen.add(key)
        result.append((item, Rejection.DUPLICATE if repeat else reason))
    return result


def _without_near_repeats(verdicts: Sequence[Verdict], rules: KeepRules) -> list[Verdict]:
    """Reject all but the first of the chains with the same answer and nearly the same thought, within the rules'
    scope."""
    scope = rules.near_duplicates.scope
    if scope == "off":
        return list(verdicts)
    alive = [i for i, (_, reason) in enumerate(verdicts) if reason is None]
    groups = []
    for i in alive:
        item, record = verdicts[i][0], verdicts[i][0].request.record
        within = {"record": (record.id, item.request.prompt.item_ids), "user": record.user_id, "all": None}[scope]
        groups.append((record.task, item.answer, within))
    twins = near_duplicates(["".join(verdicts[i][0].steps) for i in alive], groups, rules.near_duplicates)
    dropped = {i for i, twin in zip(alive, twins, strict=True) if twin}
    return [(item, Rejection.NEAR_DUPLICATE if i in dropped else reason) for i, (item, reason) in enumerate(verdicts)]


def _balance(verdicts: Sequence[Verdict], rules: KeepRules, seed: int) -> list[Verdict]:
    alive = [i for i, (_, reason) in enumerate(verdicts) if reason is None]
    members = [
        Member(verdicts[i][0].request.record.task, verdicts[i][0].request.record.user_id, verdicts[i][0].tags)
        for i in alive
    ]
    stays = balanced(members, rules.balance, seed)
    dropped = {i for i, stay in zip(alive, stays, strict=True) if not stay}
    return [(item, Rejection.NOT_BALANCED if i in dropped else reason) for i, (item, reason) in enumerate(verdicts)]


def _row(item: Draft, correct: bool) -> ChainRow:
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


def _rejected(item: Draft, reason: Rejection) -> RejectedChain:
    record, text, detail = item.request.record, text_for_file(item.text), text_for_file(item.detail)
    return RejectedChain(record.id, record.task, record.user_id, item.request.sample, reason, text, detail)
