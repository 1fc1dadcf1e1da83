"""Reads W&B's offline files: what a killed process has really recorded (it loses what its last block held)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tagpr_rl.run.trackers import GLOBAL_STEP

_BLOCK, _HEADER = 32768, 7


def records(path: Path) -> Iterator[Any]:
    """Whole records of a .wandb file: W&B's 7-byte header, then LevelDB's log format in blocks of 32 KiB."""
    from wandb.proto import wandb_internal_pb2

    data, at, whole = path.read_bytes(), _HEADER, b""
    while at + _HEADER <= len(data):
        if _BLOCK - at % _BLOCK < _HEADER:
            at += _BLOCK - at % _BLOCK
            continue
        length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        part = data[at + _HEADER : at + _HEADER + length]
        at += _HEADER + length
        if kind == 0 or len(part) < length:  # cut off by a kill
            return
        whole += part
        if kind in (1, 4):  # a full record, or the last part of one
            record = wandb_internal_pb2.Record()
            record.ParseFromString(whole)
            whole = b""
            yield record


def history(run: Path) -> Iterator[dict[str, Any]]:
    """Every row that the run's offline files hold, in order of writing."""
    for path in sorted((run / "wandb").glob("*run-*/run-*.wandb")):
        for record in records(path):
            if record.WhichOneof("record_type") == "history":
                items = record.history.item
                yield {(i.nested_key[0] if i.nested_key else i.key): json.loads(i.value_json) for i in items}


def last_step(run: Path) -> int | None:
    """The highest global step in the run's files; -1 where they hold no row, None where there are no files here."""
    if not list((run / "wandb").glob("*run-*/run-*.wandb")):
        return None
    return max((int(row[GLOBAL_STEP]) for row in history(run) if GLOBAL_STEP in row), default=-1)
