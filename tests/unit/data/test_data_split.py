"""Users are held out whole, by a hash, and questions of one person are recognised."""

from __future__ import annotations

import hashlib

import pytest

from tagpr_rl.data.split import split_by_user, user_fraction
from tagpr_rl.types import LampRecord, ProfileItem, TagprError


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
