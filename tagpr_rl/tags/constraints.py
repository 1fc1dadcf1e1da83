"""How far a well-formed chain meets its schema: the `tag` reward and the faults behind it (formula ours)."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from enum import Enum

from tagpr_rl.tags.schema import TagSchema
from tagpr_rl.types import Step, TaggedTrace

DUPLICATE_JACCARD = 0.8
"""Two steps whose word-pair sets are at least this similar are near-duplicates."""
MAX_STEPS = 64
"""Steps after this many are surplus: a bound on the pairwise comparison."""
MAX_CHARS, MAX_WORDS = 8192, 512
"""How much of a step's beginning is compared."""

_WORD = re.compile(r"[^\W_]+")


class _Fault(Enum):
    WORDLESS = 0
    DUPLICATE = 1
    SURPLUS = 2
    LATE = 3


_Verdict = tuple[_Fault | None, str]
"""A step's fault, if any, and the rest of the sentence that describes it."""


def tag_score(trace: TaggedTrace, schema: TagSchema) -> float:
    """Score in [0, 1]: `coverage * sound`; 1 if and only if `violations` is empty. The formula is ours.

        coverage = sum_r min(useful_r, min_r) / sum_r min_r      over the required tags r
        sound    = steps without a fault / steps

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

    Raises:
        ValueError: a tag that is not in the schema (a parsed trace never has one).
    """
    if not trace.steps:
        return 0.0
    verdicts = _judge(trace.steps, schema)
    n_sound = sum(fault is None for fault, _ in verdicts)
    useful = _useful_counts(trace.steps, verdicts)
    needed = sum(spec.min_count for spec in schema.tags)
    if needed == 0:
        return n_sound / len(verdicts)  # the first useful step is never late, so 0 only if none is useful
    covered = sum(min(useful[spec.name], spec.min_count) for spec in schema.tags)
    return covered * n_sound / (needed * len(verdicts))  # one division: equal fractions are equal floats


def violations(trace: TaggedTrace, schema: TagSchema) -> list[str]:
    """Every way in which the chain fails the schema, one sentence each; empty when it meets all of it.

    Raises:
        ValueError: a tag that is not in the schema.
    """
    if not trace.steps:
        return ["the chain has no steps"]
    verdicts = _judge(trace.steps, schema)
    found = [
        f"step {index} <{step.tag}> {why}"
        for index, (step, (fault, why)) in enumerate(zip(trace.steps, verdicts, strict=True))
        if fault is not None
    ]
    useful = _useful_counts(trace.steps, verdicts)
    found += [
        f"<{spec.name}> occurs {useful[spec.name]} times as a useful step, at least {spec.min_count} required"
        for spec in schema.tags
        if useful[spec.name] < spec.min_count
    ]
    return found


def _useful_counts(steps: Sequence[Step], verdicts: Sequence[_Verdict]) -> Counter[str]:
    pairs = zip(steps, verdicts, strict=True)
    return Counter(step.tag for step, (fault, _) in pairs if fault in (None, _Fault.LATE))


def _judge(steps: Sequence[Step], schema: TagSchema) -> list[_Verdict]:
    """One verdict a step, left to right; counts and order see useful steps, likeness all earlier ones."""
    verdicts: list[_Verdict] = []
    seen: Counter[str] = Counter()
    prints: list[tuple[int, frozenset[str], frozenset[tuple[str, str]]]] = []
    for index, step in enumerate(steps):
        spec = schema.by_name.get(step.tag)
        if spec is None:
            raise ValueError(f"step {index}: tag {step.tag!r} is not in the schema {schema.version!r}")
        if index >= MAX_STEPS:
            verdicts.append((_Fault.SURPLUS, f"is over the limit of {MAX_STEPS} steps"))
            continue
        words = _words(step.text)
        if not words:
            verdicts.append((_Fault.WORDLESS, "has no word"))
            continue
        bag, pairs = frozenset(words), _word_pairs(words)
        twins = (at for at, bag_, pairs_ in prints if bag == bag_ or _similar(pairs, pairs_))
        twin = next(twins, None)
        prints.append((index, bag, pairs))
        if twin is not None:
            verdicts.append((_Fault.DUPLICATE, f"is a near-duplicate of step {twin}"))
            continue
        if seen[step.tag] >= spec.max_count:
            verdicts.append((_Fault.SURPLUS, f"is over the tag's max_count of {spec.max_count}"))
            continue
        late = [] if seen[step.tag] else [name for name in spec.before if seen[name]]
        why = f"must come before <{late[0]}>" if late else ""
        verdicts.append((_Fault.LATE if late else None, why))
        seen[step.tag] += 1
    return verdicts


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
