"""The table of bench/real.py on made-up answers: same questions for every row, numbers derived by hand."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tagpr_rl.data.tasks import TASKS
from tagpr_rl.types import LampRecord, ProfileItem, TagprError

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "bench"))

import real


def question(key: str, user: str, gold: str, text: str, near: str = "crime") -> LampRecord:
    item = ProfileItem(f"{key}i", {"title": "", "text": text, "category": near})
    return LampRecord(key, "LaMP_2N", "dev", user, TASKS["LaMP_2N"].make_input(text=text), (item,), gold)


TRAIN = [question("t1", "a", "politics", "a vote"), question("t2", "a", "politics", "the senate")]
DEV = [
    question("d1", "u", "crime", "a theft"),
    question("d2", "u", "politics", "a law"),
    question("d3", "w", "crime", "a vote"),  # its text occurs in training
    question("d4", "w", "crime", "a trial"),  # the second system does not answer it
]
ONE = {"d1": "crime", "d2": "crime", "d3": "crime", "d4": "crime"}
TWO = {"d1": "crime", "d2": "politics", "d3": "politics"}


def test_every_row_has_the_questions_that_all_systems_answer() -> None:
    table = real.table_of("LaMP_2N", TRAIN, DEV, {"one": ONE, "two": TWO})
    assert (table.n, table.people, table.repeated) == (3, 2, 1)
    accuracy = {name: row.metrics[0].value for name, row in table.rows.items()}
    # The majority of training is politics: right once. The nearest item says crime each time: right twice.
    assert accuracy == pytest.approx({"majority": 1 / 3, "nearest": 2 / 3, "one": 2 / 3, "two": 2 / 3})
    fresh = {name: row.metrics[0].value for name, row in table.without_repeated.items()}
    assert fresh == {"one": 0.5, "two": 1.0}


def test_a_pair_is_compared_over_people() -> None:
    table = real.table_of("LaMP_2N", TRAIN, DEV, {"one": ONE, "two": TWO})
    mean, low, high = real.difference(table, "one", "two")
    # u: 1 - 1 and 0 - 1; w: 1 - 0. People drawn twice each: u, u gives -1/2, w, w gives 1.
    assert (mean, low, high) == pytest.approx((0.0, -0.5, 1.0))
    assert "one - two: +0.000 [-0.500, +1.000]" in "\n".join(real.markdown(table, [("one", "two")]))
    with pytest.raises(TagprError, match="LaMP_2N has no row 'three'"):
        real.difference(table, "one", "three")


def test_systems_without_a_common_question_are_refused() -> None:
    with pytest.raises(TagprError, match="no question is answered by all of one, two"):
        real.table_of("LaMP_2N", TRAIN, DEV, {"one": {"d1": "crime"}, "two": {"d2": "crime"}})


def test_runs_and_peers_are_read_from_their_files(tmp_path: Path) -> None:
    def write(path: Path, task: str, answers: dict[str, str]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        golds = [{"id": key, "output": text} for key, text in answers.items()]
        path.write_text(json.dumps({"task": task, "golds": golds}))

    write(tmp_path / "runs/mine/010_first/predictions/sft/LaMP_2N.json", "LaMP_2N", TWO)
    write(tmp_path / "runs/mine/020_eval/predictions/sft/LaMP_2N.json", "LaMP_2N", ONE)
    write(tmp_path / "runs/mine/020_eval/predictions/empty/LaMP_2N.json", "LaMP_2N", {"d1": "crime"})
    write(tmp_path / "peers/LaMP_2N_big_k9.json", "LaMP_2", TWO)
    write(tmp_path / "peers/LaMP_4_big_k9.json", "LaMP_4", {"x": "a title"})
    found = real.systems_of([tmp_path / "runs/mine"], tmp_path / "peers")
    assert found == {"LaMP_2N": {"mine/sft": ONE, "big_k9": TWO}}
    more = real.systems_of([tmp_path / "runs/mine"], None, controls=True)
    assert more == {"LaMP_2N": {"mine/sft": ONE, "mine/empty": {"d1": "crime"}}}
    with pytest.raises(TagprError, match="no finished evaluation"):
        real.systems_of([tmp_path], None)
