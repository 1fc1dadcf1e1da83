"""Rankings of profile items as files: upstream's `{question id: [item ids, best first]}`, one file per task.

`LaMP/rank_profiles.py` at 38c9d4d writes this shape and `LaMP/utils/merge_with_rank.py` reads it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tagpr_rl.data.stream import read_json
from tagpr_rl.data.tasks import task_name
from tagpr_rl.files import write_json
from tagpr_rl.prompts.retrieve import Rankings, Retriever
from tagpr_rl.types import LampRecord, TagprError


def rankings_path(folder: Path, task: str) -> Path:
    """The file of one task in a folder of rankings."""
    return Path(folder) / f"{task_name(task)}.json"


def read_rankings(path: Path, tasks: Iterable[str]) -> Rankings:
    """The rankings at `path`: a folder with one `<task>.json` per task, or the file of the only task."""
    path, names = Path(path), [task_name(task) for task in tasks]
    if path.is_dir():
        files = {name: rankings_path(path, name) for name in names}
    elif len(names) == 1:
        files = {names[0]: path}
    else:
        raise TagprError(
            f"{path}: one rankings file for {len(names)} tasks, and question ids repeat across tasks; give a folder "
            f"with {', '.join(f'{name}.json' for name in names)}"
        )
    return {(name, key): items for name, file in files.items() for key, items in _read(file).items()}


def write_rankings(path: Path, records: Iterable[LampRecord], retriever: Retriever) -> int:
    """Rank every record's whole profile and write upstream's file. Returns the number of records."""
    rankings: dict[str, list[str]] = {}
    for record in records:
        if record.id in rankings:
            raise TagprError(f"{path}: question id {record.id!r} stands twice; write one file per task and split")
        rankings[record.id] = [item.id for item in retriever(record)]
    if not rankings:
        raise TagprError(f"{path}: there is no question to rank")
    write_json(Path(path), rankings)
    return len(rankings)


def _read(path: Path) -> Mapping[str, list[str]]:
    data = read_json(path)
    if not isinstance(data, dict):
        raise TagprError(f"{path}: not an object of question id -> list of item ids")
    return {key: _item_ids(path, key, value) for key, value in data.items()}


def _item_ids(path: Path, key: str, value: Any) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(item, str) or type(item) is int for item in value):
        raise TagprError(f"{path}: question {key!r}: expected a list of item ids, got {str(value)[:60]!r}")
    items = [str(item) for item in value]
    if len(set(items)) < len(items):
        raise TagprError(f"{path}: question {key!r} ranks an item twice")
    return items
