"""LaMP files: round trip, both splits, and one clear error for each kind of bad file."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tagpr_rl.data.lamp import (
    TASKS,
    load_folder,
    load_lamp,
    outputs_path,
    questions_path,
    read_predictions,
    splits_present,
    task_name,
    write_lamp,
    write_predictions,
)
from tagpr_rl.data.tasks import literals
from tagpr_rl.types import LampRecord, ProfileItem, TagprError

REAL = Path(os.environ.get("TAGPR_LAMP_REAL", Path(__file__).parents[3] / "../shared/data/lamp_real"))
TEXT = st.text(max_size=30)


def movie(key: str, gold: str | None = "comedy", **kwargs: Any) -> LampRecord:
    item = ProfileItem(f"{key}0", {"tag": "action", "description": "A chase."})
    text = TASKS["LaMP_2"].make_input(text="Two friends laugh.")
    return replace(LampRecord(key, "LaMP_2", "dev", key, text, (item,), gold), **kwargs)


@st.composite
def task_records(draw: st.DrawFn) -> tuple[str, list[LampRecord]]:
    spec = TASKS[draw(st.sampled_from(sorted(TASKS)))]
    with_gold, dated = draw(st.booleans()), draw(st.booleans())
    records = []
    for key in draw(st.lists(st.text(min_size=1, max_size=6), min_size=1, max_size=4, unique=True)):
        items = tuple(
            ProfileItem(draw(TEXT), {k: draw(TEXT) for k in spec.item_keys}, "2016-05-21" if dated else None)
            for _ in range(draw(st.integers(0, 3)))
        )
        gold = draw(st.sampled_from(spec.labels) if spec.labels else TEXT.filter(str.strip)) if with_gold else None
        user = draw(st.sampled_from([key, "u1", "u2"]))
        text = draw(TEXT.filter(lambda t: bool(t.strip())))
        records.append(LampRecord(key, spec.name, "train", user, text, items, gold))
    return spec.name, records


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(task_records())
def test_what_is_written_is_read_back_equal(tmp_path: Path, drawn: tuple[str, list[LampRecord]]) -> None:
    task, records = drawn
    write_lamp(tmp_path, task, "train", records)
    assert load_folder(tmp_path, [task], "train") == records


def test_written_files_have_the_official_shapes(tmp_path: Path) -> None:
    write_lamp(tmp_path, "LaMP-2", "dev", [movie("7"), movie("8", "classic")])
    questions = json.loads((tmp_path / "LaMP_2" / "dev_questions.json").read_text())
    outputs = json.loads((tmp_path / "LaMP_2" / "dev_outputs.json").read_text())
    assert questions[0] == {
        "id": "7",
        "input": movie("7").input,
        "profile": [{"id": "70", "tag": "action", "description": "A chase."}],
    }
    write_lamp(tmp_path, "LaMP-2", "train", [movie("7", user_id="7"), movie("8", user_id="u3")])
    named = json.loads((tmp_path / "LaMP_2" / "train_questions.json").read_text())
    assert [row["user_id"] for row in named] == ["7", "u3"]
    assert outputs == {
        "task": "LaMP_2",
        "golds": [{"id": "7", "output": "comedy"}, {"id": "8", "output": "classic"}],
    }
    assert splits_present(tmp_path, "LaMP-2") == ("train", "dev")
    assert splits_present(tmp_path, "LaMP_3") == ()


def test_user_split_and_time_split(tmp_path: Path) -> None:
    path = tmp_path / "LaMP_3" / "dev_questions.json"
    path.parent.mkdir()
    item = {"id": 11, "text": "Good.", "score": 5}
    rows = [
        {"id": 1, "input": "review: a", "profile": []},
        {"id": "2", "user_id": "u9", "input": "review: b", "profile": [{**item, "date": "2016-05-21"}]},
    ]
    records = []
    for row in rows:
        path.write_text(json.dumps([row]))
        records += load_lamp(path, None, "dev")
    first, second = records
    assert (first.id, first.user_id, first.profile, first.gold) == ("1", "1", (), None)
    assert second.user_id == "u9"
    assert second.profile == (ProfileItem("11", {"text": "Good.", "score": "5"}, "2016-05-21"),)


def test_half_a_surrogate_pair_becomes_a_replacement_character(tmp_path: Path) -> None:
    path = tmp_path / "LaMP_7" / "dev_questions.json"
    path.parent.mkdir()
    path.write_text('[{"id": "1", "input": "tweet: \\ud83d!", "profile": [{"id": "2", "text": "\\ud83d\\ude00"}]}]')
    [record] = load_lamp(path, None, "dev")
    assert record.input == "tweet: \ufffd!"
    assert record.profile[0].fields["text"] == "\U0001f600"


def test_a_split_without_golds_removes_stale_ones(tmp_path: Path) -> None:
    write_lamp(tmp_path, "LaMP_2", "test", [movie("7", split="test")])
    write_lamp(tmp_path, "LaMP_2", "test", [movie("7", None, split="test")])
    assert not outputs_path(tmp_path, "LaMP_2", "test").exists()
    assert load_folder(tmp_path, ["LaMP_2"], "test")[0].gold is None
    with pytest.raises(TagprError, match="1 of 2 records have no gold"):
        write_lamp(tmp_path, "LaMP_2", "test", [movie("7"), movie("8", None)])
    with pytest.raises(TagprError, match="'8' is of task LaMP_3"):
        write_lamp(tmp_path, "LaMP_2", "test", [movie("7"), movie("8", task="LaMP_3")])


def questions_with(change: Callable[[list[Any]], object]) -> Callable[[Path, Path], None]:
    """Spoil the questions file by changing its parsed rows in place."""

    def spoil(questions: Path, outputs: Path) -> None:
        rows = json.loads(questions.read_text())
        change(rows)
        questions.write_text(json.dumps(rows))

    return spoil


def outputs_with(change: Callable[[dict[str, Any]], object]) -> Callable[[Path, Path], None]:
    """Spoil the outputs file by changing its parsed object in place."""

    def spoil(questions: Path, outputs: Path) -> None:
        data = json.loads(outputs.read_text())
        change(data)
        outputs.write_text(json.dumps(data))

    return spoil


BAD = {
    "missing": (lambda q, o: q.unlink(), r"dev_questions.json: no such file"),
    "truncated": (
        lambda q, o: q.write_text('[{"id": "1", "inp'),
        r"dev_questions.json: record 0 \(begins at character 1\): broken JSON at character 13: Unterminated string",
    ),
    "empty": (lambda q, o: q.write_text("\n"), r"dev_questions.json: empty file"),
    "html": (lambda q, o: o.write_text("<!DOCTYPE html><html>"), r"dev_outputs.json: holds HTML, not JSON"),
    "binary": (lambda q, o: q.write_bytes(b"PK\x03\xff"), r"dev_questions.json: not UTF-8 text \(byte 3\)"),
    "not a list": (
        lambda q, o: q.write_text('{"task": "LaMP_2", "golds": []}'),
        r"top level is an object, not a list of questions; this looks like an outputs file",
    ),
    "no question": (lambda q, o: q.write_text("[]"), "holds no question"),
    "no input": (
        questions_with(lambda rows: rows[1].pop("input")),
        r"record 1 \(id '8'\): lacks input; it has id, ",
    ),
    "no id": (questions_with(lambda rows: rows[1].pop("id")), r"record 1 \(id None\): lacks id"),
    "no profile": (
        questions_with(lambda rows: rows[0].pop("profile")),
        r"record 0 \(id '7'\): lacks profile",
    ),
    "blank input": (questions_with(lambda rows: rows[0].update(input=" ")), r"id '7'\): \"input\" is ' '"),
    "profile null": (questions_with(lambda rows: rows[0].update(profile=None)), r"\"profile\" is null"),
    "record is text": (questions_with(lambda rows: rows.append("x")), r"record 2: 'x' instead of an object"),
    "item keys": (
        questions_with(lambda rows: rows[1]["profile"][0].update(category="x")),
        r"record 1 \(id '8'\): profile item 0: has the keys category, description, id, tag, but LaMP_2 items "
        "have id, tag, description",
    ),
    "item value": (
        questions_with(lambda rows: rows[1]["profile"][0].update(tag=None)),
        r"record 1 \(id '8'\): profile item 0: 'tag' is null, not text",
    ),
    "duplicate id": (questions_with(lambda rows: rows[1].update(id="7")), r"record 1 \(id '7'\): id '7' stands twice"),
    "gold alone": (
        outputs_with(lambda data: data["golds"].append({"id": "99", "output": "comedy"})),
        r"dev_outputs.json: the gold of id '99' has no readable question in .*dev_questions.json",
    ),
    "question alone": (
        outputs_with(lambda data: data["golds"].pop(0)),
        r"dev_questions.json: record 0 \(id '7'\): no gold in .*dev_outputs.json",
    ),
    "other task": (
        outputs_with(lambda data: data.update(task="LaMP_3")),
        r"\"task\" is 'LaMP_3', but these are LaMP_2 questions",
    ),
    "outputs list": (lambda q, o: o.write_text("[]"), r"dev_outputs.json: a list of 0 instead of"),
    "gold lacks output": (
        outputs_with(lambda data: data["golds"][1].pop("output")),
        r"gold 1 \(id '8'\): lacks 'output'",
    ),
    "gold twice": (
        outputs_with(lambda data: data["golds"][1].update(id="7")),
        r"gold 1: id '7' stands twice",
    ),
    "gold not a label": (
        outputs_with(lambda data: data["golds"][1].update(output="Comedy")),
        r"gold of '8' is 'Comedy', not one of LaMP_2's answers: sci-fi",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_one_clear_error(tmp_path: Path, name: str) -> None:
    spoil, message = BAD[name]
    write_lamp(tmp_path, "LaMP_2", "dev", [movie("7"), movie("8")])
    spoil(questions_path(tmp_path, "LaMP_2", "dev"), outputs_path(tmp_path, "LaMP_2", "dev"))
    with pytest.raises(TagprError, match=message):
        load_folder(tmp_path, ["LaMP_2"], "dev")


def test_missing_split_names_the_splits_that_exist(tmp_path: Path) -> None:
    write_lamp(tmp_path, "LaMP_2", "dev", [movie("7")])
    with pytest.raises(TagprError, match=r"train_questions.json: no such file; splits of LaMP_2 in .*: dev\."):
        load_folder(tmp_path, ["LaMP_2"], "train")
    with pytest.raises(TagprError, match="unknown task 'LaMP_9'; known: LaMP_1"):
        load_folder(tmp_path, ["LaMP_9"], "dev")
    with pytest.raises(TagprError, match="split 'validation' is not one of train, dev, test"):
        load_lamp(questions_path(tmp_path, "LaMP_2", "dev"), None, "validation")


def test_the_task_comes_from_argument_folder_or_outputs(tmp_path: Path) -> None:
    write_lamp(tmp_path, "LaMP_2", "dev", [movie("7")])
    loose, golds = tmp_path / "q.json", tmp_path / "o.json"
    loose.write_text(questions_path(tmp_path, "LaMP_2", "dev").read_text())
    golds.write_text(outputs_path(tmp_path, "LaMP_2", "dev").read_text().replace("LaMP_2", "LaMP-2"))
    assert load_lamp(loose, golds, "dev") == [movie("7")]
    assert load_lamp(loose, None, "dev", task="LaMP-2") == [movie("7", None)]
    with pytest.raises(TagprError, match="which task is this"):
        load_lamp(loose, None, "dev")


def test_task_names_of_both_spellings() -> None:
    assert [task_name(name) for name in ("LaMP-2", "LaMP_2", "LaMP-2-old")] == ["LaMP_2", "LaMP_2", "LaMP_2N"]


def test_predictions_file(tmp_path: Path) -> None:
    path = tmp_path / "out" / "p.json"
    write_predictions(path, "LaMP-4", {"1": "A title", "2": ""})
    assert json.loads(path.read_text()) == {
        "task": "LaMP_4",
        "golds": [{"id": "1", "output": "A title"}, {"id": "2", "output": ""}],
    }
    assert read_predictions(path, "LaMP_4") == {"1": "A title", "2": ""}
    with pytest.raises(TagprError, match="\"task\" is 'LaMP_4', expected LaMP_5"):
        read_predictions(path, "LaMP_5")


def test_the_facts_of_the_tasks() -> None:
    assert list(TASKS) == ["LaMP_1", "LaMP_2", "LaMP_2N", "LaMP_3", "LaMP_4", "LaMP_5", "LaMP_6", "LaMP_7"]
    assert [len(spec.labels) for spec in TASKS.values()] == [2, 15, 15, 5, 0, 0, 0, 0]
    assert literals(TASKS["LaMP_5"].item_template) == ('"', '" is a title for "', '" ')
    for spec in TASKS.values():
        blanks = {"title": "TTT", "first": "AAA", "second": "BBB"} if spec.name == "LaMP_1" else {"text": "XXX"}
        record = LampRecord("1", spec.name, "dev", "1", spec.make_input(**blanks), ())
        assert spec.query(record) == ("AAA BBB" if spec.name == "LaMP_1" else "XXX")
        head = spec.input_head(record.input)
        assert record.input.startswith(head)
        assert head.endswith(spec.query_marker or '"')
        line = spec.item_line({key: f"<{key}>" for key in spec.item_keys})
        assert [f"<{key}>" in line for key in spec.item_keys].count(True) >= 1
        assert "{" not in line


@pytest.mark.skipif(not REAL.is_dir(), reason="real LaMP questions are not here (TAGPR_LAMP_REAL)")
def test_real_questions_load() -> None:
    records = load_folder(REAL, ["LaMP_2", "LaMP_4"], "dev")
    assert len(records) == 243
    assert all(record.gold for record in records)
    for record in records:
        head = literals(TASKS[record.task].input_template)[0]
        assert record.input.startswith(head)


def test_packed_files_are_seen(tmp_path: Path) -> None:
    (tmp_path / "LaMP_2").mkdir()
    (tmp_path / "LaMP_2" / "dev_questions.json.gz").write_bytes(b"x")
    with pytest.raises(TagprError, match=r"none \(its files are packed, first .*dev_questions\.json\.gz; unpack them"):
        load_folder(tmp_path, ["LaMP_2"], "dev")
