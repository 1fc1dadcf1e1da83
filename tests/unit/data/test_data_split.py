"""Users are held out whole, by a hash, and questions of one person are recognised."""

from __future__ import annotations

import hashlib
import os
from dataclasses import replace
from pathlib import Path

import pytest

from tagpr_rl.data.lamp import load_folder
from tagpr_rl.data.split import link_users, split_by_user, user_fraction
from tagpr_rl.types import LampRecord, ProfileItem, TagprError

REAL = Path(os.environ.get("TAGPR_LAMP_REAL", Path(__file__).parents[3] / "../shared/data/lamp_real"))


def question(key: str, user: str, task: str = "LaMP_7", texts: str = "") -> LampRecord:
    items = tuple(ProfileItem(f"{key}{n}", {"text": text}) for n, text in enumerate(texts))
    return LampRecord(key, task, "dev", user, "tweet: x", items, "y")


def test_the_fraction_is_the_documented_hash() -> None:
    digest = hashlib.sha256(b"3/u1").hexdigest()
    assert user_fraction("u1", 3) == int(digest[:12], 16) / 2**48


def test_users_stay_whole_across_tasks_and_calls() -> None:
    records = [question(f"{task}-{n}", f"u{n % 40}", task) for task in ("LaMP_4", "LaMP_7") for n in range(120)]
    train, held = split_by_user(records, 0.3, seed=0)
    train_users, held_users = {r.user_id for r in train}, {r.user_id for r in held}
    assert not train_users & held_users
    assert len(train) + len(held) == 240
    assert 4 <= len(held_users) <= 20  # 40 users, mean 12, three standard deviations = 8.7
    assert split_by_user(records, 0.3, seed=0) == (train, held)
    assert split_by_user(records, 0.3, seed=1) != (train, held)
    # A user's side depends on no other user.
    only = [r for r in records if r.task == "LaMP_4"]
    assert {r.user_id for r in split_by_user(only, 0.3, seed=0)[1]} == held_users


def test_a_side_without_users_is_an_error() -> None:
    records = [question("1", "u1"), question("2", "u1")]
    with pytest.raises(TagprError, match=r"2 records of 1 users .*leaves the (held-out|training) side empty"):
        split_by_user(records, 0.5, seed=0)
    with pytest.raises(TagprError, match="side empty"):
        split_by_user([], 0.5, seed=0)
    for fraction in (0.0, 1.0, -0.1, float("nan")):
        with pytest.raises(TagprError, match="held_out_fraction is"):
            split_by_user(records, fraction, seed=0)


def test_questions_of_one_person_are_linked_by_their_profiles() -> None:
    # "2" shares 9 of 10 items with "1", "3" shares 9 of 10 with "2" (8 with "1"); "4" shares 1 of 3 with "1".
    records = [
        question("1", "1", texts="abcdefghij"),
        question("2", "2", texts="bcdefghijk"),
        question("3", "3", texts="cdefghijkl"),
        question("4", "4", texts="axy"),
        question("5", "u5", texts="abcdefghij"),  # the file names this user
        question("6", "6", texts=""),
        question("7", "7", texts=""),
        question("8", "8", task="LaMP_6", texts="abcdefghij"),  # another task
    ]
    linked = link_users(records)
    users = [record.user_id for record in linked]
    assert users[:3] == ["LaMP_7/1"] * 3
    assert users[3:] == ["LaMP_7/4", "u5", "LaMP_7/6", "LaMP_7/7", "LaMP_6/8"]
    assert [replace(r, user_id="") for r in linked] == [replace(r, user_id="") for r in records]
    with pytest.raises(TagprError, match=r"min_overlap is 0\.2"):
        link_users(records, 0.2)


@pytest.mark.skipif(not REAL.is_dir(), reason="real LaMP questions are not here (TAGPR_LAMP_REAL)")
def test_linking_finds_the_known_users_of_real_questions() -> None:
    known = load_folder(REAL, ["LaMP_2", "LaMP_4"], "dev")
    linked = link_users([replace(record, user_id=record.id) for record in known])
    pairs = {(a.task, a.user_id, b.user_id) for a, b in zip(known, linked, strict=True)}
    # One-to-one: as many pairs as known users and as found users.
    assert len(pairs) == len({(r.task, r.user_id) for r in known}) == len({r.user_id for r in linked}) == 102
