"""Makes four responses to one record without a model: a good, a mediocre, a malformed and a hacked one."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from tagpr_rl.chains.keep import KeepRules
from tagpr_rl.chains.labellers.label import ScriptedLabeller
from tagpr_rl.chains.teachers.heuristic import HeuristicTeacher
from tagpr_rl.chains.teachers.interface import Teacher, TeacherRequest
from tagpr_rl.chains.teachers.scripted import ScriptedTeacher
from tagpr_rl.chains.teachers.write import write_chains
from tagpr_rl.data.tasks import TASKS
from tagpr_rl.reward.task import task_reward
from tagpr_rl.tags.grammar import neutralise, parse, render
from tagpr_rl.tags.schema import TagSchema
from tagpr_rl.types import LampRecord, Prompt, Step, TaggedTrace

QUOTED_WORDS = 14
CUT_AFTER = 8
TEACHER_SAMPLES = 8
_PLAIN_TAGS = ("examine_examples", "infer_preference", "apply_preference")


@dataclass(frozen=True, slots=True)
class CannedReply:
    """One response with its label."""

    label: str
    """A word, a colon, and how the response was made."""
    text: str


def canned_replies(record: LampRecord, prompt: Prompt, schema: TagSchema, *, scripted: bool) -> list[CannedReply]:
    """A good, a mediocre, a malformed and a hacked response to this record.

    The good one is a chain of the scripted teacher for the embedded world (`scripted`), and of the heuristic teacher
    otherwise. If that chain is wrong, or the schema lacks the labeller's tags, the good response quotes the first
    retrieved item and copies the gold answer.
    """

    def reward(trace: TaggedTrace) -> float:
        return task_reward(record.task, trace.answer, record.gold or "")

    traces = _teacher_traces(record, prompt, schema, ScriptedTeacher() if scripted else HeuristicTeacher())
    good = max(traces, key=reward, default=None)
    source = f"the {'scripted' if scripted else 'heuristic'} teacher's chain"
    if good is None or (not scripted and reward(good) < 1.0):
        good, source = _quoted(record, prompt, schema), "quotes an item, gold answer copied"
    wrong = _teacher_traces(record, prompt, schema, ScriptedTeacher(error_rate=1.0)) if scripted else []
    worst = min(wrong, key=reward, default=good)
    bad = worst if reward(worst) < reward(good) else replace(good, answer=_other_answer(record.task, good.answer))
    whole = render(good)
    opening = f"<{good.steps[-1].tag}>"
    phrase = "the user likes what the user likes"
    stuffed = TaggedTrace(tuple(Step(tag, phrase) for tag in schema.names), bad.answer)
    return [
        CannedReply(f"good: {source}", whole),
        CannedReply("mediocre: no first step, wrong answer", render(replace(bad, steps=bad.steps[1:] or bad.steps))),
        CannedReply("malformed: cut in its last step", whole[: whole.rindex(opening) + len(opening) + CUT_AFTER]),
        CannedReply("hacked: every tag, one empty phrase", render(stuffed)),
    ]


def _teacher_traces(record: LampRecord, prompt: Prompt, schema: TagSchema, teacher: Teacher) -> list[TaggedTrace]:
    """Some tagged chains of the teacher, which draws at random if a profile is ambiguous; [] if the schema lacks its
    tags."""
    rules = KeepRules(min_tag_score=0.0)
    requests = [TeacherRequest(record, prompt, sample) for sample in range(TEACHER_SAMPLES)]
    drafts = write_chains(requests, teacher, ScriptedLabeller(), schema, rules).items
    traces = [parse(draft.response, schema).trace for draft in drafts]
    return [trace for trace in traces if trace is not None]


def _other_answer(task: str, answer: str) -> str:
    """Another label of the task; for generation the answer's last word."""
    return next((label for label in TASKS[task].labels if label != answer), answer.split()[-1])


def _quoted(record: LampRecord, prompt: Prompt, schema: TagSchema) -> TaggedTrace:
    """A chain that quotes the first retrieved item, with those of _PLAIN_TAGS that the schema has."""
    shown = {item.id: item for item in record.profile}
    texts = [" ".join(shown[item_id].fields.values()) for item_id in prompt.item_ids[:1]]
    quote = neutralise(" ".join(" ".join(texts).split()[:QUOTED_WORDS])) or "no item"
    answer = neutralise(record.gold or "").strip() or "unknown"
    lines = (
        f"the user's history shows: {quote}",
        "the user prefers what this item shows",
        f"for this question that gives {answer}",
    )
    steps = [Step(tag, text) for tag, text in zip(_PLAIN_TAGS, lines, strict=True) if tag in schema.by_name]
    return TaggedTrace(tuple(steps) or (Step(schema.names[0], lines[0]),), answer)


def stand_in_prmu(response: str, record: LampRecord) -> float:
    """A score in [0, 1] in place of PRMU's, for the walk: the share of the response's distinct words in the profile."""

    def words(text: str) -> set[str]:
        return set(re.findall(r"[a-z]{3,}", text.lower()))

    own = words(response)
    profile = words(" ".join(text for item in record.profile for text in item.fields.values()))
    return len(own & profile) / len(own) if own else 0.0
