"""metrics.jsonl: what is read after a process was killed while writing, rows of any length, damaged lines."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tagpr_rl.run import metrics
from tagpr_rl.types import TagprError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "metrics.jsonl"


def test_no_file_has_no_rows(path: Path) -> None:
    assert metrics.rows(path) == [] and metrics.last(path) is None
    metrics.trim(path, 3)
    metrics.sync(path)
    assert not path.exists()


def test_rows_come_back_as_they_were_appended(path: Path) -> None:
    rows = [{"step": 1, "loss": 0.1 + 0.2}, {"step": 2, "text": "a\u2028b", "loss": 1e-300}]
    for row in rows:
        metrics.append(path, row)
    metrics.sync(path)
    assert metrics.rows(path) == rows and metrics.last(path) == rows[-1]
    assert path.read_bytes().count(b"\n") == 2
    with pytest.raises(ValueError, match="not JSON compliant"):
        metrics.append(path, {"step": 3, "loss": float("nan")})
    assert metrics.rows(path) == rows


@pytest.mark.parametrize("length", [10, 16_384, 65_535, 65_536, 200_000])
def test_the_last_row_may_have_any_length(path: Path, length: int) -> None:
    path.write_text(json.dumps({"step": 1}) + "\n" + json.dumps({"step": 2, "text": "x" * length}) + "\n")
    row = metrics.last(path)
    assert row is not None and row["step"] == 2 and len(row["text"]) == length
    with path.open("a") as handle:
        handle.write('{"step": 3, "text": "' + "y" * length)
    assert metrics.last(path) == row


def test_a_line_that_a_kill_cut_short_is_ignored_and_removed_before_the_next_row(path: Path) -> None:
    path.write_text('{"step": 1}\n{"step": 2, "rew')
    assert metrics.rows(path) == [{"step": 1}] and metrics.last(path) == {"step": 1}
    metrics.append(path, {"step": 2})
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'
    path.write_text('{"step": 1')
    assert metrics.rows(path) == [] and metrics.last(path) is None
    metrics.append(path, {"step": 1})
    assert path.read_text() == '{"step": 1}\n'


def test_a_whole_object_without_its_line_break_counts_as_cut(path: Path) -> None:
    """Whether its last digit is missing cannot be seen: 12 may be the beginning of 123."""
    path.write_text('{"step": 1}\n{"step": 2}')
    assert metrics.rows(path) == [{"step": 1}] and metrics.last(path) == {"step": 1}


@pytest.mark.parametrize(
    "text, problem",
    [
        ('{"step": 1\n{"step": 2}\n', "line 1 is not valid JSON"),
        ('{"step": 1}\n\n{"step": 2}\n', "line 2 is not valid JSON"),
        ('{"step": 1}\n[2]\n', "line 2 must be a JSON object, not list"),
        ('{"step": 1}\n{"step": \xff\n', "line 2 is not valid JSON"),
    ],
)
def test_a_damaged_line_is_an_error_that_names_file_and_line(path: Path, text: str, problem: str) -> None:
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(TagprError, match=problem) as caught:
        metrics.rows(path)
    assert str(path) in str(caught.value)
    with pytest.raises(TagprError, match=problem):
        metrics.trim(path, 9)


def test_a_damaged_last_line_is_an_error_for_last_too(path: Path) -> None:
    path.write_text('{"step": 1}\n{"step": 2\n')
    with pytest.raises(TagprError, match="line 2 is not valid JSON"):
        metrics.last(path)


def test_trim_keeps_the_lines_up_to_a_step_as_they_are(path: Path) -> None:
    path.write_text('{"step":1, "x":1.0}\n{"step": 2.0}\n{"step": 3}\n{"step": 4')
    metrics.trim(path, 2)
    assert path.read_text() == '{"step":1, "x":1.0}\n{"step": 2.0}\n'
    metrics.trim(path, 0)
    assert path.read_text() == ""


@given(cut=st.integers(0, 120), lengths=st.lists(st.integers(0, 20), min_size=1, max_size=5))
def test_wherever_a_kill_cuts_the_file_the_rows_before_it_are_read(
    tmp_path_factory: pytest.TempPathFactory, cut: int, lengths: list[int]
) -> None:
    path = tmp_path_factory.mktemp("cut") / "metrics.jsonl"
    written = [{"step": step, "text": "x" * length} for step, length in enumerate(lengths)]
    whole = "".join(json.dumps(row) + "\n" for row in written).encode()[:cut]
    path.write_bytes(whole)
    expected = written[: whole.count(b"\n")]
    assert metrics.rows(path) == expected
    assert metrics.last(path) == (expected[-1] if expected else None)
    metrics.append(path, {"step": 99})
    assert metrics.rows(path) == [*expected, {"step": 99}]


def test_a_tail_reads_what_came_since(path: Path) -> None:
    tail = metrics.Tail(path)
    assert tail.read() == ([], True)
    for step in (1, 2):
        metrics.append(path, {"step": step})
    assert tail.read() == ([{"step": 1}, {"step": 2}], True)
    with path.open("a") as handle:
        handle.write('{"step": 3, "lo')  # a process was killed while it wrote
    assert tail.read() == ([], False)
    metrics.append(path, {"step": 3})
    assert tail.read() == ([{"step": 3}], False)
    metrics.trim(path, 2)  # a resume drops the steps after its checkpoint
    metrics.append(path, {"step": 3, "again": True})
    assert tail.read() == ([{"step": 1}, {"step": 2}, {"step": 3, "again": True}], True)
    path.open("a").write("[]\n")
    with pytest.raises(TagprError, match="line 4 must be a JSON object"):
        tail.read()
    path.unlink()
    assert tail.read() == ([], True)
