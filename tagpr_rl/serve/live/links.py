"""Which items of a user's history the steps of a response draw on, by the chains' own evidence rule."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tagpr_rl.chains.evidence import CommonClues, EvidenceRules, item_evidence
from tagpr_rl.data.tasks import TASKS
from tagpr_rl.prompts.prompt import item_fields
from tagpr_rl.report.page.traces import Traces
from tagpr_rl.types import LampRecord, ProfileItem, TagprError


def step_links(traces: Traces, index: int) -> list[list[list[Any]]]:
    """For each step of trace `index`: [place of an item in the prompt, words that the step has of it], sorted.

    A word that most users of `traces` have in their histories is no evidence, nor is one of the question. IndexError
    for a trace that does not exist.
    """
    if index < 0:
        raise IndexError(index)
    trace = traces.traces[index]
    record = traces.groups[trace["g"]][2]
    task, _, _, _ = traces.records[record]
    if task not in TASKS:
        return []
    _, lines, question = traces.prompts[record]
    steps = [text for kind, text in trace["p"] if kind >= 0]
    common = CommonClues(_profiles(traces, task), EvidenceRules().common).of(task)
    found = item_evidence(steps, task, asked(task, question), items_of(task, lines), common)
    return [[[item, sorted(words)] for item, words in step.items()] for step in found]


def asked(task: str, question: str) -> str:
    """What the question is about; the whole of it if the task's own words are not there as its template has them."""
    try:
        return TASKS[task].query(LampRecord("", task, "", "", question, ()))
    except TagprError:
        return question


def items_of(task: str, lines: Sequence[str]) -> list[ProfileItem]:
    """The items that a prompt shows as `lines`; a line that the task's template does not explain is all text."""
    spec = TASKS[task]
    empty = dict.fromkeys(spec.item_keys, "")
    text = next(key for key in spec.item_keys if key != spec.label_key)
    return [ProfileItem(str(i), {**empty, **(item_fields(task, line) or {text: line})}) for i, line in enumerate(lines)]


def _profiles(traces: Traces, task: str) -> dict[str, list[LampRecord]]:
    """The task -> a record of each user on the page, with the items that the prompt shows."""
    users: dict[str, LampRecord] = {}
    for (own, _, user, _), (_, lines, _) in zip(traces.records, traces.prompts, strict=True):
        if own == task and user not in users and lines:
            users[user] = LampRecord("", task, "", user, "", tuple(items_of(task, lines)))
    return {task: list(users.values())}
