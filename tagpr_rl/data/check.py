"""What a folder of LaMP files holds: counts, hashes, refused records and defects. Reads each file once, streaming."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tagpr_rl.data.lamp import SPLITS, folders_present, outputs_path, questions_path, stream_lamp
from tagpr_rl.data.tasks import TASKS
from tagpr_rl.files import sha256_file
from tagpr_rl.types import LampRecord, TagprError

MAX_EXAMPLES = 5
"""Examples of each kind of defect."""


@dataclass
class Defects:
    """Questions with one kind of defect. They load, but figures made from them deserve a second look."""

    count: int = 0
    examples: list[str] = field(default_factory=list)

    def add(self, example: str) -> None:
        """Count one question; its example is kept if it is among the first."""
        self.count += 1
        if len(self.examples) < MAX_EXAMPLES:
            self.examples.append(example)


@dataclass
class FileCheck:
    """One task and split."""

    task: str
    split: str
    questions: Path
    outputs: Path | None
    sha256: dict[str, str]
    """File name -> hash."""
    n_read: int = 0
    n_refused: int = 0
    users: int | None = None
    """People; None if the file does not name them (a run finds them by their profiles)."""
    items: int = 0
    items_max: int = 0
    empty_profiles: int = 0
    dated: int = 0
    """Questions whose profile items all have a date: the time split."""
    refused: list[str] = field(default_factory=list)
    """Every refusal: file, record and reason."""
    broken: str | None = None
    """Why nothing after the last record read could be read."""
    defects: dict[str, Defects] = field(default_factory=dict)

    @property
    def setting(self) -> str:
        """time, user, or why it is neither."""
        with_items = self.n_read - self.empty_profiles
        if not with_items:
            return "no profiles"
        return {0: "user", with_items: "time"}.get(self.dated, "some dates are missing")

    @property
    def fine(self) -> bool:
        """Whether every record was read."""
        return not self.n_refused and self.broken is None


def leaks_gold(record: LampRecord) -> bool:
    """Whether a profile item's title (or tweet) is the gold. Always False for tasks with a closed list of labels."""
    spec = TASKS[record.task]
    if spec.kind != "generation" or record.gold is None or spec.label_key is None:
        return False
    gold = record.gold.strip()
    return any(item.fields[spec.label_key].strip() == gold for item in record.profile)


def query_fault(record: LampRecord) -> str | None:
    """Why retrieval has a wrong query for this question; None if the query is sound."""
    if TASKS[record.task].query_marker is None and (quotes := record.input.count('"')) != 6:
        return f"{quotes} quotation marks instead of 6, so the candidates are cut wrongly"
    return None


def present(folder: Path, tasks: Iterable[str] = TASKS, splits: Iterable[str] = SPLITS) -> list[tuple[str, str]]:
    """(task, split) of every questions file under `folder`."""
    splits = tuple(splits)
    return [(task, split) for task in tasks for split in splits if questions_path(folder, task, split).is_file()]


def check_folder(folder: Path, tasks: Iterable[str] = TASKS, splits: Iterable[str] = SPLITS) -> Iterator[FileCheck]:
    """One check for each task and split in `folder`. TagprError if there is none."""
    files = present(folder, tasks, splits)
    if not files:
        raise TagprError(
            f"{folder}: no <task>/<split>_questions.json there (tasks {', '.join(TASKS)}; splits {', '.join(SPLITS)})"
            f"{folders_present(folder)}; name the folder that holds one folder per task"
        )
    for task, split in files:
        yield check_files(folder, task, split)


def check_files(folder: Path, task: str, split: str) -> FileCheck:
    """Read one pair of files; refusals and defects are counted, not raised."""
    questions, outputs = questions_path(folder, task, split), outputs_path(folder, task, split)
    own_outputs = outputs if outputs.is_file() else None
    files = [questions, *([outputs] if own_outputs else [])]
    check = FileCheck(task, split, questions, own_outputs, {path.name: sha256_file(path) for path in files})
    users: set[str] = set()
    named = False
    try:
        for record in stream_lamp(questions, own_outputs, split, task=task, query=True, on_fault=check.refused.append):
            check.n_read += 1
            users.add(record.user_id)
            named |= record.user_id != record.id
            _count(check, record)
    except TagprError as error:
        check.broken = str(error)
    check.n_refused, check.users = len(check.refused), len(users) if named else None
    return check


def _count(check: FileCheck, record: LampRecord) -> None:
    check.items += len(record.profile)
    check.items_max = max(check.items_max, len(record.profile))
    check.empty_profiles += not record.profile
    check.dated += bool(record.profile) and all(item.date is not None for item in record.profile)

    def defect(kind: str, example: str) -> None:
        check.defects.setdefault(kind, Defects()).add(f"{record.id}: {example}" if example else record.id)

    if leaks_gold(record):
        defect("gold stands in the user's own profile", "")
    if (why := query_fault(record)) is not None:
        defect("malformed query", why)
    if len({item.id for item in record.profile}) < len(record.profile):
        defect("profile items share an id", "")
    if (
        record.gold is not None
        and TASKS[record.task].kind == "generation"
        and not re.search(r"[a-z0-9]", record.gold.lower())
    ):
        defect("gold without a letter or digit that ROUGE reads", "")


def describe(check: FileCheck) -> list[str]:
    """The check as lines for a terminal."""
    mean = check.items / check.n_read if check.n_read else 0.0
    lines = [
        f"{check.task} {check.split} ({check.setting} split): {check.n_read} questions read, {check.n_refused} entries "
        f"refused, {'no' if check.users is None else check.users} user ids, {mean:.1f} profile items on average, at "
        f"most {check.items_max}, {check.empty_profiles} empty profiles"
        + ("" if check.outputs else "; no outputs file, so no golds")
    ]
    lines += [f"  sha256 {digest}  {name}" for name, digest in check.sha256.items()]
    for kind, defects in check.defects.items():
        examples = "; ".join(defects.examples)
        more = f" and {defects.count - len(defects.examples)} more" if defects.count > len(defects.examples) else ""
        lines.append(f"  defect: {kind}: {defects.count} (id {examples}{more})")
    lines += [f"  refused: {message}" for message in check.refused]
    if check.refused and check.broken is None:
        lines.append(f"  data.skip_defective: {len(check.refused)} leaves the refused records out of a run")
    if check.broken is not None:
        lines.append(f"  broken: {check.broken}")
    return lines
