"""LaMP's files to records and back: schema-checked loading, official shapes on writing.

Layout: `<folder>/<task>/<split>_questions.json` and `<folder>/<task>/<split>_outputs.json`. Both the user
split (no `user_id`, no dates) and the time split (`user_id`, a `date` per item) are read. The task facts are
in `tasks.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tagpr_rl.data.stream import decode, page_instead, stream_list
from tagpr_rl.data.tasks import TASKS, TaskSpec, task_name
from tagpr_rl.files import write_json
from tagpr_rl.types import LampRecord, ProfileItem, TagprError

SPLITS = ("train", "dev", "test")

OnFault = Callable[[str], None]
"""Called with one message for each record that is refused: file, record and reason."""


def _refuse(message: str) -> None:
    raise TagprError(message)


def questions_path(folder: Path, task: str, split: str) -> Path:
    """Where the questions of one task and split stand under `folder`."""
    return Path(folder) / task_name(task) / f"{split}_questions.json"


def outputs_path(folder: Path, task: str, split: str) -> Path:
    """Where the golds of one task and split stand under `folder`."""
    return Path(folder) / task_name(task) / f"{split}_outputs.json"


def splits_present(folder: Path, task: str) -> tuple[str, ...]:
    """The splits of `task` with a questions file, in the order train, dev, test."""
    return tuple(split for split in SPLITS if questions_path(folder, task, split).is_file())


def load_folder(folder: Path, tasks: Iterable[str], split: str) -> list[LampRecord]:
    """All records of one split of `tasks`, task by task. Golds are None if the task has no outputs file."""
    records: list[LampRecord] = []
    for task in tasks:
        questions = questions_path(folder, task, split)
        if not questions.is_file():
            present = splits_present(folder, task)
            raise TagprError(
                f"{questions}: no such file; splits of {task_name(task)} in {folder}: "
                f"{', '.join(present) or 'none'}. "
                f"Download the task's {split} files from LaMP into that folder, or name another split or task"
            )
        outputs = outputs_path(folder, task, split)
        records += load_lamp(questions, outputs if outputs.is_file() else None, split, task=task)
    return records


def load_lamp(questions: Path, outputs: Path | None, split: str, *, task: str | None = None) -> list[LampRecord]:
    """Records of one LaMP file pair, in file order: `stream_lamp` in a list."""
    return list(stream_lamp(questions, outputs, split, task=task))


def stream_lamp(
    questions: Path,
    outputs: Path | None,
    split: str,
    *,
    task: str | None = None,
    on_fault: OnFault = _refuse,
) -> Iterator[LampRecord]:
    """Records of one LaMP file pair, one at a time; only the golds are held in memory.

    `task` may be left out when the folder or the outputs file names it. Ids and scores may be numbers; they
    become text. An empty profile is fine. A record that deviates from LaMP's shapes in any other way is refused:
    `on_fault` is called with the reason (by default it raises TagprError), and the next record follows. A fault that
    makes the rest of the file unreadable (broken JSON, another task) raises TagprError in any case.
    """
    questions = Path(questions)
    if split not in SPLITS:
        raise TagprError(f"split {split!r} is not one of {', '.join(SPLITS)}")
    written, golds = _read_golds(Path(outputs), on_fault) if outputs is not None else (None, None)
    name = _resolve_task(questions, task, written)
    if written is not None and not _same_task(name, written):
        raise TagprError(
            f'{outputs}: "task" is {written!r}, but these are {name} questions ({questions}); '
            "pair each questions file with its own outputs file"
        )
    ids: set[str] = set()
    index = -1
    for index, row in enumerate(stream_list(questions)):
        try:
            record = _read_question(questions, index, row, TASKS[name], split)
            where = f"{questions}: record {index} (id {record.id!r})"
            if record.id in ids:
                raise TagprError(f"{where}: id {record.id!r} stands twice; ids must be unique")
            ids.add(record.id)
            if golds is not None:
                record = replace(record, gold=_gold(golds, record.id, where, Path(str(outputs)), TASKS[name]))
        except TagprError as fault:
            on_fault(str(fault))
        else:
            yield record
    if index < 0:
        raise TagprError(f"{questions}: holds no question; download it again")
    for key in golds or ():
        if key not in ids:
            on_fault(
                f"{outputs}: the gold of id {key!r} has no readable question in {questions}; "
                "the two files must come from the same split"
            )


def _gold(golds: Mapping[str, str], key: str, where: str, outputs: Path, spec: TaskSpec) -> str:
    if key not in golds:
        raise TagprError(f"{where}: no gold in {outputs}; the two files must come from the same split")
    gold = golds[key]
    if spec.labels and gold.strip() not in spec.labels:
        raise TagprError(
            f"{outputs}: gold of {key!r} is {gold!r}, not one of {spec.name}'s answers: {', '.join(spec.labels)}"
        )
    return gold


def write_lamp(folder: Path, task: str, split: str, records: Sequence[LampRecord]) -> None:
    """Write the official pair of files for one task and split, each atomically.

    `user_id` is written if it differs from the question id, a `date` if the item has one. Either all records have a
    gold or none: without golds there is no outputs file, and an older one is removed.
    """
    name = task_name(task)
    if split not in SPLITS:
        raise TagprError(f"split {split!r} is not one of {', '.join(SPLITS)}")
    golds = [record.gold for record in records if record.gold is not None]
    if golds and len(golds) != len(records):
        raise TagprError(
            f"{name} {split}: {len(records) - len(golds)} of {len(records)} records have no gold; all or none"
        )
    for record in records:
        if record.task != name:
            raise TagprError(
                f"{name} {split}: record {record.id!r} is of task {record.task}; write each task on its own"
            )
    write_json(questions_path(folder, name, split), [_question_row(record) for record in records])
    if golds:
        write_predictions(outputs_path(folder, name, split), name, {r.id: str(r.gold) for r in records})
    else:
        outputs_path(folder, name, split).unlink(missing_ok=True)


def write_predictions(path: Path, task: str, predictions: Mapping[str, str]) -> None:
    """Write answers in the shape the official evaluation reads: `{"task", "golds": [{"id", "output"}]}`.

    The key is literally "golds" upstream, for predictions too.
    """
    golds = [{"id": key, "output": text} for key, text in predictions.items()]
    write_json(Path(path), {"task": task_name(task), "golds": golds})


def read_predictions(path: Path, task: str) -> dict[str, str]:
    """Read a predictions (or outputs) file of `task`: id -> text. TagprError on another task or shape."""
    written, golds = _read_golds(Path(path))
    if not _same_task(task_name(task), written):
        raise TagprError(f'{path}: "task" is {written!r}, expected {task_name(task)}; name the right file')
    return golds


def read_json(path: Path) -> Any:
    """The JSON value of a whole file, or a TagprError that says what the file is instead."""
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise TagprError(f"{path}: no such file; download LaMP into that folder, or correct the path") from None
    except UnicodeDecodeError as error:
        raise TagprError(f"{path}: not UTF-8 text (byte {error.start}); unpack or download it again") from None
    except OSError as error:
        raise TagprError(f"{path}: cannot be read: {error.strerror}") from None
    if not text.strip():
        raise TagprError(f"{path}: empty file; download it again")
    if text.lstrip()[:1] == "<":
        raise page_instead(path)
    return decode(path, text)


def _read_golds(path: Path, on_fault: OnFault = _refuse) -> tuple[str, dict[str, str]]:
    """The task name as written and id -> output; an entry that cannot be read goes to `on_fault`."""
    return parse_golds(str(path), read_json(path), on_fault)


def parse_golds(source: str, data: Any, on_fault: OnFault = _refuse) -> tuple[str, dict[str, str]]:
    """(task name as written, id -> output) of an outputs or predictions file's value; `source` for messages."""
    if not isinstance(data, dict) or "task" not in data or not isinstance(data.get("golds"), list):
        raise TagprError(f'{source}: {_kind(data)} instead of {{"task", "golds": [{{"id", "output"}}]}}')
    golds: dict[str, str] = {}
    for index, row in enumerate(data["golds"]):
        where = f"{source}: gold {index}"
        try:
            if not isinstance(row, dict):
                raise TagprError(f'{where}: {_kind(row)} instead of {{"id", "output"}}')
            for key in ("id", "output"):
                if key not in row:
                    raise TagprError(f"{where} (id {row.get('id')!r}): lacks {key!r}")
            key = _text(row["id"], f'{where}: "id"')
            if key in golds:
                raise TagprError(f"{where}: id {key!r} stands twice; ids must be unique")
            golds[key] = _text(row["output"], f'{where} (id {key!r}): "output"')
        except TagprError as fault:
            on_fault(str(fault))
    return str(data["task"]), golds


