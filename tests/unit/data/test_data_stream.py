"""The streaming reader: equal to `json.loads` on good files, one clear refusal for every damaged record."""

from __future__ import annotations

import copy
import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tagpr_rl.data import stream
from tagpr_rl.data.check import check_files, check_folder, describe, query_fault
from tagpr_rl.data.lamp import questions_path, stream_lamp, write_lamp
from tagpr_rl.data.stream import read_json, stream_list
from tagpr_rl.data.tasks import TASKS
from tagpr_rl.types import LampRecord, ProfileItem, TagprError

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=12,
)


def read_all(path: Path) -> tuple[list[Any], str | None]:
    """(elements before the first fault, the fault's message)."""
    actual: list[Any] = []
    try:
        for value in stream_list(path):
            actual.append(value)
    except TagprError as error:
        return actual, str(error)
    return actual, None


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(JSON, max_size=8), st.integers(1, 40), st.booleans(), st.sampled_from([None, 2]))
def test_any_list_in_any_chunks(
    tmp_path: Path, values: list[Any], chunk: int, ascii_only: bool, indent: int | None
) -> None:
    path = tmp_path / "x.json"
    text = json.dumps(values, ensure_ascii=ascii_only, indent=indent)
    path.write_bytes(text.encode("utf-8", "surrogatepass") if ascii_only else text.encode("utf-8", "replace"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stream, "CHUNK", chunk)
        assert list(stream_list(path)) == json.loads(path.read_text(encoding="utf-8"))


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=60), st.integers(1, 40))
def test_any_bytes_are_a_list_or_one_error(tmp_path: Path, data: bytes, chunk: int) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(b'[{"a": 1}, ' + data)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stream, "CHUNK", chunk)
        actual, message = read_all(path)
    if message is None:
        assert actual == json.loads(path.read_text(encoding="utf-8-sig"))
    else:
        assert str(path) in message


