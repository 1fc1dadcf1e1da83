"""A rule-based teacher for real LaMP questions, for runs without a language model as teacher.

It answers from the profile items in the prompt alone: from the items with the most shared words, their labels, their
mean score, or with a title of the usual length made of the input's own words. Its answers are weak, but every chain
quotes the items that it used.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence

from tagpr_rl.chains.client.chat import Reply
from tagpr_rl.chains.teachers.interface import TeacherRequest
from tagpr_rl.data.tasks import TASKS, TaskSpec
from tagpr_rl.reward.task import rating_of
from tagpr_rl.tags.grammar import neutralise
from tagpr_rl.types import LampRecord

QUOTE_WORDS = 12
"""Largest number of words quoted from one item."""

_WORD = re.compile(r"[a-z0-9]+")
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")
_COMMON = frozenset(
    re.findall(
        "[a-z]+",
        "a an and are as at be but by for from has have he her his i in is it its my not of on or our she so that the "
        "their they this to was we were what which who will with you your",
    )
)
_NOTHING = ("the history is empty, so no example can be quoted", "the user prefers nothing that we know of")


def words_of(text: str) -> Counter[str]:
    """Lower-case content words of a text, counted."""
    return Counter(word for word in _WORD.findall(text.lower()) if word not in _COMMON)


def similarity(a: Counter[str], b: Counter[str]) -> float:
    """Dice overlap of two word bags, in [0, 1]."""
    total = sum(a.values()) + sum(b.values())
    return 2 * sum((a & b).values()) / total if total else 0.0


def quote(text: str) -> str:
    """The first words of a text on one line, in quotation marks, without markup or inner quotation marks."""
    words = neutralise(text).replace('"', "'").split()
    return '"' + " ".join(words[:QUOTE_WORDS]) + ("..." if len(words) > QUOTE_WORDS else "") + '"'


class HeuristicTeacher:
    """Deterministic: all samples of a question have the same text, and all but the first are dropped as duplicates."""

    name = "heuristic"
    prompts: Mapping[str, str] = {}

    def generate(self, requests: Sequence[TeacherRequest]) -> list[Reply]:
        """One chain per request, for any task of `data.tasks.TASKS`."""
        return [Reply(self._one(request)) for request in requests]

    def _one(self, request: TeacherRequest) -> str:
        return chain_text(*heuristic_chain(request.record, [item.fields for item in request.items]))


def heuristic_chain(record: LampRecord, items: Sequence[Mapping[str, str]]) -> tuple[list[str], str]:
    """(steps, answer) from the fields of the items that are shown; without items a fallback of the task."""
    spec = TASKS[record.task]
    if spec.name == "LaMP_1":
        return _choose_reference(record, items)
    if spec.kind == "classification":
        return _choose_label(record, spec, items)
    if spec.kind == "rating":
        return _choose_rating(record, spec, items)
    return _write_text(record, spec, items)


def chain_text(steps: Sequence[str], answer: str) -> str:
    """A teacher's text: a step a line, then the answer, all without markup."""
    return "\n".join(neutralise(" ".join(line.split())) for line in (*steps, f"Answer: {answer}"))


def _nearest(text: str, spec: TaskSpec, items: Sequence[Mapping[str, str]]) -> list[Mapping[str, str]]:
    """Items by similarity of their text to `text`, nearest first; ties keep the prompt's order."""
    bag = words_of(text)
    return sorted(items, key=lambda fields: -similarity(bag, words_of(_text(spec, fields))))


def _text(spec: TaskSpec, fields: Mapping[str, str]) -> str:
    return " ".join(fields[key] for key in spec.text_keys)


