"""Reads and writes LaMP's official prediction and gold files, single ones or the benchmark's zip of seven."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tagpr_rl.data.outputs import parse_golds
from tagpr_rl.data.stream import decode, read_json
from tagpr_rl.data.tasks import TASKS, task_name
from tagpr_rl.files import replacing, sha256_file
from tagpr_rl.types import TagprError

ZIP_TASKS = ("LaMP_1", "LaMP_2", "LaMP_3", "LaMP_4", "LaMP_5", "LaMP_6", "LaMP_7")
"""The tasks of a zip. Upstream's `eval_all.py` fails with more or fewer."""
MAX_MEMBER = 1 << 28
"""Largest size in bytes of a zip's member. Predictions have a few megabytes."""


@dataclass(frozen=True, slots=True)
class Answers:
    """One task's predictions or golds."""

    task: str
    path: Path
    sha256: str
    """SHA-256 of the file, or of the whole zip."""
    outputs: Mapping[str, str]
    """Question id -> text."""


def read_answers(path: Path, task: str | None = None) -> dict[str, Answers]:
    """Task -> answers of an official `.json` file or a `.zip` of them.

    `task`: the task of a single file. It tells LaMP_2N (news) from LaMP_2, because both files call themselves LaMP_2.
    """
    path = Path(path)
    if not path.is_file():
        wrong = "it is a folder" if path.is_dir() else "no such file"
        raise TagprError(f"{path}: {wrong}; give an official predictions or outputs file, or a zip of them")
    digest = sha256_file(path)
    if zipfile.is_zipfile(path):
        members = _members(path)
    else:
        members = {str(path): read_json(path)}
    answers: dict[str, Answers] = {}
    for source, value in members.items():
        in_file, outputs = parse_golds(source, value)
        name = _task(source, in_file, task if len(members) == 1 else None)
        if name in answers:
            raise TagprError(f"{source}: {name} is in {path} twice")
        if not outputs:
            raise TagprError(f"{source}: holds no answer")
        answers[name] = Answers(name, path, digest, outputs)
    return answers


def require_same_questions(preds: Answers, golds: Answers) -> None:
    """TagprError unless both have exactly the same ids, as upstream's evaluation requires."""
    missing = [key for key in golds.outputs if key not in preds.outputs]
    extra = [key for key in preds.outputs if key not in golds.outputs]
    if missing or extra:
        parts = []
        if missing:
            parts.append(f"{len(missing)} of {len(golds.outputs)} questions have no prediction: {_few(missing)}")
        if extra:
            parts.append(f"{len(extra)} predictions belong to no gold: {_few(extra)}")
        raise TagprError(
            f"{preds.path} and {golds.path}: {'; '.join(parts)}; predictions must answer the golds' questions, all of "
            "them and no other"
        )


def _few(ids: Sequence[str]) -> str:
    return ", ".join(map(repr, ids[:5])) + (", ..." if len(ids) > 5 else "")


def read_golds(path: Path, task: str | None = None) -> dict[str, Answers]:
    """`read_answers` of golds. TagprError for a gold that its task cannot have, with the task that fits."""
    answers = read_answers(path, task)
    for name, own in answers.items():
        for key, gold in own.outputs.items():
            TASKS[name].require_gold(gold, f"{own.path}: {name} gold of {key!r}")
    return answers


def write_zip(path: Path, answers: Iterable[Answers]) -> None:
    """The zip that `eval_all.py` reads: `LaMP_1.json` ... `LaMP_7.json`. TagprError unless it is all seven."""
    by_task = {answer.task: answer for answer in answers}
    require_archive(path, by_task)
    with replacing(Path(path)) as temp, zipfile.ZipFile(temp, "w", zipfile.ZIP_DEFLATED) as archive:
        for task in ZIP_TASKS:
            golds = [{"id": key, "output": text} for key, text in by_task[task].outputs.items()]
            # A fixed time stamp: the same answers make the same bytes.
            info = zipfile.ZipInfo(f"{task}.json", date_time=(1980, 1, 1, 0, 0, 0))
            info.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(info, json.dumps({"task": task, "golds": golds}, ensure_ascii=False))


def require_archive(path: Path, tasks: Collection[str]) -> None:
    """TagprError unless `tasks` are the seven of the official zip."""
    missing = [task for task in ZIP_TASKS if task not in tasks]
    extra = [task for task in tasks if task not in ZIP_TASKS]
    if missing or extra:
        raise TagprError(
            f"{path}: the official zip has exactly {', '.join(ZIP_TASKS)}; missing: {', '.join(missing) or 'none'}; "
            f"not among them: {', '.join(extra) or 'none'}"
        )


def _members(path: Path) -> dict[str, object]:
    """Name for messages -> JSON value of every .json file in a zip, read in memory."""
    values: dict[str, object] = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                hidden = Path(info.filename).name.startswith(".") or info.filename.startswith("__MACOSX/")
                if info.is_dir() or hidden or not info.filename.endswith(".json"):
                    continue
                source = f"{path}, member {info.filename}"
                if info.file_size > MAX_MEMBER:
                    raise TagprError(f"{source}: {info.file_size} bytes unpacked; predictions are much smaller")
                try:
                    text = archive.read(info).decode("utf-8-sig")
                except UnicodeDecodeError as error:
                    raise TagprError(f"{source}: not UTF-8 text (byte {error.start})") from None
                values[source] = decode(Path(source), text)
    except (zipfile.BadZipFile, RuntimeError, NotImplementedError, EOFError) as error:  # damaged, encrypted, odd method
        raise TagprError(f"{path}: the zip cannot be read: {error}") from None
    if not values:
        raise TagprError(f"{path}: the zip holds no .json file")
    return values


def _task(source: str, in_file: str, given: str | None) -> str:
    try:
        name = task_name(in_file)
    except TagprError as error:
        raise TagprError(f'{source}: "task": {error}') from None
    if given is None or name == task_name(given):
        return name
    if (task_name(given), name) == ("LaMP_2N", "LaMP_2"):
        return "LaMP_2N"
    raise TagprError(f'{source}: "task" is {in_file!r}, expected {task_name(given)}')
