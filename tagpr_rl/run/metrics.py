"""A stage's metrics.jsonl: one JSON object per training step. The only reader and writer of such files.

A process that is killed while it writes leaves a last line without its line break. That line is ignored by every
reader and removed by the next `append` or `trim`. Any other line that is not a JSON object is an error.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tagpr_rl.files import write_text
from tagpr_rl.types import TagprError

Row = dict[str, Any]
_BLOCK_BYTES = 1 << 16


def append(path: Path, row: Mapping[str, Any]) -> None:
    """Write `row` as the file's last line. ValueError for a NaN or an infinity, which JSON does not have."""
    line = (json.dumps(row, allow_nan=False) + "\n").encode()
    with path.open("ab+") as handle:
        end = handle.tell()
        whole = _end_of_whole_lines(path, end)
        if whole != end:
            handle.truncate(whole)
        handle.write(line)


def rows(path: Path) -> list[Row]:
    """Every whole row; [] if there is no such file. TagprError names a line that is not a JSON object."""
    return list(each(path))


def each(path: Path) -> Iterator[Row]:
    """The rows one by one, for a reader that keeps less than all of them; otherwise as `rows`."""
    return (row for _, row in _lines(path))


def last(path: Path) -> Row | None:
    """The last whole row, or None if there is none. Reads the end of the file only, however long a row is."""
    if not path.is_file():
        return None
    end = _end_of_whole_lines(path, path.stat().st_size)
    if end == 0:
        return None
    start = _end_of_whole_lines(path, end - 1)
    with path.open("rb") as handle:
        handle.seek(start)
        line = handle.read(end - start)
    try:
        row = json.loads(line)
    except ValueError:
        row = None
    return row if isinstance(row, dict) else rows(path)[-1]  # raises, with the line's number


def seconds_left(rows: list[Row], steps: int) -> float | None:
    """Seconds until the last step, at the mean pace of the rows since the stage was last started; None before two.

    `time_s` counts from the start of the process. A resume is seen only if `time_s` falls; if it does not, the estimate
    is too low until more rows exist.
    """
    first = len(rows) - 1
    while first > 0 and rows[first - 1]["time_s"] < rows[first]["time_s"]:
        first -= 1
    if len(rows) - first < 2:
        return None
    start, end = rows[first], rows[-1]
    pace = (end["time_s"] - start["time_s"]) / (end["step"] - start["step"])
    return float(pace * (steps - end["step"]))


def duration(seconds: float) -> str:
    """`42 s`, `3 min`, `2.5 h`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 100 * 60 else f"{seconds / 3600:.1f} h"


def trim(path: Path, step: int) -> None:
    """Drop the rows after `step`, which a stage that goes on from its checkpoint logs again, and a cut last line."""
    if path.is_file():
        write_text(path, "".join(f"{line.decode()}\n" for line, row in _lines(path) if row["step"] <= step))


class Tail:
    """A file that another process appends to: every `read` gives the rows that came since the one before."""

    def __init__(self, path: Path) -> None:
        self._path, self._inode, self._end, self._lines = path, 0, 0, 0

    def read(self) -> tuple[list[Row], bool]:
        """(new whole rows, whether they are the file's first). Errors as `rows`.

        A file that was trimmed, replaced or removed since is read from its start.
        """
        try:
            status = self._path.stat()
        except FileNotFoundError:
            self._inode = self._end = self._lines = 0
            return [], True
        if status.st_ino != self._inode or status.st_size < self._end:
            self._inode, self._end, self._lines = status.st_ino, 0, 0
        first, new = self._end == 0, []
        if status.st_size > self._end:
            for line, row in _lines(self._path, self._end, self._lines):
                self._end += len(line) + 1
                self._lines += 1
                new.append(row)
        return new, first


def sync(path: Path) -> None:
    """Make what was appended survive a power cut. Nothing happens if there is no such file."""
    if path.is_file():
        with path.open("rb") as handle:
            os.fsync(handle.fileno())


def _lines(path: Path, start: int = 0, before: int = 0) -> Iterator[tuple[bytes, Row]]:
    """(line without its break, row) of every whole line from byte `start` on; `before` lines stand before it."""
    if not path.is_file():
        return
    # In bytes: a JSON string may hold U+2028 and others at which a text file's lines end.
    with path.open("rb") as handle:
        handle.seek(start)
        for number, line in enumerate(handle, start=before + 1):
            if not line.endswith(b"\n"):
                return
            try:
                row = json.loads(line, object_pairs_hook=_with_shared_keys)
            except ValueError as error:
                raise TagprError(
                    f"{path}, line {number} is not valid JSON ({error}); remove the line or run the stage again"
                ) from None
            if not isinstance(row, dict):
                raise TagprError(f"{path}, line {number} must be a JSON object, not {type(row).__name__}")
            yield line[:-1], row


def _with_shared_keys(pairs: list[tuple[str, Any]]) -> Row:
    """A row whose keys are the same objects as every other row's: half the memory of a long file."""
    return {sys.intern(key): value for key, value in pairs}


def _end_of_whole_lines(path: Path, end: int) -> int:
    """Where the last line break before byte `end` ends; 0 if there is none."""
    with path.open("rb") as handle:
        while end > 0:
            start = max(0, end - _BLOCK_BYTES)
            handle.seek(start)
            place = handle.read(end - start).rfind(b"\n")
            if place >= 0:
                return start + place + 1
            end = start
    return 0