def _choose_reference(record: LampRecord, items: Sequence[Mapping[str, str]]) -> tuple[list[str], str]:
    """LaMP_1: the reference that shares more words with the user's papers; [1] on a tie."""
    title, *references = record.input.split('"')[1::2][:3]
    bags = [words_of(_text(TASKS["LaMP_1"], fields)) for fields in items]
    scores = [sum(similarity(words_of(reference), bag) for bag in bags) for reference in references]
    best = int(len(scores) > 1 and scores[1] > scores[0])
    answer = f"[{best + 1}]"
    if items:
        near = max(items, key=lambda f: similarity(words_of(references[best]), words_of(_text(TASKS["LaMP_1"], f))))
        evidence = (
            f"the user wrote {quote(near['title'])}",
            f"the user prefers work that shares the words of {quote(references[best])}",
        )
    else:
        evidence = _NOTHING
    return [
        f"the question asks which reference fits the paper {quote(title)}",
        *evidence,
        f"so reference {answer} is the nearer one",
    ], answer


def _choose_label(record: LampRecord, spec: TaskSpec, items: Sequence[Mapping[str, str]]) -> tuple[list[str], str]:
    """Label of the nearest item; without a shared word the most frequent label; without items the first label."""
    key = str(spec.label_key)
    query = spec.query(record)
    task = f"the question asks for one label for {quote(query)}"
    if not items:
        return [task, *_NOTHING, f"so we fall back on {spec.labels[0]}"], spec.labels[0]
    near = _nearest(query, spec, items)[0]
    if similarity(words_of(query), words_of(_text(spec, near))) > 0:
        label, why = near[key], "for things like this one"
    else:
        label, why = Counter(fields[key] for fields in items).most_common(1)[0][0], "more than any other label"
        near = next(fields for fields in items if fields[key] == label)
    return [
        task,
        f"the user gave the label {quote(near[key])} to {quote(_text(spec, near))}",
        f"the user prefers {label} {why}",
        f"so {label} fits here",
    ], label


def _choose_rating(record: LampRecord, spec: TaskSpec, items: Sequence[Mapping[str, str]]) -> tuple[list[str], str]:
    """Mean score of the items, weighted by similarity (plus a little), rounded half up; 5 without items."""
    query = spec.query(record)
    task = f"the question asks for the score of {quote(query)}"
    items = [fields for fields in items if rating_of(fields["score"]) is not None]
    if not items:
        return [task, *_NOTHING, "so we fall back on 5"], "5"
    bag = words_of(query)
    weights = [0.1 + similarity(bag, words_of(_text(spec, fields))) for fields in items]
    mean = sum(w * (rating_of(f["score"]) or 0.0) for w, f in zip(weights, items, strict=True)) / sum(weights)
    score = str(min(5, max(1, int(mean + 0.5))))
    shown = ", ".join(f"{f['score']} to {quote(f['text'])}" for f in _nearest(query, spec, items)[:2])
    return [
        task,
        f"the user gave {shown}",
        f"the user prefers scores around {mean:.1f}",
        f"so the score is {score}",
    ], score


def _write_text(record: LampRecord, spec: TaskSpec, items: Sequence[Mapping[str, str]]) -> tuple[list[str], str]:
    """Titles: the beginning of the input's most central sentence, as long as the user's titles are on average.
    Tweets: the input itself."""
    query = neutralise(spec.query(record))
    key = str(spec.label_key)
    task = f"the question asks for a text on {quote(query)}"
    mean = round(sum(len(fields[key].split()) for fields in items) / len(items)) if items else 8
    length = max(3, mean)
    bag = words_of(query)
    sentences = [s for s in _SENTENCE_END.split(query) if s.split()] or [query]
    central = max(sentences, key=lambda sentence: sum(bag[word] for word in set(words_of(sentence))) ** 0.5)
    answer = query if spec.name == "LaMP_7" else " ".join(central.split()[:length]).rstrip(".,;:!?")
    if not items:
        return [task, *_NOTHING, "so we keep the words of the text"], answer
    near = _nearest(query, spec, items)[0]
    return [
        task,
        f"the user wrote {quote(near[key])}",
        f"the user prefers texts of about {length} words",
        f"so the text keeps the words {quote(answer)}",
    ], answer
