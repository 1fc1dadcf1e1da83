"""tag_score: hand-derived values, and what a policy could try to get more than it deserves."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tagpr_rl.tags.constraints import tag_score, violations
from tagpr_rl.tags.schema import MAX_STEPS, TagSchema, TagSpec, default_schema
from tagpr_rl.types import Step, TaggedTrace

SCHEMA = default_schema()
EX, IP, AP, CO = "examine_examples", "infer_preference", "apply_preference", "conclude"
# Ten texts that share no word.
TEXTS = [" ".join(f"{stem}{number}" for number in range(4)) for stem in "abcdefghij"]


def chain(*tags: str, texts: list[str] | None = None) -> TaggedTrace:
    return TaggedTrace(tuple(Step(tag, text) for tag, text in zip(tags, texts or TEXTS, strict=False)), "4")


def longest() -> TaggedTrace:
    return chain(EX, "identify_patterns", "understand_task", IP, "compare_options", "weigh_conflict", AP,
                 "check_answer", CO)  # fmt: skip


@pytest.mark.parametrize(
    ("trace", "score", "n_violations"),
    [
        (chain(EX, IP, AP), 1.0, 0),
        (longest(), 1.0, 0),
        (chain(EX, EX, EX, IP, AP), 1.0, 0),
        (chain(EX, IP, AP, EX), 1.0, 0),  # looking again later is no fault: order is about first steps
        (TaggedTrace((), "4"), 0.0, 1),
        (chain(EX, IP), 2 / 3, 1),
        (chain(EX), 1 / 3, 2),
        (chain(CO), 0.0, 3),  # useful, but none of the required three
        (chain(EX, IP, AP, CO, CO), 4 / 5, 1),  # surplus: max_count 1
        (chain(EX, AP, IP), 2 / 3, 1),  # all three covered, one of three late
        (chain(IP, AP, EX), 2 / 3, 1),
        (chain(AP, IP, EX), 1 / 3, 2),
        (chain(AP, EX), 2 / 3 * 1 / 2, 2),
        (chain(EX, IP, AP, texts=["same text", "same text", "same text"]), 1 / 3 * 1 / 3, 4),
        (chain(EX, IP, AP, texts=["...", "--", "!"]), 0.0, 6),
        (chain(EX, IP, AP, texts=["a b", "…", "c d"]), 2 / 3 * 2 / 3, 2),
    ],
)
def test_scores_by_hand(trace: TaggedTrace, score: float, n_violations: int) -> None:
    assert tag_score(trace, SCHEMA) == pytest.approx(score, abs=1e-12)
    assert len(violations(trace, SCHEMA)) == n_violations, violations(trace, SCHEMA)


def test_required_more_than_once() -> None:
    schema = TagSchema("1", (TagSpec("a", "p", True, 3, 3), TagSpec("b", "p", True, 1, 1), TagSpec("c", "p")))
    assert tag_score(chain("a", "a", "b"), schema) == pytest.approx(3 / 4)
    assert tag_score(chain("a", "a", "a", "b"), schema) == 1.0
    expected = "<a> occurs 2 times as a useful step, at least 3 required"
    assert violations(chain("a", "a", "b"), schema) == [expected]


def test_schema_without_required_tags() -> None:
    schema = TagSchema("1", (TagSpec("a", "p"), TagSpec("b", "p")))
    assert tag_score(chain("b"), schema) == 1.0
    assert tag_score(TaggedTrace((), "4"), schema) == 0.0
    assert tag_score(chain("a", texts=["?"]), schema) == 0.0
    assert tag_score(chain("a", "b", texts=["x y", "?"]), schema) == 0.5


@pytest.mark.parametrize(
    ("first", "second", "duplicate"),
    [
        ("The user likes space.", "the USER likes: space", True),  # case and marks
        ("the user likes space", "space the likes user", True),  # same words, shuffled
        ("the user likes space", "the user likes space space space", True),  # same words, repeated
        ("the user likes space", "the user likes crime", False),
        ("4", "5", False),
        ("comedy", "comedy", True),
        ("the user likes space", "the us\u200ber likes space", True),  # invisible character
        ("the user likes space", "ｔｈｅ user likes space", True),  # full-width letters
        # n words with an inner word changed share n-1 of n+3 pairs: 16/20 is at the threshold, 15/19 below.
        (" ".join(map(str, range(17))), " ".join(map(str, [*range(8), 99, *range(9, 17)])), True),
        (" ".join(map(str, range(16))), " ".join(map(str, [*range(8), 99, *range(9, 16)])), False),
        # One word appended to n shares n of n+3 pairs: 12/15 is at the threshold, 11/14 below.
        ("1 2 3 4 5 6 7 8 9 10 11 12", "1 2 3 4 5 6 7 8 9 10 11 12 13", True),
        ("1 2 3 4 5 6 7 8 9 10 11", "1 2 3 4 5 6 7 8 9 10 11 12", False),
    ],
)
def test_near_duplicates(first: str, second: str, duplicate: bool) -> None:
    actual = violations(chain(EX, IP, AP, texts=[first, second, "wholly other words"]), SCHEMA)
    assert any("near-duplicate of step 0" in line for line in actual) == duplicate


def test_violations_name_step_and_reason() -> None:
    texts = ["so it is", "saw one", "saw one", "?", "likes short"]
    trace = chain(CO, EX, EX, "compare_options", IP, texts=texts)
    assert violations(trace, SCHEMA) == [
        "step 1 <examine_examples> must come before <conclude>",
        "step 2 <examine_examples> is a near-duplicate of step 1",
        "step 3 <compare_options> has no word",
        "step 4 <infer_preference> must come before <conclude>",
        "<apply_preference> occurs 0 times as a useful step, at least 1 required",
    ]


def test_unknown_tag_is_a_caller_mistake() -> None:
    for function in (tag_score, violations):
        with pytest.raises(ValueError, match="'other' is not in the schema"):
            function(chain("other"), SCHEMA)


def test_step_limit() -> None:
    schema = TagSchema("1", (TagSpec("a", "p", True, 1, 10_000),))
    steps = tuple(Step("a", f"word{index} other{index}") for index in range(2 * MAX_STEPS))
    assert tag_score(TaggedTrace(steps[:MAX_STEPS], "4"), schema) == 1.0
    assert tag_score(TaggedTrace(steps, "4"), schema) == 0.5


def valid_chain(seed: int) -> TaggedTrace:
    """A random chain without faults: 3 to 9 steps, random optional tags and counts, in a valid order."""
    rng = random.Random(seed)
    tags = [EX, IP, AP]
    for spec in SCHEMA.tags:
        extra = rng.randint(0, spec.max_count - (spec.name in tags))
        tags += [spec.name] * min(extra, 9 - len(tags))
    tags.sort(key=[step.tag for step in longest().steps].index)
    return chain(*tags, texts=rng.sample(TEXTS, len(tags)))


def without(trace: TaggedTrace, index: int) -> TaggedTrace:
    return TaggedTrace(trace.steps[:index] + trace.steps[index + 1 :], trace.answer)


def inserted(trace: TaggedTrace, index: int, step: Step) -> TaggedTrace:
    return TaggedTrace((*trace.steps[:index], step, *trace.steps[index:]), trace.answer)


seeds = st.integers(0, 10**6)
any_text = st.one_of(st.sampled_from([*TEXTS, "...", "a0 a1 a2"]), st.text())
any_steps = st.lists(st.builds(Step, st.sampled_from(SCHEMA.names), any_text), max_size=12)


@given(seeds, st.data())
def test_deleting_any_steps_of_a_valid_chain_never_raises_the_score(seed: int, data: st.DataObject) -> None:
    trace = valid_chain(seed)
    assert violations(trace, SCHEMA) == []
    assert tag_score(trace, SCHEMA) == 1.0
    while trace.steps:  # every chain on the way has no fault but missing tags
        before = tag_score(trace, SCHEMA)
        scores = [tag_score(without(trace, index), SCHEMA) for index in range(len(trace.steps))]
        assert max(scores) <= before
        trace = without(trace, data.draw(st.integers(0, len(trace.steps) - 1)))
        if any(line.startswith("step") for line in violations(trace, SCHEMA)):
            return  # the cut made another step late; that chain is no longer free of faults
    assert tag_score(trace, SCHEMA) == 0.0


@given(seeds, st.data())
def test_deleting_the_only_step_of_a_required_tag_lowers_it(seed: int, data: st.DataObject) -> None:
    trace = valid_chain(seed)
    tags = [step.tag for step in trace.steps]
    singles = [index for index, tag in enumerate(tags) if tags.count(tag) == 1 and tag in (EX, IP, AP)]
    for index in singles:
        assert tag_score(without(trace, index), SCHEMA) <= 2 / 3


@given(any_steps)
def test_range_and_agreement_with_violations(steps: list[Step]) -> None:
    trace = TaggedTrace(tuple(steps), "4")
    score = tag_score(trace, SCHEMA)
    assert 0.0 <= score <= 1.0
    assert (score == 1.0) == (violations(trace, SCHEMA) == [])


@given(any_steps, st.data())
def test_padding_never_raises_the_score(steps: list[Step], data: st.DataObject) -> None:
    trace = TaggedTrace(tuple(steps), "4")
    score = tag_score(trace, SCHEMA)
    at = data.draw(st.integers(0, len(steps)))
    tag = data.draw(st.sampled_from(SCHEMA.names))
    padded = [inserted(trace, at, Step(tag, "... !"))]
    if steps:
        original = data.draw(st.integers(0, len(steps) - 1))
        after = data.draw(st.integers(original + 1, len(steps)))
        padded.append(inserted(trace, len(steps), Step(tag, steps[original].text)))  # any copy at the end
        padded.append(inserted(trace, after, steps[original]))  # the step again, anywhere after itself
    for worse in padded:
        assert tag_score(worse, SCHEMA) <= score
        assert score == 0.0 or tag_score(worse, SCHEMA) < score


@given(st.lists(st.sampled_from(SCHEMA.names), min_size=1, max_size=12), st.text(max_size=40))
def test_one_text_under_many_tags_earns_one_step_at_most(tags: list[str], text: str) -> None:
    trace = TaggedTrace(tuple(Step(tag, text) for tag in tags), "4")
    assert tag_score(trace, SCHEMA) <= 1 / 3 / len(tags) + 1e-12
