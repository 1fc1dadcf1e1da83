"""Seeds and places of a step's responses: stable, distinct, and in the order in which the responses were asked for."""

from __future__ import annotations

import hashlib
import subprocess
import sys

import pytest

from tagpr_rl.backend.rollout.places import (
    Place,
    key_order,
    on_server,
    place_of,
    placed,
    prompt_name,
    request_seed,
    turn_of,
)
from tagpr_rl.backend.scoring.coalesce import Turn


def test_a_seed_is_the_first_four_bytes_of_a_sha256() -> None:
    digest = hashlib.sha256(b"1\x00000003-000002\x00LaMP_1\x00q7\x004").hexdigest()
    assert request_seed(1, ("000003-000002", "LaMP_1", "q7", 4)) == int(digest[:8], 16)


def test_a_seed_is_the_same_in_another_process() -> None:
    """Python's own hash of a text is not."""
    code = "from tagpr_rl.backend.rollout.places import request_seed; print(request_seed(5, ['a', 1]))"
    others = {subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout for _ in range(2)}
    assert others == {f"{request_seed(5, ['a', 1])}\n"}


def test_every_part_of_a_name_changes_the_seed() -> None:
    """4 stage seeds x 5 steps x 6 prompts x 7 samples: 840 seeds; two equal ones once in 12,000 such draws."""
    seeds = {
        request_seed(stage, (prompt_name(step, prompt), "LaMP_1", f"q{prompt}", sample))
        for stage in range(4) for step in range(5) for prompt in range(6) for sample in range(7)
    }  # fmt: skip
    assert len(seeds) == 840 and min(seeds) >= 0 and max(seeds) < 2**32
    assert request_seed(1, ["ab", "c"]) != request_seed(1, ["a", "bc"]) != request_seed(1, ["abc"])


def test_names_sort_as_they_were_asked_for() -> None:
    names = [prompt_name(step, number) for step in (9, 10, 100) for number in (2, 11)]
    keys = [f"{name}_{sample}_0" for name in names for sample in range(12)]
    assert sorted(keys, key=key_order) == keys != sorted(keys)  # as texts, sample 10 comes before 2
    assert key_order("0b1c-4d_3_0") == ("0b1c-4d", 3, 0)  # verl's own random names


def test_a_turn_counts_the_requests_of_its_server_alone() -> None:
    """Three prompts on two servers: the first one has prompts 0 and 2, so prompt 2's second response is its fourth."""
    place = Place("train/3/0", prompt=2, prompts=3, sample=1, samples=2)
    assert place.turn(1) == Turn("train/3/0", 5, 6)
    assert (place.server(2), place.turn(2)) == (0, Turn("train/3/0", 3, 4))
    assert (place.server(5), place.turn(5)) == (2, Turn("train/3/0", 1, 2))


@pytest.mark.parametrize("seed", [3, None])
def test_settings_carry_seed_place_and_turn(seed: int | None) -> None:
    place = Place("val/1/0", 0, 4, 0, 1)
    given = {"temperature": 1.0}
    sampling = placed(given, place, seed)
    assert given == {"temperature": 1.0} and sampling["seed"] == seed
    assert place_of(sampling) == place and turn_of(sampling["extra_args"]) is None
    sent = on_server(sampling, 2)
    assert turn_of(sent["extra_args"]) == Turn("val/1/0", 0, 2) and place_of(sent) == place
    assert place_of(given) is None and on_server(given, 2) == given and turn_of(None) is None
