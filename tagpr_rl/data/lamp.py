"""LaMP's files to records and back: schema-checked loading, official shapes on writing.

Layout: `<folder>/<task>/<split>_questions.json` and `<folder>/<task>/<split>_outputs.json`. Both the user
split (no `user_id`, no dates) and the time split (`user_id`, a `date` per item) are read. The task facts are
in `tasks.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tagpr_rl.data.outputs import Golds, id_of, kind_of, parse_golds, refuse, same_task, text_of
from tagpr_rl.data.stream import read_json, stream_list
from tagpr_rl.data.tasks import TASKS, TaskSpec, task_name
from tagpr_rl.files import write_json
from tagpr_rl.types import LampRecord, ProfileItem, TagprError

SPLITS = ("train", "dev", "test")

OnFault = Callable[[str], None]
"""Called with one message for each record that is refused: file, record and reason."""


def questions_path(folder: Path, task: str, split: str) -> Path:
    """Where the questions of one task and split stand under `folder`."""
    return Path(folder) / task_name(task) / f"{split}_questions.json"


def outputs_path(folder: Path, task: str, split: str) -> Path:
    """Where the golds of one task and split stand under `folder`."""
    return Path(folder) / task_name(task) / f"{split}_outputs.json"


def splits_present(folder: Path, task: str) -> tuple[str, ...]:
    """The splits of `task` with a questions file, in the order train, dev, test."""
    return tuple(split for split in SPLITS if questions_path(folder, task, split).is_file())


def folders_present(folder: Path) -> str:
    """` (it holds LaMP-2, other)`: the folders in `folder`, or its first packed file, for a message that misses one."""
    ends = [f"{below}*.{end}" for below in ("*/", "") for end in ("gz", "zip", "bz2", "xz")]
    packed = sorted(path for end in ends for path in Path(folder).glob(end))
    if packed:
        return f" (its files are packed, first {packed[0]}; unpack them with gunzip or unzip)"
    names = sorted(path.name for path in Path(folder).iterdir() if path.is_dir()) if Path(folder).is_dir() else []
    return f" (it holds {', '.join(names[:12])}{', ...' if len(names) > 12 else ''})" if names else ""


def load_folder(
    folder: Path,
    tasks: Iterable[str],
    split: str,
    *,
    golds: bool = False,
    query: bool = False,
    on_fault: OnFault = refuse,
) -> list[LampRecord]:
    """All records of one split of `tasks`, task by task; `query` and `on_fault` as in `stream_lamp`.

    Golds are None if a task has no outputs file, which is an error if `golds` are needed.
    """
    records: list[LampRecord] = []
    for task in tasks:
        questions = questions_path(folder, task, split)
        if not questions.is_file():
            present = splits_present(folder, task)
            raise TagprError(
                f"{questions}: no such file; splits of {task_name(task)} in {folder}: "
                f"{', '.join(present) or 'none'}{'' if present else folders_present(folder)}. "
                f"Download the task's {split} files from LaMP into that folder, or name another split or task"
            )
        outputs = outputs_path(folder, task, split)
        if golds and not outputs.is_file():
            raise TagprError(
                f"{outputs}: no such file, so the questions of {questions} have no gold; training and evaluation need "
                "both files. Download it beside the questions"
            )
        own = outputs if outputs.is_file() else None
        records += stream_lamp(questions, own, split, task=task, query=query, on_fault=on_fault)
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
    query: bool = False,
    on_fault: OnFault = refuse,
) -> Iterator[LampRecord]:
    """Records of one LaMP file pair, one at a time; only the golds are held in memory.

    `task` may be left out when the folder or the outputs file names it. Ids and scores may be numbers; they
    become text. An empty profile is fine. A record that deviates from LaMP's shapes in any other way is refused, with
    `query` also one that has no text to retrieve for: `on_fault` is called once with the reason (by default it raises
    TagprError), and the next record follows. A fault that makes the rest of the file unreadable (broken JSON, another
    task) raises TagprError in any case.
    """
    questions = Path(questions)
    if split not in SPLITS:
        raise TagprError(f"split {split!r} is not one of {', '.join(SPLITS)}")
    golds = None if outputs is None else Golds(Path(outputs))
    name = _resolve_task(questions, task, None if golds is None else golds.task)
    if golds is not None and not same_task(name, golds.task):
        raise TagprError(
            f'{outputs}: "task" is {golds.task!r}, but these are {name} questions ({questions}); '
            "pair each questions file with its own outputs file"
        )
    ids: set[str] = set()
    n_nameless, index = 0, -1
    with_user: bool | None = None
    for index, row in enumerate(stream_list(questions)):
        key = id_of(row)
        again = key in ids
        n_nameless += key is None
        ids.update(() if key is None else (key,))
        try:
            record = _read_question(questions, index, row, TASKS[name], split)
            where = f"{questions}: record {index} (id {record.id!r})"
            with_user = _same_ids(row, with_user, where)
            if again:
                raise TagprError(f"{where}: id {record.id!r} stands twice; ids must be unique")
            if query and not TASKS[name].query(record).split():
                raise TagprError(f"{where}: nothing stands where the text of the question should: {record.input!r}")
            if golds is not None:
                record = replace(record, gold=golds.of(record.id, where, TASKS[name]))
        except TagprError as fault:
            on_fault(str(fault))
        else:
            yield record
    if index < 0:
        raise TagprError(f"{questions}: holds no question; download it again")
    for message in () if golds is None else golds.left_over(ids, n_nameless, questions):
        on_fault(message)


def write_lamp(folder: Path, task: str, split: str, records: Sequence[LampRecord]) -> None:
    """Write the official pair of files for one task and split, each atomically.

    `user_id` is written if one of them differs from the question's id, a `date` if the item has one. Either all records
    have a gold or none: without golds there is no outputs file, and an older one is removed.
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
    with_user = any(record.user_id != record.id for record in records)
    write_json(questions_path(folder, name, split), [_question_row(record, with_user) for record in records])
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
    written, golds = parse_golds(str(path), read_json(path))
    if not same_task(task_name(task), written):
        raise TagprError(f'{path}: "task" is {written!r}, expected {task_name(task)}; name the right file')
    return golds


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


