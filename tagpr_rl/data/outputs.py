"""LaMP's outputs: golds and predictions, `{"task", "golds": [{"id", "output"}]}`, and the values inside."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tagpr_rl.data.stream import read_json
from tagpr_rl.data.tasks import TaskSpec
from tagpr_rl.types import TagprError


def refuse(message: str) -> None:
    """Raise TagprError: what happens to a fault unless a caller collects it."""
    raise TagprError(message)


def parse_golds(
    source: str, data: Any, on_fault: Callable[[str, str | None], None] = lambda message, _: refuse(message)
) -> tuple[str, dict[str, str]]:
    """(task name as written, id -> output) of an outputs or predictions file's value; `source` for messages.

    An entry that cannot be read goes to `on_fault`, with its id if that can be read.
    """
    if not isinstance(data, dict) or "task" not in data or not isinstance(data.get("golds"), list):
        raise TagprError(f'{source}: {kind_of(data)} instead of {{"task", "golds": [{{"id", "output"}}]}}')
    golds: dict[str, str] = {}
    for index, row in enumerate(data["golds"]):
        where = f"{source}: gold {index}"
        name = id_of(row)
        try:
            if not isinstance(row, dict):
                raise TagprError(f'{where}: {kind_of(row)} instead of {{"id", "output"}}')
            for key in ("id", "output"):
                if key not in row:
                    raise TagprError(f"{where} (id {row.get('id')!r}): lacks {key!r}")
            own = text_of(row["id"], f'{where}: "id"')
            if own in golds:
                raise TagprError(f"{where}: id {own!r} stands twice; ids must be unique")
            golds[own] = text_of(row["output"], f'{where} (id {own!r}): "output"')
        except TagprError as fault:
            on_fault(str(fault), name)
    return str(data["task"]), golds


class Golds:
    """The golds of one outputs file. A defective entry costs its question and is told with it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.defective: dict[str, str] = {}
        self.nameless: list[str] = []
        self.task, self.outputs = parse_golds(str(path), read_json(path), self._refuse)

    def _refuse(self, message: str, key: str | None = None) -> None:
        if key is None:
            self.nameless.append(message)
        else:
            self.defective.setdefault(key, message)

    def of(self, key: str, where: str, spec: TaskSpec) -> str:
        """The gold of a question. TagprError if there is none, or one that the task cannot have."""
        if key in self.defective:
            raise TagprError(self.defective[key])
        if key not in self.outputs:
            entry = f" ({self.nameless.pop(0)})" if self.nameless else ""
            raise TagprError(f"{where}: no gold in {self.path}{entry}; the two files must come from the same split")
        spec.require_gold(self.outputs[key], f"{self.path}: gold of {key!r}")
        return self.outputs[key]

    def left_over(self, ids: set[str], n_nameless: int, questions: Path) -> Iterator[str]:
        """A message for each entry that has no question; `n_nameless` questions without an id account for as many."""
        orphans = [key for key in (*self.outputs, *self.defective) if key not in ids]
        for key in list(dict.fromkeys(orphans))[n_nameless:]:
            yield (
                f"{self.path}: the gold of id {key!r} has no readable question in {questions}; "
                "the two files must come from the same split"
            )
        yield from self.nameless


def same_task(name: str, written: str) -> bool:
    """Whether a file's task name means `name`. Old news files call themselves LaMP_2."""
    spelled = written.replace("-", "_")
    return spelled == name or (name == "LaMP_2N" and spelled in ("LaMP_2", "LaMP_2_old"))


def id_of(row: Any) -> str | None:
    """The question's id, if the row has one that can be read."""
    try:
        return text_of(row["id"], "id")
    except (TagprError, KeyError, TypeError):
        return None


def text_of(value: Any, where: str) -> str:
    """Text, or a number as text (some releases store scores and ids as numbers)."""
    if isinstance(value, str):
        # Half a surrogate pair (an emoji cut in two) is legal JSON, but UTF-8 and tokenizers refuse it.
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return str(value)
    raise TagprError(f"{where} is {kind_of(value)}, not text")


def kind_of(value: Any) -> str:
    """A short name of a JSON value for messages."""
    if isinstance(value, dict):
        return f"an object with the keys {', '.join(map(str, list(value)[:5])) or '(none)'}"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    if value is None:
        return "null"
    return repr(value) if len(repr(value)) <= 40 else f"{repr(value)[:37]}..."
