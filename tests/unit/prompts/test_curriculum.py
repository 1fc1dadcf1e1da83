"""The curriculum by hand: what is known of a question, how often it comes, and that a resumed stage goes on alike."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from tagpr_rl.prompts.curriculum import CELL_GROUPS, Curriculum, RunningMean

CELLS = [("u1", "T1"), ("u2", "T1"), ("u3", "T1"), ("u3", "T2")]
# u1's group varies by .25, u2's not at all.
GROUPS = [(("u2", "T1"), [1.0, 1.0]), (("u1", "T1"), [0.0, 1.0]), (("u3", "T1"), [0.7])]


def curriculum(floor: float = 0.4, spacing: int = 0, cells: list[tuple[str, str]] = CELLS) -> Curriculum:
    return Curriculum(cells, floor=floor, spacing=spacing, seed=5)


def test_what_is_known_of_a_person_and_task() -> None:
    own = curriculum()
    assert own.variance(("u1", "T1")) == 0.0
    own.learn(GROUPS)  # the group of one says nothing
    # The task's mean is .125 and counts as two groups: (2 * .125 + .25) / 3, (2 * .125 + 0) / 3.
    assert own.variance(("u1", "T1")) == pytest.approx(1 / 6)
    assert own.variance(("u2", "T1")) == pytest.approx(1 / 12)
    assert own.variance(("u3", "T1")) == 0.125
    assert own.variance(("u3", "T2")) == 0.125  # an unknown task counts as the best known one


def test_a_running_mean_forgets() -> None:
    mean = RunningMean(2)
    for value in (1.0, 3.0, 4.0):
        mean.add(value)
    assert (mean.mean, mean.count) == (3.0, 2)  # 2 after two values, then half of the way to 4


def test_questions_come_by_their_variance_and_each_has_its_floor() -> None:
    own, number = curriculum(), 20_000
    own.learn(GROUPS)
    counts = Counter(own.draw() for _ in range(number))
    # .4 of the draws are alike, .6 by 2 : 1 : 1.5 : 1.5; three standard deviations are .01.
    expected = [0.1 + 0.6 * weight / 6 for weight in (2, 1, 1.5, 1.5)]
    assert [counts[i] / number for i in range(4)] == pytest.approx(expected, abs=0.01)
    settled = curriculum(floor=0.2)
    settled.learn([(cell, [0.0, float(cell == CELLS[0])]) for cell in CELLS] * CELL_GROUPS)
    counts = Counter(settled.draw() for _ in range(number))
    assert counts[0] > 0.5 * number and min(counts[i] for i in range(4)) > 0.05 * number


def test_without_a_difference_all_questions_come_alike() -> None:
    own = curriculum(floor=0.01)
    own.learn([(cell, [1.0, 1.0]) for cell in CELLS])
    counts = Counter(own.draw() for _ in range(8000))
    assert [counts[i] / 8000 for i in range(4)] == pytest.approx([0.25] * 4, abs=0.02)


@pytest.mark.parametrize("spacing", [2, 3, 30])
def test_a_question_does_not_come_again_within_the_spacing(spacing: int) -> None:
    own, apart = curriculum(floor=0.01, spacing=spacing), min(spacing, 3)
    own.learn([(CELLS[0], [0.0, 1.0])] * 9 + [(cell, [1.0, 1.0]) for cell in CELLS[1:]] * 9)
    drawn = [own.draw() for _ in range(200)]
    assert all(len(set(drawn[i : i + apart + 1])) == apart + 1 for i in range(200 - apart))


def test_the_order_follows_from_the_seed_and_the_rewards_and_goes_on_after_a_resume() -> None:
    first, second = curriculum(spacing=2), curriculum(spacing=2)
    assert [first.draw() for _ in range(30)] == [second.draw() for _ in range(30)]
    first.learn(GROUPS)
    second.learn(list(reversed(GROUPS)))
    state = json.loads(json.dumps(first.state()))
    assert state == json.loads(json.dumps(second.state()))
    resumed = curriculum(spacing=2)
    resumed.load(state)
    expected = [first.draw() for _ in range(60)]
    assert [resumed.draw() for _ in range(60)] == expected
    assert [Curriculum(CELLS, floor=0.4, spacing=2, seed=6).draw() for _ in range(60)] != expected
