"""PRMU's evaluation beyond accuracy, and the pairs made for it: everything that needs no torch."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from prmu_toy import toy_pairs

from tagpr_rl.config import PrmuStage
from tagpr_rl.prmu.accuracy import own, pair_wins, shuffled
from tagpr_rl.prmu.quality import (
    auc_within,
    best_of,
    calibration,
    correlation_within,
    third_users,
    truncated,
    votes,
)
from tagpr_rl.prmu.serving.requests import ScoreRequest
from tagpr_rl.prmu.training.preferences import USER_ONLY, check_pair, read_pairs, user_only_pairs, write_pairs
from tagpr_rl.prmu.training.probes import SPOILS, copied, copying, malformed, padded, padding, slipped, spoiling
from tagpr_rl.prompts.dataset import evenly
from tagpr_rl.prompts.rows import circle, shuffled_rows
from tagpr_rl.stages.prmu import pairs_of_samples, training_pairs
from tagpr_rl.tags.grammar import final_answer, parse
from tagpr_rl.tags.schema import default_schema
from tagpr_rl.types import LampRecord, ParseStatus, ProfileItem, TagprError

SCHEMA = default_schema()


def response(answer: str, *steps: str) -> str:
    """A well-formed response."""
    tags = SCHEMA.names
    body = "\n".join(f"<{tags[i]}>{text}</{tags[i]}>" for i, text in enumerate(steps or ("the user likes it",)))
    return f"<think>\n{body}\n</think>\n{answer}"


def knows_the_user(requests: Any) -> list[float]:
    """An oracle: the number of response words that the profile holds."""
    return [float(sum(word in " ".join(r.profile_texts).split() for word in r.response.split())) for r in requests]


def test_user_only_pairs_differ_in_nothing_but_the_user() -> None:
    rows = toy_pairs(users=16, per_user=1)
    profiles = {(row.task, row.user_id): row.profile_texts for row in rows}
    made = user_only_pairs(rows, profiles)
    assert len(made) == 2 * len(rows)
    for one, other in zip(made[::2], made[1::2], strict=True):
        assert (one.chosen, one.rejected, one.question) == (other.rejected, other.chosen, other.question)
        assert (one.user_id, one.other_user_id) == (other.other_user_id, other.user_id)
        assert check_pair(other, "here").kind == USER_ONLY
    assert pair_wins(knows_the_user, [own(pair) for pair in made]) == [1.0] * len(made)
    blind = pair_wins(lambda requests: [float(len(r.response)) for r in requests], [own(pair) for pair in made])
    assert sum(blind) == len(made) / 2  # whatever it prefers, half of them
    assert user_only_pairs(rows, {}) == []
    assert user_only_pairs([replace(rows[0], kind="wrong", other_user_id="")], profiles) == []


def test_third_users_are_neither_of_the_two_and_are_asked_the_pair_s_question() -> None:
    rows = [replace(row, question=f"which {row.user_id}") for row in toy_pairs(users=16, per_user=1)]
    made = user_only_pairs(rows, {(row.task, row.user_id): row.profile_texts for row in rows})
    asks, kept = third_users(made, draws=3)
    assert len(asks) == len(kept) == 3 * len(made)
    for (chosen, rejected), pair in zip(asks, kept, strict=True):
        assert chosen.user_id == rejected.user_id
        assert chosen.user_id not in (pair.user_id, pair.other_user_id)
        assert (chosen.question, chosen.response, rejected.response) == (pair.question, pair.chosen, pair.rejected)
    for pair, (chosen, _) in zip(rows, shuffled(rows), strict=True):
        assert chosen.question == pair.question


def test_calibration_by_hand() -> None:
    # log 3 is confidence 3/4; two of those three are right. 0 is confidence 1/2, half right: no error.
    # ece = 3/4 * |2/3 - 3/4| + 1/4 * 0 = 1/16
    actual = calibration([math.log(3), math.log(3), -math.log(3), 0.0])
    assert actual["ece"] == pytest.approx(1 / 16)
    bins: Any = actual["bins"]
    assert [(row["pairs"], row["accuracy"]) for row in bins] == [(1, 0.5), (3, pytest.approx(2 / 3))]
    assert calibration([1e9])["ece"] == pytest.approx(0.0)


def test_best_of_by_hand() -> None:
    scores, ranking = [0.0, 1.0, 0.5, 0.25], [3.0, 1.0, 2.0, 2.0]
    assert best_of(scores, ranking, 1) == pytest.approx(0.4375)
    # of (0, 1) the first has the higher rank: 0; of (.5, .25) both tie: .375
    assert best_of(scores, ranking, 2) == pytest.approx(0.1875)
    assert best_of(scores, ranking, 4) == 0.0
    assert best_of(scores, scores, 4) == 1.0
    assert votes(["a", "b", "a"]) == [2.0, 1.0, 2.0]
    assert votes(["", "b", ""]) == [0.0, 1.0, 0.0]  # unfinished thoughts do not vote


def test_correlations_within_questions_by_hand() -> None:
    # Between questions the sides run against each other, within each they agree: centred, only the latter counts.
    xs, ys = [[0.0, 1.0], [10.0, 12.0]], [[100.0, 101.0], [0.0, 2.0]]
    assert correlation_within(xs, ys) == pytest.approx(1.0)
    # centred x (-.5, .5, -1, 1), y (-.5, .5, 1, -1): sum xy = .5 - 2 = -1.5 over sum of squares 2.5
    assert correlation_within(xs, [[0.0, 1.0], [2.0, 0.0]]) == pytest.approx(-0.6)
    assert correlation_within([[1.0, 1.0]], [[0.0, 1.0]]) is None
    # task scores differ in 2 of 3 pairs; one ordered rightly, one a tie
    assert auc_within([[1.0, 2.0, 1.0]], [[0.0, 1.0, 1.0]]) == (0.75, 2)
    assert auc_within([[1.0, 2.0]], [[1.0, 1.0]]) == (None, 0)


def test_truncated_profiles_grow_by_items() -> None:
    rows = [replace(row, profile_texts=tuple("abcdef")) for row in toy_pairs(users=2)]
    sizes = [{row.profile_texts for row in truncated(rows, size)} for size in (0, 2, 4, 9)]
    assert sizes[0] == {()}
    assert len(sizes[1]) == 2  # one order per user, for all of the user's pairs
    for small, large in zip(truncated(rows, 2), truncated(rows, 4), strict=True):
        assert large.profile_texts[:2] == small.profile_texts
    assert all(set(texts) == set("abcdef") for texts in sizes[3])


def movie(user: str, gold: str) -> LampRecord:
    profile = (ProfileItem("1", {"tag": "comedy", "description": "a cat falls"}),)
    return LampRecord(f"q{user}", "LaMP_2", "train", user, "Which tag?", profile, gold)


def test_pairs_of_the_policy_s_own_responses() -> None:
    right, wrong, broken = response("comedy"), response("violence"), "comedy"
    texts = [(right, wrong, right), (right, right, broken), (broken, wrong, wrong), (right, right, " ")]
    made = pairs_of_samples([movie(user, "comedy") for user in "abcd"], texts, SCHEMA)
    actual = [(row.user_id, row.chosen, row.rejected, row.kind) for row in made]
    assert actual == [("a", right, wrong, "wrong"), ("b", right, broken, "wrong")]
    other = response("comedy", "another thought")
    both = pairs_of_samples([movie("a", "comedy")], [(right, other, wrong, broken, response("action"))], SCHEMA)
    assert len({(row.chosen, row.rejected) for row in both}) == 2  # of 2 x 3
    assert {row.chosen for row in both} <= {right, other}
    assert "comedy" in made[0].profile_texts[0]  # the user's tag stands in the item
    check_pair(made[0], "here")


def test_pairs_of_noisy_golds_prefer_the_higher_expected_reward() -> None:
    # A generous user's golds are 5, 2, 1 with .42, .30, .28: the expected rewards are .42, .615 and .48.
    golds = {"5": 420, "2": 300, "1": 280}
    item = ProfileItem("1", {"text": "a hat", "score": "4"})
    records = [
        LampRecord(f"q{gold}{i}", "LaMP_3", "train", "u", "a coat", (item,), gold)
        for gold, times in golds.items() for i in range(times)
    ]  # fmt: skip
    made = pairs_of_samples(records, [tuple(response(gold) for gold in golds)] * 1000, SCHEMA)
    wins = Counter((final_answer(row.chosen), final_answer(row.rejected)) for row in made)
    # Kept with the gap: 2 over 5 .30 * 1 + .28 * .75 = .51, 5 over 2 .42 * .75 = .315, 2 over 1 .42 * .25 + .30 * .33
    # and so on. All three of a question are with .1875, .2222, .1875 by gold; then one is left out, each a third of
    # the time: .026 less for gold 5, .022 for 2 and .0175 for 1. Three standard errors are 0.048.
    expected = {
        ("2", "5"): 0.4705, ("5", "2"): 0.289, ("1", "5"): 0.4405, ("5", "1"): 0.394, ("2", "1"): 0.157,
        ("1", "2"): 0.0525,
    }  # fmt: skip
    assert {pair: count / 1000 for pair, count in wins.items()} == pytest.approx(expected, abs=0.048)


def test_a_slip_by_hand() -> None:
    pair = replace(
        toy_pairs(users=8)[0], chosen=response("red", "likes red", "so red"), rejected=response("blue", "hm", "so blue")
    )
    answer, late = (slipped(pair, SCHEMA, False, late=late) for late in (False, True))
    assert answer is not None and late is not None
    assert answer.rejected == response("blue", "likes red", "so red")
    assert late.rejected == response("blue", "likes red", "so blue")
    assert (answer.chosen, answer.kind) == (pair.chosen, "slipped")
    assert slipped(replace(pair, rejected=response("red", "hm")), SCHEMA, False, late=False) is None  # nothing is wrong
    assert slipped(replace(pair, rejected=late.rejected), SCHEMA, False, late=True) is None  # that pair is there
    assert slipped(replace(pair, rejected="no thought"), SCHEMA, False, late=False) is None


@pytest.mark.parametrize("prefilled", [False, True])
def test_a_malformed_pair_has_a_fault_of_every_form(prefilled: bool) -> None:
    chosen = response("red", "likes red", "likes <3 blue", "so red").removeprefix("<think>\n" if prefilled else "")
    pair = replace(toy_pairs(users=8)[0], chosen=chosen)
    made = [malformed(pair, SCHEMA, prefilled, i) for i in range(5 * len(SPOILS))]
    assert all(row is not None and (row.chosen, row.kind) == (chosen, "malformed") for row in made)
    statuses = [parse(check_pair(row, "here").rejected, SCHEMA, prefilled=prefilled).status for row in made if row]
    assert {"TRUNCATED", "TEXT_OUTSIDE", "NO_ANSWER", "NESTED", "UNKNOWN_TAG"} <= set(statuses)
    assert ParseStatus.OK not in statuses and {"UNCLOSED", "NESTED"} & set(statuses[1 :: len(SPOILS)])
    assert made == [malformed(pair, SCHEMA, prefilled, i) for i in range(len(made))]
    assert malformed(replace(pair, chosen="no thought"), SCHEMA, prefilled, 0) is None


def test_the_stage_adds_its_share_of_malformed_pairs(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    rows = [replace(row, chosen=response("red", "likes red"), rejected=response("blue")) for row in toy_pairs(users=8)]
    write_pairs(tmp_path / "pairs.parquet", rows)
    context: Any = SimpleNamespace(
        nearest=lambda kind, reads: SimpleNamespace(root=tmp_path), schema=SCHEMA,
        recipe=SimpleNamespace(),
    )  # fmt: skip
    stage = PrmuStage(init="sft", steps=1, malformed_fraction=0.5)
    assert training_pairs(context, stage, tmp_path / "all.parquet") == 1.5 * len(rows)
    kinds = Counter(row.kind for row in read_pairs(tmp_path / "all.parquet"))
    assert kinds["malformed"] == len(rows) / 2
    plain = PrmuStage(init="sft", steps=1)
    training_pairs(context, plain, tmp_path / "plain.parquet")
    assert read_pairs(tmp_path / "plain.parquet") == rows


def test_the_probe_of_malformed_responses_by_hand() -> None:
    pair = replace(toy_pairs(users=8)[0], chosen=response("red", "likes red"))

    def closed(requests: Any) -> list[float]:
        return [float(parse(r.response, SCHEMA).status is ParseStatus.OK) for r in requests]

    assert spoiling(closed, [pair] * len(SPOILS), SCHEMA, False) == {"pairs": 8, "chosen_above": [1.0, 1.0, 1.0]}
    assert spoiling(lambda requests: [1.0] * len(requests), [pair], SCHEMA, False)["chosen_above"][0] == 0.5
    assert spoiling(closed, [], SCHEMA, False) == {"pairs": 0}


def test_probes_by_hand() -> None:
    pair = replace(
        toy_pairs(users=8)[0], chosen=response("red", "short", "a longer step"), rejected=response("blue"),
        profile_texts=("i like a red hat", "a <think> trap"),
    )  # fmt: skip
    copy, twice = copied(pair, SCHEMA, False), padded(pair, SCHEMA, False)
    assert copy is not None
    assert twice is not None
    trace = parse(copy.rejected, SCHEMA).trace
    assert trace is not None
    assert (trace.answer, trace.steps[0].text) == ("blue", "i like a red hat")
    assert twice.rejected.count("a longer step") == 2
    assert twice.rejected.count("short") == 1
    assert parse(twice.rejected, SCHEMA).status is ParseStatus.OK
    assert copied(replace(pair, profile_texts=()), SCHEMA, False) is None
    assert padded(replace(pair, chosen="no thought"), SCHEMA, False) is None

    def lengths(requests: Any) -> list[float]:
        return [float(len(r.response)) for r in requests]

    assert padding(lengths, [pair], SCHEMA, False)["raised"][0] == 1.0
    assert copying(knows_the_user, [pair], SCHEMA, False)["chosen_above"][0] == 0.0  # a scorer that counts words
    assert padding(lengths, [], SCHEMA, False) == {"responses": 0}


def test_shuffled_rows_lend_profiles_and_leave_prompts(tmp_path: Path) -> None:
    pq = pytest.importorskip("pyarrow.parquet")
    pa = pytest.importorskip("pyarrow")
    rows = [
        {
            "prompt": [{"role": "user", "content": f"{task} {user}"}],
            "extra_info": {"task": task, "user_id": user, "profile_texts": [f"{task} of {user}"], "gold": user},
        }
        for task in ("LaMP_1", "LaMP_2")
        for user in "abcde"
        for _ in range(2)
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    out = pq.read_table(shuffled_rows(tmp_path / "rows.parquet", tmp_path / "out.parquet", seed=1)).to_pylist()
    swapped: dict[tuple[str, str], set[str]] = {}
    for before, after in zip(rows, out, strict=True):
        info, old = after["extra_info"], before["extra_info"]
        assert after["prompt"] == before["prompt"]
        assert (info["task"], info["gold"]) == (old["task"], old["gold"])
        assert info["user_id"] != old["user_id"]
        assert info["profile_texts"] == [f"{info['task']} of {info['user_id']}"]
        swapped.setdefault((info["task"], old["user_id"]), set()).add(info["user_id"])
    assert all(len(others) == 1 for others in swapped.values())  # always the same other user
    assert {next(iter(others)) for (task, _), others in swapped.items() if task == "LaMP_1"} == set("abcde")
    with pytest.raises(TagprError, match="two users of LaMP_1"):
        circle([("LaMP_1", "a")], 0)


def test_questions_are_taken_evenly() -> None:
    records = [movie(str(i), "comedy") for i in range(10)]
    assert [record.user_id for record in evenly(records, 4)] == ["0", "2", "5", "7"]
    assert evenly(records, 20) == records


def test_requests_without_a_user_are_generic() -> None:
    assert ScoreRequest("u", ("a",), "q", "r").generic() == ScoreRequest("", (), "q", "r")