def _read_question(path: Path, index: int, row: Any, spec: TaskSpec, split: str) -> LampRecord:
    where = f"{path}: record {index}"
    if not isinstance(row, dict):
        raise TagprError(f"{where}: {kind_of(row)} instead of an object with id, input, profile")
    missing = [key for key in ("id", "input", "profile") if key not in row]
    if missing:
        raise TagprError(f"{where} (id {row.get('id')!r}): lacks {', '.join(missing)}; it has {', '.join(row)}")
    key = text_of(row["id"], f'{where}: "id"')
    where = f"{where} (id {key!r})"
    if not isinstance(row["input"], str) or not row["input"].strip():
        raise TagprError(f'{where}: "input" is {kind_of(row["input"])}; it must be text that is not empty')
    if not isinstance(row["profile"], list):
        raise TagprError(f'{where}: "profile" is {kind_of(row["profile"])}, not a list of items')
    user = key if row.get("user_id") is None else text_of(row["user_id"], f'{where}: "user_id"')
    items = tuple(_read_item(f"{where}: profile item {n}", item, spec) for n, item in enumerate(row["profile"]))
    text = text_of(row["input"], f'{where}: "input"')
    return LampRecord(id=key, task=spec.name, split=split, user_id=user, input=text, profile=items)


def _same_ids(row: Mapping[str, Any], with_user: bool | None, where: str) -> bool:
    """Whether the file's questions have a user_id; TagprError if this one differs from those before it."""
    own = row.get("user_id") is not None
    if with_user not in (None, own):
        raise TagprError(
            f"{where}: has {'a' if own else 'no'} user_id, unlike the questions before it; give one to all, or none"
        )
    return own


def _read_item(where: str, row: Any, spec: TaskSpec) -> ProfileItem:
    if not isinstance(row, dict):
        raise TagprError(f"{where}: {kind_of(row)} instead of an object")
    expected = {"id", *spec.item_keys}
    if set(row) - {"date"} != expected:
        raise TagprError(
            f"{where}: has the keys {', '.join(sorted(row)) or '(none)'}, but {spec.name} items have "
            f"{', '.join(('id', *spec.item_keys))} (and date in the time split); is this another task's file?"
        )
    fields = {key: text_of(row[key], f"{where}: {key!r}") for key in spec.item_keys}
    date = None if row.get("date") is None else text_of(row["date"], f'{where}: "date"')
    return ProfileItem(id=text_of(row["id"], f'{where}: "id"'), fields=fields, date=date)


def _question_row(record: LampRecord, with_user: bool) -> dict[str, Any]:
    row: dict[str, Any] = {"id": record.id}
    if with_user:
        row["user_id"] = record.user_id
    row["input"] = record.input
    row["profile"] = [
        {"id": item.id, **item.fields} | ({} if item.date is None else {"date": item.date}) for item in record.profile
    ]
    return row
