"""PRMU's pairs, evaluation and batcher: everything that needs no torch."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prmu_toy import toy_pairs

from tagpr_rl.prmu.accuracy import evaluate, per_user_macro, remembered, score_statistics, shuffled, wins
from tagpr_rl.prmu.serving.batcher import Batcher
from tagpr_rl.prmu.serving.requests import ScoreRequest, check_request
from tagpr_rl.prmu.training.preferences import (
    check_leakage,
    check_pair,
    read_pairs,
    split_by_user,
    users_of,
    write_pairs,
)
from tagpr_rl.types import TagprError


def test_parquet_round_trip(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    rows = toy_pairs(users=4)
    rows[0] = replace(rows[0], profile_texts=())  # a user without a history
    rows[1] = replace(rows[1], chosen='quote " and\nline\u2028 end')
    write_pairs(tmp_path / "pairs.parquet", rows)
    assert read_pairs(tmp_path / "pairs.parquet") == rows


def test_reading_names_file_and_remedy(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    with pytest.raises(TagprError, match=r"none\.parquet: no such file"):
        read_pairs(tmp_path / "none.parquet")
    (tmp_path / "bad.parquet").write_text("no parquet")
    with pytest.raises(TagprError, match=r"bad\.parquet: not a parquet file"):
        read_pairs(tmp_path / "bad.parquet")
    with pytest.raises(TagprError, match="no pairs to write"):
        write_pairs(tmp_path / "empty.parquet", [])


@pytest.mark.parametrize(
    "change, message",
    [
        ({"kind": "hard"}, "kind is 'hard'"),
        ({"other_user_id": "u0"}, "needs another user"),
        ({"other_user_id": ""}, "needs another user"),
        ({"rejected": "take the red one"}, "same text"),
        ({"chosen": " "}, "chosen is empty"),
        ({"profile_texts": "i like"}, "tuple of strings"),
    ],
)
def test_a_bad_pair_is_named(change: dict[str, object], message: str) -> None:
    with pytest.raises(TagprError, match=message):
        check_pair(replace(toy_pairs()[0], **change), "here")  # type: ignore[arg-type]


@settings(max_examples=50, deadline=None)
@given(
    users=st.integers(2, 20), per_user=st.integers(1, 4), unseen=st.floats(0.01, 0.9), seen=st.floats(0, 0.9),
    seed=st.integers(0, 99),
)  # fmt: skip
def test_split_never_leaks(users: int, per_user: int, unseen: float, seen: float, seed: int) -> None:
    rows = [replace(row, kind="wrong", other_user_id="") for row in toy_pairs(users, per_user, seed)]
    split = split_by_user(rows, unseen_fraction=unseen, seen_fraction=seen, seed=seed)
    assert not users_of(split.train) & users_of(split.unseen)
    assert not users_of(split.seen) & users_of(split.unseen)
    assert not {row.record_id for row in split.train} & {row.record_id for row in split.seen}
    assert split.train and split.unseen
    assert sorted(row.record_id for part in (split.train, split.seen, split.unseen) for row in part) == sorted(
        row.record_id for row in rows
    )


def test_split_drops_training_pairs_that_show_an_unseen_user() -> None:
    rows = toy_pairs(users=16)
    split = split_by_user(rows, unseen_fraction=0.25)
    assert split.dropped > 0
    assert len(split.train) + len(split.seen) + len(split.unseen) + split.dropped == len(rows)
    assert not {row.other_user_id for row in split.train} & users_of(split.unseen)


def test_leakage_is_an_error() -> None:
    rows = toy_pairs(users=4, per_user=1)
    with pytest.raises(TagprError, match="user 'u0' is in validation and also in training"):
        check_leakage(rows, rows[:1])
    with pytest.raises(TagprError, match="at least 2"):
        split_by_user(rows[:1])


def test_wins_and_macro_by_hand() -> None:
    assert wins([2.0, 1.0, 0.0], [1.0, 1.0, 3.0]) == [1.0, 0.5, 0.0]
    # user a: 3 pairs, all won = 1; user b: 1 pair, lost = 0; macro 0.5 while the plain mean is 0.75
    assert per_user_macro(["a", "a", "a", "b"], [1.0, 1.0, 1.0, 0.0]) == 0.5


def knows_the_user(requests: object) -> list[float]:
    """An oracle: the number of response words that the profile holds."""
    assert isinstance(requests, list)
    return [float(sum(word in " ".join(r.profile_texts).split() for word in r.response.split())) for r in requests]


def test_evaluate_tells_a_user_model_from_a_blind_one() -> None:
    rows = toy_pairs(users=40)
    oracle = evaluate(knows_the_user, [], rows)
    assert oracle["unseen/accuracy"] == oracle["unseen/cross_profile"] == oracle["unseen/user_macro"] == 1.0
    assert oracle["unseen/generic"] == 0.5  # empty profile: all ties
    assert 0.35 < oracle["unseen/shuffled"] < 0.65
    assert (oracle["unseen/pairs"], oracle["unseen/users"]) == (120, 40)
    assert "seen/accuracy" not in oracle
    blind = evaluate(lambda requests: [float(r.response.count("red")) for r in requests], [], rows)
    assert blind["unseen/accuracy"] == blind["unseen/shuffled"] == blind["unseen/generic"]


def test_shuffled_users_are_others_of_the_same_task() -> None:
    rows = toy_pairs(users=6)
    rows = [replace(row, task="LaMP_3") if i % 2 else row for i, row in enumerate(rows)]
    owner = {(row.user_id, row.profile_texts): row.task for row in rows}
    for row, (chosen, rejected) in zip(rows, shuffled(rows), strict=True):
        assert chosen.user_id != row.user_id
        assert owner[chosen.user_id, chosen.profile_texts] is not None
        assert (chosen.response, rejected.response) == (row.chosen, row.rejected)
    assert shuffled(rows[:1]) == []


def test_score_statistics_by_hand() -> None:
    row = toy_pairs(users=2, per_user=1)[0]
    mean, std = score_statistics(lambda requests: [3.0, -1.0], [row])
    assert (mean, std) == (1.0, 2.0)
    assert score_statistics(lambda requests: [1.0, 1.0], [row])[1] == 1e-6


def test_bad_requests_are_refused() -> None:
    good = ScoreRequest("u", ("a",), "q", "r")
    assert check_request(good) is good
    for bad in (replace(good, response=None), replace(good, profile_texts=["a"])):  # type: ignore[arg-type]
        with pytest.raises(TagprError):
            check_request(bad)


def test_batcher_gathers_and_isolates_faults() -> None:
    batches: list[list[str]] = []

    def score(requests: list[str]) -> list[float]:
        assert threading.current_thread() is not threading.main_thread()
        batches.append(list(requests))
        if "bad" in requests:
            raise FloatingPointError("bad")
        return [float(len(r)) for r in requests]

    async def run() -> list[object]:
        batcher = Batcher(score, len, max_wait_s=0.05, max_size=10)  # type: ignore[arg-type]
        first = await asyncio.gather(*(batcher.submit("abc") for _ in range(4)), return_exceptions=True)
        second = await asyncio.gather(*(batcher.submit(text) for text in ("a", "bad", "ab")), return_exceptions=True)
        assert (batcher.stats.requests, batcher.stats.failed, batcher.stats.largest) == (7, 1, 3)
        return [*first, *second]

    got = asyncio.run(run())
    assert got[:5] == [3.0, 3.0, 3.0, 3.0, 1.0]
    assert isinstance(got[5], FloatingPointError)
    assert got[6] == 2.0
    # 3 * 3 <= 10 < 4 * 3; the faulty batch is scored again one by one
    assert batches == [["abc"] * 3, ["abc"], ["a", "bad", "ab"], ["a"], ["bad"], ["ab"]]


def test_a_request_is_scored_once_over_all_calls() -> None:
    asked: list[str] = []

    def raw(requests: Sequence[ScoreRequest]) -> list[float]:
        asked.extend(request.response for request in requests)
        return [float(len(request.response)) for request in requests]

    scores = remembered(raw)
    a, b, c = (ScoreRequest("u", (), "q", "x" * n) for n in (1, 2, 3))
    assert scores([b, a, b]) == [2.0, 1.0, 2.0] and scores([a, c]) == [1.0, 3.0] and scores([]) == []
    assert asked == ["xx", "x", "xxx"]
