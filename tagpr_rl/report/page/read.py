"""Reads the JSON and JSONL files of a run; a missing file is None or empty, a broken one is an error."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tagpr_rl.run import metrics
from tagpr_rl.types import TagprError

Row = dict[str, Any]
Reader = Callable[[Path], list[Row]]
"""Reads the rows of a JSONL file: `read_rows`, or a `GrowingRows`."""
Interval = tuple[float | None, float | None, float | None]
"""(value, low, high) of a 95 % interval; None = not measured."""


def read_json(path: Path) -> Any | None:
    """Content of `path`, non-finite numbers as None; None if there is no such file. TagprError if broken."""
    if not path.is_file():
        return None
    try:
        return finite(json.loads(path.read_text(encoding="utf-8")))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise TagprError(f"{path} is not valid JSON ({error}); remove it and run its stage again") from None


def read_object(path: Path) -> Row | None:
    """As `read_json`, but the content must be an object."""
    value = read_json(path)
    if value is not None and not isinstance(value, dict):
        raise TagprError(f"{path} must hold a JSON object, not {type(value).__name__}; run its stage again")
    return value


def read_rows(path: Path) -> list[Row]:
    """Rows of a JSONL file of the run, read as run/metrics.py reads one, non-finite numbers as None."""
    return [finite(row) for row in metrics.each(path)]


class GrowingRows:
    """`read_rows` for a reader that stays: of a file that it has read before, only what was appended is read."""

    def __init__(self) -> None:
        self._files: dict[Path, tuple[metrics.Tail, list[Row]]] = {}

    def __call__(self, path: Path) -> list[Row]:
        """The rows of `path` so far. The list is the reader's own: do not change it."""
        tail, known = self._files.setdefault(path, (metrics.Tail(path), []))
        rows, first = tail.read()
        if first:
            known.clear()
        known += map(finite, rows)
        return known


def finite(value: Any) -> Any:
    """`value` with NaN and infinities as None and half surrogate pairs as "?", at any depth."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode("utf-8")
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [finite(item) for item in value]
    return value


def number(value: Any) -> float | None:
    """`value` as a float if it is a finite number (not a bool), else None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


def interval(value: Any) -> Interval:
    """`value` as an interval if it is a list of three, else three times None."""
    numbers = [number(item) for item in value] if isinstance(value, list) else []
    return (numbers[0], numbers[1], numbers[2]) if len(numbers) == 3 else (None, None, None)
