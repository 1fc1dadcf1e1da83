"""Reading a run's files: what may be broken and what may not."""

from __future__ import annotations

from pathlib import Path

import pytest

from tagpr_rl.report.page.read import finite, number, read_object, read_rows
from tagpr_rl.types import TagprError


def test_rows_tolerate_only_a_cut_last_line(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "x": NaN, "t": "a\u2028b"}\n{"step": 2, "x"')
    assert read_rows(path) == [{"step": 1, "x": None, "t": "a\u2028b"}]
    path.write_text('{"step": 1\n{"step": 2}\n')
    with pytest.raises(TagprError, match="line 1 is not valid JSON"):
        read_rows(path)
    path.write_text("[1]\n")
    with pytest.raises(TagprError, match="must be a JSON object"):
        read_rows(path)


def test_a_missing_file_is_empty_and_a_wrong_one_an_error(tmp_path: Path) -> None:
    assert read_rows(tmp_path / "none.jsonl") == [] and read_object(tmp_path / "none.json") is None
    (tmp_path / "data.json").write_text("{")
    with pytest.raises(TagprError, match=r"data\.json is not valid JSON"):
        read_object(tmp_path / "data.json")
    (tmp_path / "list.json").write_text("[]")
    with pytest.raises(TagprError, match="must hold a JSON object, not list"):
        read_object(tmp_path / "list.json")


def test_finite_and_number() -> None:
    assert finite({"a": [float("inf"), 1.5, "x\ud800"]}) == {"a": [None, 1.5, "x?"]}
    assert [number(v) for v in (1, 2.5, True, None, "3", float("nan"))] == [1.0, 2.5, None, None, None, None]
