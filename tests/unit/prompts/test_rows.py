"""Parquet files in bounded row groups, whatever the rows hold."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tagpr_rl import files
from tagpr_rl.files import read_parquet, write_parquet
from tagpr_rl.prompts.rows import prompt_schema, shuffled_rows, to_row
from tagpr_rl.types import LampRecord, ProfileItem, Prompt


def prompt_row(number: int, n_items: int) -> dict[str, object]:
    items = tuple(ProfileItem(str(k), {"text": f"{number}" * 10}) for k in range(n_items))
    record = LampRecord(str(number), "LaMP_7", "train", f"u{number % 3}", "tweet: x", items, "y")
    prompt = Prompt(record.id, "LaMP_7", record.user_id, ({"role": "user", "content": "q"},), (), 0, False, 1)
    return to_row(record, prompt, number)


def test_row_groups_are_bounded_and_rows_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "ROW_GROUP_CHARS", 500)
    rows = [prompt_row(n, n % 5) for n in range(40)]  # the first profile is empty
    path = tmp_path / "rows.parquet"
    assert write_parquet(path, iter(rows), prompt_schema()) == 40
    assert pq.ParquetFile(path).num_row_groups > 5
    assert list(read_parquet(path)) == rows
    assert (
        list(read_parquet(shuffled_rows(path, tmp_path / "other.parquet", 0), ["data_source"]))
        == [{"data_source": "LaMP_7"}] * 40
    )
    assert pq.ParquetFile(tmp_path / "other.parquet").num_row_groups > 5


def test_columns_are_those_of_all_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "ROW_GROUP_CHARS", 25)
    rows = [{"a": None, "b": {"c": []}}] * 3 + [{"a": "x" * 9, "b": {"c": ["y" * 9]}}] * 4
    path = tmp_path / "rows.parquet"
    assert write_parquet(path, rows) == 7 and list(read_parquet(path)) == rows
    assert pq.ParquetFile(path).num_row_groups == 5  # 24 characters (3 * 8 for None) and then 18 a row
    assert write_parquet(path, []) == 0 and list(read_parquet(path)) == []