def _resolve_task(questions: Path, task: str | None, written: str | None) -> str:
    """The task by argument, else by the folder's name, else by the outputs file."""
    if task is not None:
        return task_name(task)
    for candidate in (questions.parent.name, written):
        if candidate is not None and candidate.replace("-", "_") in TASKS:
            return task_name(candidate)
    raise TagprError(
        f"{questions}: which task is this? Put the file in a folder named after it ({', '.join(TASKS)}), "
        "or name the task"
    )


def _same_task(name: str, written: str) -> bool:
    """Whether a file's task name means `name`. Old news files call themselves LaMP_2."""
    spelled = written.replace("-", "_")
    return spelled == name or (name == "LaMP_2N" and spelled in ("LaMP_2", "LaMP_2_old"))


def _read_question(path: Path, index: int, row: Any, spec: TaskSpec, split: str) -> LampRecord:
    where = f"{path}: record {index}"
    if not isinstance(row, dict):
        raise TagprError(f"{where}: {_kind(row)} instead of an object with id, input, profile")
    missing = [key for key in ("id", "input", "profile") if key not in row]
    if missing:
        raise TagprError(f"{where} (id {row.get('id')!r}): lacks {', '.join(missing)}; it has {', '.join(row)}")
    key = _text(row["id"], f'{where}: "id"')
    where = f"{where} (id {key!r})"
    if not isinstance(row["input"], str) or not row["input"].strip():
        raise TagprError(f'{where}: "input" is {_kind(row["input"])}; it must be text that is not empty')
    if not isinstance(row["profile"], list):
        raise TagprError(f'{where}: "profile" is {_kind(row["profile"])}, not a list of items')
    user = key if row.get("user_id") is None else _text(row["user_id"], f'{where}: "user_id"')
    items = tuple(_read_item(f"{where}: profile item {n}", item, spec) for n, item in enumerate(row["profile"]))
    text = _text(row["input"], f'{where}: "input"')
    return LampRecord(id=key, task=spec.name, split=split, user_id=user, input=text, profile=items)


