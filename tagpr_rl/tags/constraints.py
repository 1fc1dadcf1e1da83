"""How far a well-formed chain meets its schema: the `tag` reward and the faults behind it."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from tagpr_rl.tags.schema import MAX_STEPS, TagSchema
from tagpr_rl.tags.words import Plain, plain_tokens
from tagpr_rl.types import Step, TaggedTrace

DUPLICATE_JACCARD = 0.8
"""Two steps whose word-pair sets are at least this similar are near-duplicates."""
MAX_CHARS, MAX_WORDS = 8192, 512
"""How much of a step's beginning is compared."""

_WORD = re.compile(r"[^\W_]+")


class _Fault(Enum):
    WORDLESS = 0
    DUPLICATE = 1
    SURPLUS = 2
    LATE = 3


@dataclass(frozen=True, slots=True)
class TagParts:
    """What the `tag` reward is made of (`tag_parts`)."""

    coverage: float
    """In [0, 1]: how much of what the schema requires is there."""
    sound: float
    """In [0, 1]: share of the steps without a fault."""
    faults: tuple[str | None, ...]
    """Of each step: wordless, duplicate, surplus, late, or None."""
    score: float
    """In [0, 1]: `coverage * sound` in one division, so that equal fractions are equal floats."""


def tag_parts(trace: TaggedTrace, schema: TagSchema, plain: Plain | None = None) -> TagParts:
    """The `tag` reward in [0, 1] and its parts; the score is 1 if and only if `violations` is empty.

        coverage = sum_r min(useful_r, min_r) / sum_r min_r      over the required tags r
        sound    = steps without a fault / steps
        score    = coverage * sound                              (0 without steps)

    A step is at fault when it has no word, is a near-duplicate of an earlier step (whatever the tags), is
    over its tag's `max_count`, or is *late*: the first step of its tag, coming after a tag that it must come
    before. The first three are not *useful* and cover nothing; a late step covers, and costs. A schema
    without required tags has coverage 1.

    Why this form. Coverage alone leaves padding free, and a share of satisfied rules pays the empty chain,
    which breaks no order. The product gives 0 to no steps and to none useful. A junk step added to a chain
    raises the denominator of `sound` only, so it never raises the score. Deleting a step of a chain without
    faults cannot raise `coverage`, and `sound` is 1 already, so it never raises the score either. Optional
    tags earn nothing by being there, so there is nothing to collect by using all of them. What a step *says*
    is for the task reward and PRMU to judge, not for this one.

    Args:
        plain: `plain_tokens` of the steps' texts, if the caller has them already.

    Raises:
        ValueError: a tag that is not in the schema (a parsed trace never has one).
    """
    if not trace.steps:
        return TagParts(0.0, 0.0, (), 0.0)
    faults, _ = _judge(trace.steps, schema, plain)
    names = tuple(None if fault is None else fault.name.lower() for fault in faults)
    num_sound, num_steps = faults.count(None), len(faults)
    if not schema.required:  # the first useful step is never late, so the score is 0 only if none is useful
        return TagParts(1.0, num_sound / num_steps, names, num_sound / num_steps)
    useful = _useful_counts(trace.steps, faults)
    needed = covered = 0
    for name, least in schema.required:
        needed += least
        covered += min(useful.get(name, 0), least)
    score = covered * num_sound / (needed * num_steps)
    return TagParts(covered / needed, num_sound / num_steps, names, score)


def tag_score(trace: TaggedTrace, schema: TagSchema) -> float:
    """`tag_parts(...).score` alone."""
    return tag_parts(trace, schema).score


def violations(trace: TaggedTrace, schema: TagSchema) -> list[str]:
    """Every way in which the chain fails the schema, one sentence each; empty when it meets all of it.

    Raises:
        ValueError: a tag that is not in the schema.
    """
    if not trace.steps:
        return ["the chain has no steps"]
    faults, why = _judge(trace.steps, schema)
    messages = [f"step {index} <{trace.steps[index].tag}> {reason}" for index, reason in sorted(why.items())]
    useful = _useful_counts(trace.steps, faults)
    messages += [
        f"<{spec.name}> occurs {useful.get(spec.name, 0)} times as a useful step, at least {spec.min_count} required"
        for spec in schema.tags
        if useful.get(spec.name, 0) < spec.min_count
    ]
    return messages


def _useful_counts(steps: Sequence[Step], faults: Sequence[_Fault | None]) -> dict[str, int]:
    useful: dict[str, int] = {}
    for step, fault in zip(steps, faults, strict=True):
        if fault is None or fault is _Fault.LATE:
            useful[step.tag] = useful.get(step.tag, 0) + 1
    return useful


