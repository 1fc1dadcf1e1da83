"""What W&B has recorded in its offline files, whose format is private: for tests that look at the result."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

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