def _read_item(where: str, row: Any, spec: TaskSpec) -> ProfileItem:
    if not isinstance(row, dict):
        raise TagprError(f"{where}: {_kind(row)} instead of an object")
    expected = {"id", *spec.item_keys}
    if set(row) - {"date"} != expected:
        raise TagprError(
            f"{where}: has the keys {', '.join(sorted(row)) or '(none)'}, but {spec.name} items have "
            f"{', '.join(('id', *spec.item_keys))} (and date in the time split); is this another task's file?"
        )
    fields = {key: _text(row[key], f"{where}: {key!r}") for key in spec.item_keys}
    date = None if row.get("date") is None else _text(row["date"], f'{where}: "date"')
    return ProfileItem(id=_text(row["id"], f'{where}: "id"'), fields=fields, date=date)


def _question_row(record: LampRecord) -> dict[str, Any]:
    row: dict[str, Any] = {"id": record.id}
    if record.user_id != record.id:
        row["user_id"] = record.user_id
    row["input"] = record.input
    row["profile"] = [
        {"id": item.id, **item.fields} | ({} if item.date is None else {"date": item.date}) for item in record.profile
    ]
    return row


def _text(value: Any, where: str) -> str:
    """Text, or a number as text (some releases store scores and ids as numbers)."""
    if isinstance(value, str):
        # Half a surrogate pair (an emoji cut in two) is legal JSON, but UTF-8 and tokenizers refuse it.
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return str(value)
    raise TagprError(f"{where} is {_kind(value)}, not text")


def _kind(value: Any) -> str:
    """A short name of a JSON value for messages."""
    if isinstance(value, dict):
        return f"an object with the keys {', '.join(map(str, list(value)[:5])) or '(none)'}"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    if value is None:
        return "null"
    return repr(value) if len(repr(value)) <= 40 else f"{repr(value)[:37]}..."