class _Likeness:
    """Which earlier step a step nearly repeats. Words and pairs are made when first needed, and once."""

    def __init__(self, steps: Sequence[Step]) -> None:
        self.steps = steps
        self._words: dict[int, list[str]] = {}
        self._prints: dict[int, tuple[set[str], frozenset[tuple[str, str]]]] = {}

    def words(self, index: int) -> list[str]:
        """The words of a step."""
        if index not in self._words:
            self._words[index] = _words(self.steps[index].text)
        return self._words[index]

    def twin(self, index: int, earlier: Sequence[int]) -> int | None:
        """The first of the steps `earlier` that step `index` nearly repeats."""
        bag, pairs = self._print(index)
        for other in earlier:
            other_bag, other_pairs = self._print(other)
            if bag == other_bag or _similar(pairs, other_pairs):
                return other
        return None

    def _print(self, index: int) -> tuple[set[str], frozenset[tuple[str, str]]]:
        if index not in self._prints:
            words = self.words(index)
            self._prints[index] = set(words), _word_pairs(words)
        return self._prints[index]


def _judge(
    steps: Sequence[Step], schema: TagSchema, plain: Plain | None = None
) -> tuple[list[_Fault | None], dict[int, str]]:
    """(each step's fault or None, step at fault -> the rest of the sentence that describes it).

    Steps are judged from left to right. Counts and order regard useful steps, likeness regards all earlier steps.
    Likeness is computed for few steps only: a word that no earlier step has begins a word pair that none has, a
    Jaccard index of .8 leaves room for a quarter as many unshared pairs as shared ones, and a step has at most
    words + 1 pairs. So a step in which more than a quarter of these begin with a new word repeats no earlier step.
    """
    faults: list[_Fault | None] = []
    reasons: dict[int, str] = {}
    counts: dict[str, int] = {}  # useful steps of each tag
    likeness: _Likeness | None = None
    worded: list[int] = []  # the steps so far that have a word
    plain = plain or plain_tokens([step.text for step in steps])
    vocabulary: set[str] = set() if plain is None else set(plain[1])  # marks count as old words
    tags = schema.by_name
    for index, step in enumerate(steps):
        tag = step.tag
        spec = tags.get(tag)
        if spec is None:
            raise ValueError(f"step {index}: tag {tag!r} is not in the schema {schema.version!r}")
        fault, reason = None, ""
        if index >= MAX_STEPS:
            fault, reason = _Fault.SURPLUS, f"is over the limit of {MAX_STEPS} steps"
        else:
            if plain is not None and len(tokens := plain[0][index]) <= MAX_WORDS and len(step.text) <= MAX_CHARS:
                words = tokens  # with marks, which the vocabulary has
            else:
                words = _words(step.text)
            n_before = len(vocabulary)
            vocabulary.update(words)
            twin = None
            if 4 * (len(vocabulary) - n_before) <= len(words) + 1:  # few new words, or none at all
                likeness = likeness or _Likeness(steps)
                if not likeness.words(index):
                    faults.append(_Fault.WORDLESS)
                    reasons[index] = "has no word"
                    continue
                twin = likeness.twin(index, worded)
            worded.append(index)
            count = counts.get(tag, 0)
            if twin is not None:
                fault, reason = _Fault.DUPLICATE, f"is a near-duplicate of step {twin}"
            elif count >= spec.max_count:
                fault, reason = _Fault.SURPLUS, f"is over the tag's max_count of {spec.max_count}"
            else:
                counts[tag] = count + 1
                if not count and not counts.keys().isdisjoint(spec.before):
                    fault = _Fault.LATE
                    reason = f"must come before <{next(name for name in spec.before if name in counts)}>"
        faults.append(fault)
        if fault is not None:
            reasons[index] = reason
    return faults, reasons


def _words(text: str) -> list[str]:
    """Lower-case letter and digit runs; width variants and invisible characters do not make a new word."""
    head = text[:MAX_CHARS]
    if not head.isascii():
        head = unicodedata.normalize("NFKC", head)
        head = "".join(char for char in head if unicodedata.category(char) != "Cf")
    return _WORD.findall(head.casefold())[:MAX_WORDS]


def _word_pairs(words: Sequence[str]) -> frozenset[tuple[str, str]]:
    """Neighbouring word pairs, with the text's two ends as words, so that a changed end counts like any."""
    return frozenset(zip(["", *words], [*words, ""], strict=True))


def _similar(a: frozenset[tuple[str, str]], b: frozenset[tuple[str, str]]) -> bool:
    # Jaccard can reach the threshold only if the sizes are that close; checked first, it is the cheap part.
    if min(len(a), len(b)) < DUPLICATE_JACCARD * max(len(a), len(b)):
        return False
    shared = len(a & b)
    return shared >= DUPLICATE_JACCARD * (len(a) + len(b) - shared)