@pytest.mark.parametrize(
    ("text", "n_read", "message"),
    [
        ('[{"a": 1}, {"b": }]', 1, "record 1 (begins at character 11): broken JSON at character 17: Expecting value"),
        ('[{"a": 1} {"b": 2}]', 1, "expected ',' or ']' after the record"),
        ('[{"a": 1},]', 1, "record 1 (begins at character 10): broken JSON"),
        ('[{"a": 1}', 1, "the file ends here"),
        ('[{"a": 1}] x', 1, "text after the list's end"),
        ("[" * 100_000, 0, "record 0 (begins at character 1): broken JSON at character 1: nested too deeply"),
        ('[{"a": "x\ny"}]', 0, "Invalid control character"),
        ('{"golds": []}', 0, "this looks like an outputs file"),
        ("17", 0, "the top level is not a list"),
        ("  ", 0, "empty file"),
        ("\n <html>", 0, "holds HTML"),
    ],
)
def test_what_stands_before_a_fault_is_read(tmp_path: Path, text: str, n_read: int, message: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(text)
    actual, error = read_all(path)
    assert len(actual) == n_read
    assert str(path) in str(error) and message in str(error)


def test_odd_but_legal_files(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(b"\xef\xbb\xbf [1, -Infinity, 1" + b"0" * 5000 + b"]\n")
    assert list(stream_list(path)) == [1, float("-inf"), float("inf")]  # no id and no score: refused above this
    path.write_bytes(b'["ab", "c\xff"]')
    with pytest.raises(TagprError, match=r"not UTF-8 text \(byte 9\)"):
        list(stream_list(path))


def test_a_quotation_mark_that_never_closes_does_not_fill_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "MAX_ELEMENT", 1000)
    monkeypatch.setattr(stream, "CHUNK", 100)
    path = tmp_path / "x.json"
    path.write_text('["' + "x" * 100_000)
    reader = stream_list(path)
    with pytest.raises(TagprError, match=r"record 0 .*Unterminated string"):
        next(reader)


# ---- damaged records ----

Damage = Callable[[random.Random, dict[str, Any]], bool]
"""Spoils a question in place; whether it must then be refused."""

NOT_TEXT: tuple[Any, ...] = (None, True, [], {}, ["x"], {"a": 1}, float("nan"), float("inf"))


def drop_key(rng: random.Random, row: dict[str, Any]) -> bool:
    del row[rng.choice(["id", "input", "profile"])]
    return True


def drop_item_key(rng: random.Random, row: dict[str, Any]) -> bool:
    item = rng.choice(row["profile"])
    del item[rng.choice(sorted(item))]
    return True


def odd_value(rng: random.Random, row: dict[str, Any]) -> bool:
    row[rng.choice(["id", "input"])] = rng.choice(NOT_TEXT)
    return True


def odd_item_value(rng: random.Random, row: dict[str, Any]) -> bool:
    item = rng.choice(row["profile"])
    item[rng.choice(sorted(item))] = rng.choice(NOT_TEXT)
    return True


def odd_profile(rng: random.Random, row: dict[str, Any]) -> bool:
    row["profile"] = rng.choice([None, "x", 3, {"id": "1"}, [None], ["x"], [[]], [3]])
    return True


def new_item_key(rng: random.Random, row: dict[str, Any]) -> bool:
    rng.choice(row["profile"])["category"] = "x"
    return True


def blank_input(rng: random.Random, row: dict[str, Any]) -> bool:
    row["input"] = rng.choice(["", " ", "\n\u3000"])
    return True


def same_id(rng: random.Random, row: dict[str, Any]) -> bool:
    row["id"] = "first"
    return True


def odd_user(rng: random.Random, row: dict[str, Any]) -> bool:
    row["user_id"] = rng.choice(NOT_TEXT[1:])
    return True


def odd_date(rng: random.Random, row: dict[str, Any]) -> bool:
    rng.choice(row["profile"])["date"] = rng.choice(NOT_TEXT[1:])
    return True


def numbers_for_text(rng: random.Random, row: dict[str, Any]) -> bool:
    row["id"] = rng.randint(10**6, 10**9)
    rng.choice(row["profile"])["id"] = rng.choice([7, 7.5, 10**200])
    return False


def odd_text(rng: random.Random, row: dict[str, Any]) -> bool:
    rng.choice(row["profile"])["tag"] = rng.choice(["\ud83d", "\x00", "\u202e", "", '"]}, {"', "</s>"])
    return False


def empty_profile(rng: random.Random, row: dict[str, Any]) -> bool:
    row["profile"] = []
    return False


def more_keys(rng: random.Random, row: dict[str, Any]) -> bool:
    row[rng.choice(["output", "note", "date"])] = rng.choice(NOT_TEXT)
    return False


DAMAGES: tuple[Damage, ...] = (
    drop_key, drop_item_key, odd_value, odd_item_value, odd_profile, new_item_key, blank_input, same_id,
    odd_user, odd_date, numbers_for_text, odd_text, empty_profile, more_keys,
)  # fmt: skip


def question(key: str) -> dict[str, Any]:
    return {
        "id": key,
        "input": TASKS["LaMP_2"].make_input(text="Two friends laugh."),
        "profile": [{"id": f"{key}{n}", "tag": "action", "description": f"A chase {n}."} for n in range(3)],
    }


def test_ten_thousand_damaged_records_are_read_or_refused(tmp_path: Path) -> None:
    rng = random.Random(0)
    path = questions_path(tmp_path, "LaMP_2", "dev")
    path.parent.mkdir()
    n_refused = 0
    for turn in range(100):
        rows, wanted = [question("first")], [False]
        for index in range(100):
            row = question(f"q{index}")
            wanted.append(DAMAGES[(turn + index) % len(DAMAGES)](rng, row))
            rows.append(row)
        path.write_text(json.dumps(rows))
        refused: list[str] = []
        read = [record.id for record in stream_lamp(path, None, "dev", task="LaMP_2", on_fault=refused.append)]
        places = [index for index, bad in enumerate(wanted) if bad]
        assert len(read) + len(refused) == 101
        assert len(refused) == len(places)
        for message, index in zip(refused, places, strict=True):  # file, record, reason
            assert message.startswith(f"{path}: record {index}") and len(message) > len(f"{path}: record {index}") + 10
        n_refused += len(refused)
    assert n_refused > 6000


@pytest.mark.slow
def test_ten_thousand_damaged_texts_are_read_or_refused(tmp_path: Path) -> None:
    rng = random.Random(1)
    path = questions_path(tmp_path, "LaMP_2", "dev")
    path.parent.mkdir()
    text = json.dumps([question(f"q{n}") for n in range(6)])
    whole = [json.dumps(row) for row in json.loads(text)]
    n_broken = 0
    for _ in range(3000):
        at = rng.randrange(len(text))
        kind = rng.randrange(4)
        junk = rng.choice(['"', "{", "}", "]", ",", "\\", "\x00", "é", "<html>", "1e999", "NaN"])
        spoilt = [text[:at], text[:at] + junk + text[at:], text[:at] + text[at + rng.randint(1, 40) :],
                  text[:at] + junk + text[at + 1 :]][kind]  # fmt: skip
        path.write_text(spoilt)
        actual = check_files(tmp_path, "LaMP_2", "dev")
        if actual.broken is not None:
            n_broken += 1
            assert actual.broken.startswith(str(path))
        try:
            rows = json.loads(spoilt)
        except ValueError:
            assert actual.broken is not None
            # Every record that stands whole before the damage was read.
            intact = sum(text.find(row) + len(row) <= at for row in whole)
            assert actual.n_read + actual.n_refused >= intact
        else:
            if isinstance(rows, list):
                assert actual.n_read + actual.n_refused == len(rows)
    assert n_broken > 1000


def test_a_strict_reader_stops_at_the_first_damaged_record(tmp_path: Path) -> None:
    path = questions_path(tmp_path, "LaMP_2", "dev")
    path.parent.mkdir()
    rows = [question("1"), {"id": "2"}, question("3")]
    path.write_text(json.dumps(rows))
    reader = stream_lamp(path, None, "dev")
    assert next(reader).id == "1"
    with pytest.raises(TagprError, match=r"record 1 \(id '2'\): lacks input, profile"):
        next(reader)


def headline(key: str, gold: str, titles: list[str], text: str = "A day.") -> LampRecord:
    items = tuple(ProfileItem(f"{n}", {"title": title, "text": "x"}) for n, title in enumerate(titles))
    return LampRecord(key, "LaMP_4", "dev", key, TASKS["LaMP_4"].make_input(text=text), items, gold)


def test_the_check_counts_and_names(tmp_path: Path) -> None:
    records = [headline("1", "Gold", ["Gold", "x"]), headline("2", "Gold", ["gold"]), headline("3", "New", [])]
    records.append(copy.replace(records[2], id="4", input="Write!") if hasattr(copy, "replace") else LampRecord(
        "4", "LaMP_4", "dev", "4", "Write!", (), "New"))  # fmt: skip
    write_lamp(tmp_path, "LaMP_4", "dev", records)
    path = questions_path(tmp_path, "LaMP_4", "dev")
    rows = json.loads(path.read_text())
    rows.insert(1, {"id": "bad"})
    path.write_text(json.dumps(rows))
    [actual] = check_folder(tmp_path)
    assert (actual.n_read, actual.n_refused, actual.users, actual.items, actual.items_max) == (3, 2, None, 3, 2)
    assert (actual.empty_profiles, actual.setting, actual.fine, actual.broken) == (1, "user", False, None)
    assert {kind: (d.count, d.examples[0].partition(":")[0]) for kind, d in actual.defects.items()} == {
        "gold stands in the user's own profile": (1, "1"),
    }
    text = "\n".join(describe(actual))
    assert f"{path}: record 1 (id 'bad'): lacks input, profile" in text
    assert "refused: LaMP_4 record '4': input has no 'article:'" in text
    assert "data.skip_defective: 2 leaves the refused records out" in text
    assert f"sha256 {actual.sha256['dev_questions.json']}  dev_questions.json" in text
    path.write_text(path.read_text()[:-30])
    assert "this record and what follows cannot be read" in str(check_files(tmp_path, "LaMP_4", "dev").broken)
    with pytest.raises(TagprError, match=r"no <task>/<split>_questions\.json there"):
        list(check_folder(tmp_path, ["LaMP_2"]))


def test_a_gold_without_a_question_is_refused_too(tmp_path: Path) -> None:
    write_lamp(tmp_path, "LaMP_4", "dev", [headline("1", "Gold", []), headline("2", "Gold", [])])
    path = questions_path(tmp_path, "LaMP_4", "dev")
    path.write_text(json.dumps(json.loads(path.read_text())[1:]))
    actual = check_files(tmp_path, "LaMP_4", "dev")
    assert (actual.n_read, actual.n_refused) == (1, 1)
    assert "gold of id '1' has no readable question" in actual.refused[0]


@pytest.mark.parametrize(
    ("task", "text", "fault"),
    [
        ("LaMP_1", 'the title "a", which? [1]: "b" [2]: "c"', None),
        ("LaMP_1", 'the title "a "b" c", which? [1]: "b" [2]: "c"', "8 quotation marks instead of 6"),
    ],
)
def test_query_faults(task: str, text: str, fault: str | None) -> None:
    actual = query_fault(LampRecord("1", task, "dev", "1", text, ()))
    assert actual is None if fault is None else fault in str(actual)


@pytest.mark.parametrize(
    ("task", "text", "fault"),
    [
        ("LaMP_1", 'the title "a"', "input has 1 quoted texts"),
        ("LaMP_3", "review:  ", "nothing stands where the text of the question should: 'review:  '"),
        ("LaMP_3", "rate this", "input has no 'review:'"),
    ],
)
def test_a_question_without_query_is_refused_if_one_is_needed(tmp_path: Path, task: str, text: str, fault: str) -> None:
    path = questions_path(tmp_path, task, "dev")
    path.parent.mkdir()
    path.write_text(json.dumps([{"id": "1", "input": text, "profile": []}]))
    assert [record.id for record in stream_lamp(path, None, "dev")] == ["1"]
    with pytest.raises(TagprError, match=re.escape(fault)):
        list(stream_lamp(path, None, "dev", query=True))


def test_a_key_that_stands_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "LaMP_2.json"
    path.write_text('{"7": ["a"], "8": [], "7": ["b"]}')
    with pytest.raises(TagprError, match="the key '7' stands twice in one object"):
        read_json(path)
