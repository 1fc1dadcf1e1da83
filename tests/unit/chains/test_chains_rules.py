"""The rules of the factory one by one: segmentation, agreement, near-duplicates, balance, evidence."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import cohen_kappa_score

from tagpr_rl.chains.agreement import compare
from tagpr_rl.chains.balance import BalanceRules, Member, balanced, cap_for
from tagpr_rl.chains.evidence import (
    CommonClues,
    Evidence,
    EvidenceRules,
    ProfilePool,
    summary,
    text_evidence,
    uses_profile,
)
from tagpr_rl.chains.segment import reassembles, segment, split_answer
from tagpr_rl.chains.similar import SimilarRules, jaccard, near_duplicates, shingles
from tagpr_rl.data.tasks import TASKS
from tagpr_rl.types import LampRecord, ProfileItem

PIECES = st.sampled_from(
    ["a", "He likes it. ", "1. ", "- ", "* ", "\n", "\r\n", "\n\n", "```\n", "~~~\n", "x = 1; y\n", "e.g. ", "Dr. ",
     "。", "？", "好的", "\u2028", "\t", "é", "e\u0301", "😀", "(2) ", "---\n", "...", "Mr. X said \"no.\" ", "  ", "5"]
)  # fmt: skip


@given(st.lists(PIECES, max_size=60).map("".join), st.integers(1, 4), st.integers(4, 15))
@settings(max_examples=300, deadline=None)
def test_steps_are_the_thought_in_pieces(thought, least, most):
    steps = segment(thought, least, most)
    assert steps == segment(thought, least, most)
    assert len(steps) <= most
    if not thought.strip():
        assert steps == []
        return
    assert reassembles(steps, thought)
    assert all(step.strip() for step in steps)


@given(st.text(max_size=300))
@settings(max_examples=200, deadline=None)
def test_no_text_breaks_the_segmenter(text):
    assert "".join(segment(text)) == (text if text.strip() else "")
    parts = split_answer(text)
    assert parts is None or all(part.strip() for part in parts)


def test_lists_code_and_abbreviations_stay_whole():
    assert segment("1. Look\n2. Think\n3. Say") == ["1. Look\n", "2. Think\n", "3. Say"]
    assert segment("First. 1. Look. 2. Say.") == ["First. ", "1. Look. ", "2. Say."]
    assert segment("He likes e.g. soap. So Dr. Who fits. Yes.") == ["He likes e.g. soap. ", "So Dr. Who fits. ", "Yes."]
    code = "```python\nx = 1\n\ny = 2\n```\n"
    assert segment(f"One\n{code}Two\nThree") == ["One\n", code, "Two\n", "Three"]
    assert segment("One\n```\nTwo\nThree") == ["One\n", "```\nTwo\n", "Three"]  # an open fence is no fence
    assert segment("a\r\nb\r\nc") == ["a\r\n", "b\r\n", "c"]
    assert segment("他喜欢。她也喜欢！所以？") == ["他喜欢。", "她也喜欢！", "所以？"]


def test_segmenting_is_fast_on_hostile_text():
    for text in ("x\n" * 4000, "```a\n" * 4000, "-" * 20000 + "x", "a. " * 4000):
        assert 1 <= len(segment(text)) <= 15


def test_the_visible_part_after_a_native_thought_counts_when_it_has_steps():
    assert split_answer("<think>long</think>\none\ntwo\nthree\nAnswer: a") == ("one\ntwo\nthree", "a")
    assert split_answer("<think>one\ntwo</think>So:\nAnswer: a") == ("one\ntwo", "a")


def test_reassembly_is_byte_by_byte():
    assert reassembles(["a\r\n", "b"], "a\r\nb")
    assert not reassembles(["a\n", "b"], "a\r\nb")
    assert not reassembles(["\ud800"], "\ud800")


TAGS = ("a", "b", "c", "d")
CHAINS = st.lists(st.lists(st.tuples(st.sampled_from(TAGS[:3]), st.sampled_from(TAGS[:3])), min_size=1), min_size=1)


@given(CHAINS)
@settings(max_examples=200, deadline=None)
def test_kappa_is_scikit_learns(chains):
    actual = compare([tuple(zip(*chain, strict=True)) for chain in chains], TAGS)
    first, second = zip(*(pair for chain in chains for pair in chain), strict=True)
    assert actual.chains == len(chains)
    assert actual.steps == len(first)
    assert actual.same == sum(a == b for a, b in zip(first, second, strict=True))
    assert actual.whole == sum(all(a == b for a, b in chain) for chain in chains)
    assert sum(n for row in actual.confusion.values() for n in row.values()) == actual.steps
    if len({*first, *second}) > 1:  # with one tag only scikit-learn says nan, we say 1
        assert actual.kappa == pytest.approx(cohen_kappa_score(first, second))
    for tag in TAGS:
        one, two = [t == tag for t in first], [t == tag for t in second]
        if not any(one + two):
            assert actual.by_tag[tag] is None
        elif not all(one + two):
            assert actual.by_tag[tag] == pytest.approx(cohen_kappa_score(one, two))


def test_no_chain_labelled_twice_has_no_kappa():
    assert compare([], TAGS).kappa is None


WORDS = st.lists(st.sampled_from("abcde"), max_size=12).map(" ".join)


@given(st.lists(st.tuples(WORDS, st.sampled_from("xy")), max_size=25), st.sampled_from([0.3, 0.5, 0.75, 0.9, 1.0]))
@settings(max_examples=200, deadline=None)
def test_near_duplicates_are_those_of_brute_force(items, threshold):
    texts, groups = [t for t, _ in items], [g for _, g in items]
    sets = [shingles(text, 2) for text in texts]
    kept: list[int] = []
    expected = []
    for i in range(len(texts)):
        twin = any(groups[i] == groups[j] and jaccard(sets[i], sets[j]) >= threshold for j in kept)
        expected.append(twin)
        kept += [] if twin else [i]
    assert near_duplicates(texts, groups, SimilarRules("all", threshold, 2)) == expected
    left = [sets[i] for i, twin in enumerate(expected) if not twin]
    if len(set(groups)) == 1:
        assert all(jaccard(a, b) < threshold for a, b in combinations(left, 2))


def test_jaccard_by_hand():
    # {ab, bc, cd} and {ab, bc, ce}: 2 common of 4
    assert jaccard(shingles("a b c d", 2), shingles("A b, c e", 2)) == 0.5


@given(st.lists(st.integers(1, 60), min_size=1, max_size=6), st.floats(0.05, 1.0))
@settings(max_examples=200, deadline=None)
def test_the_cap_is_the_largest_that_meets_the_share(sizes, share):
    share = max(share, 1 / len(sizes))
    fits = [c for c in range(1, max(sizes) + 1) if c <= share * sum(min(n, c) for n in sizes) + 1e-9]
    assert cap_for(sizes, share) == max(fits)


def test_balance_keeps_rare_tags_and_caps_users_tasks_and_patterns():
    members = [Member("A", f"u{i % 4}", ("x", "y")) for i in range(40)] + [Member("A", "u0", ("z",))]
    members += [Member("B", f"u{i % 4}", ("x",)) for i in range(10)]

    def left(rules: BalanceRules, seed: int = 0) -> list[Member]:
        return [m for m, stays in zip(members, balanced(members, rules, seed), strict=True) if stays]

    assert left(BalanceRules()) == members
    per_user = left(BalanceRules(max_per_user=3))
    assert Counter(m.user_id for m in per_user) == {f"u{i}": 3 for i in range(4)}
    assert ("z",) in [m.tags for m in per_user]  # the only chain with this tag stays, whatever the seed
    assert all(("z",) in [m.tags for m in left(BalanceRules(max_per_user=1), seed)] for seed in range(5))
    assert Counter(m.task for m in left(BalanceRules(max_task_share=0.6))) == {"A": 15, "B": 10}
    assert Counter(m.task for m in left(BalanceRules(max_task_share=0.1))) == {"A": 10, "B": 10}
    # x-y, x and z: a cap of c chains each gives c / (c + 10 + 1) <= 0.5 up to c = 11
    assert Counter(m.tags for m in left(BalanceRules(max_pattern_share=0.5)))["x", "y"] == 11
    rules = BalanceRules(max_per_user=5, max_task_share=0.7)
    assert balanced(members, rules, 1) == balanced(members, rules, 1) != balanced(members, rules, 2)


def rating(user: str, *items: tuple[str, str], text: str = "new soap") -> LampRecord:
    profile = tuple(ProfileItem(f"{user}{i}", {"text": t, "score": s}) for i, (t, s) in enumerate(items))
    return LampRecord(f"q-{user}", "LaMP_3", "train", user, TASKS["LaMP_3"].make_input(text=text), profile, "4")


ANNA = rating("anna", ("soap smells", "4"), ("loud radio", "2"))
BEN = rating("ben", ("soap smells", "1"), ("warm coat", "2"))


@pytest.mark.parametrize(
    ("steps", "own", "other", "specific"),
    [
        (["the user gave 4 to soap", "so it is good"], 0.5, 0.0, 0.5),  # 4 and soap stand in one item
        (["the user gave 1 to soap", "so it is good"], 0.0, 0.5, 0.0),
        (["the question is about new soap", "so it is good"], 0.0, 0.0, 0.0),  # the question's own words
        (["it smells", "it smells"], 1.0, 1.0, 0.0),  # the other user has them as well
        (["a radio", "it smells", "so 4"], 1.0, 1 / 3, 2 / 3),
    ],
)
def test_evidence_by_hand(steps, own, other, specific):
    actual = text_evidence(steps, ANNA, ANNA.profile, BEN.profile, frozenset())
    assert (actual.own, actual.other, actual.specific) == pytest.approx((own, other, specific))
    assert uses_profile(actual, EvidenceRules("text")) == (specific > 0)
    assert uses_profile(actual, EvidenceRules("text", min_share=0.6)) == (specific > 0.6)
    assert uses_profile(actual, EvidenceRules("measure"))


def test_a_chain_that_says_more_of_the_other_profile_is_not_this_users():
    steps = ["a radio", "a warm coat", "so it is good"]
    actual = text_evidence(steps, ANNA, ANNA.profile, BEN.profile, frozenset())
    assert (actual.own_clues, actual.other_clues) == (1, 2)  # radio; warm, coat
    assert not uses_profile(actual, EvidenceRules("text"))
    assert uses_profile(text_evidence(steps, BEN, BEN.profile, ANNA.profile, frozenset()), EvidenceRules("text"))


def test_words_of_most_profiles_prove_nothing():
    users = [rating(f"u{i}", ("plain soap", "4"), (f"thing{i}", "2")) for i in range(10)]
    common = CommonClues({"LaMP_3": users}, 0.5).of("LaMP_3")
    assert {"plain", "soap", "4", "2", ("4", "soap")} <= common
    assert "thing3" not in common
    assert text_evidence(["a plain thing"], users[3], users[3].profile, None, common).own == 0.0
    assert text_evidence(["a thing3"], users[3], users[3].profile, None, common) == Evidence(1.0, None, 1.0, 1)
    assert CommonClues({"LaMP_3": users[:4]}, 0.5).of("LaMP_3") == frozenset()  # too few users to say


def test_the_answers_verdict():
    silent, said = Evidence(0.0, 0.0, 0.0), Evidence(0.5, 0.0, 0.5, 3, 2)
    for base in (silent, said):
        for changed in (None, False, True):
            actual = replace(base, changed=changed)
            words, answer = base is said, changed is True
            verdicts = {"text": words, "answer": answer, "either": words or answer, "both": words and answer}
            for require, expected in verdicts.items():
                assert uses_profile(actual, EvidenceRules(require)) == expected
    figures = summary(
        [silent, Evidence(0.5, 0.25, 0.5, 1, 0, True), Evidence(1.0, None, 1.0, 1, 0, False)], EvidenceRules("text")
    )
    assert figures == {
        "tested": 3,
        "shown": 2,
        "own_steps": 0.5,
        "other_steps": 0.125,
        "specific_steps": 0.5,
        "answers_compared": 2,
        "answers_changed": 0.5,
    }


def test_the_pool_never_lends_a_users_own_profile():
    pool = ProfilePool([ANNA, BEN], seed=1)
    swapped, user = pool.swap(ANNA)
    assert (user, swapped.profile, swapped.input, swapped.id) == ("ben", BEN.profile, ANNA.input, ANNA.id)
    assert ProfilePool([ANNA], seed=1).swap(ANNA) is None
