"""The files of a chains stage, and its export as a folder for Hugging Face `datasets`."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from enum import Enum
from pathlib import Path
from typing import Any

from tagpr_rl.chains.build import RejectedChain
from tagpr_rl.files import sha256_file, sync_folder, write_json, write_parquet, write_text
from tagpr_rl.tags.grammar import parse
from tagpr_rl.tags.schema import TagSchema, to_mapping
from tagpr_rl.types import TagprError

CHAINS, PAIRS, FACTS, REJECTED = "chains.parquet", "pairs.parquet", "chains.json", "rejected.parquet"
MARKER = "tagpr_dataset.json"
"""The file that is written last into an exported folder: the stage that it came from, and each file's SHA-256."""
ROWS_PER_FILE = 50_000

_CHAIN_COLUMNS = ("record_id", "task", "user_id", "messages", "response", "answer", "correct")
_PAIR_COLUMNS = ("record_id", "task", "user_id", "chosen", "rejected", "kind")
_ARROW_TYPES = {"int": "int64", "float": "float64", "bool": "bool"}


@dataclass(frozen=True, slots=True)
class StoredChains:
    """The files of a finished chains stage, loaded."""

    facts: Mapping[str, Any]
    """The content of chains.json."""
    chains: Any
    """pyarrow.Table, one row per kept chain."""
    pairs: Any
    """pyarrow.Table, one row per preference pair; None if there are no pairs."""


def write_rejected(folder: Path, rejected: Sequence[RejectedChain]) -> Path:
    """Write `rejected.parquet`, with one row per rejected chain in order; returns its path.

    The columns are the fields of `RejectedChain`. The teacher's `text` may contain markup.
    """
    import pyarrow as pa

    names = {field.name: _ARROW_TYPES.get(str(field.type), "string") for field in fields(RejectedChain)}
    schema = pa.schema({name: pa.type_for_alias(alias) for name, alias in names.items()})
    path = folder / REJECTED
    write_parquet(path, ({name: _plain(getattr(item, name)) for name in names} for item in rejected), schema)
    return path


def read_rejected(folder: Path) -> list[dict[str, Any]]:
    """Rows of `rejected.parquet`. TagprError if the file is missing or damaged."""
    rows: list[dict[str, Any]] = _read_table(folder / REJECTED, ("record_id", "task", "reason", "text")).to_pylist()
    return rows


def read_stored(folder: Path) -> StoredChains:
    """Load the files of a finished chains stage. TagprError if one is missing, damaged, or does not match the
    others."""
    path = folder / FACTS
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise _unusable(path, "is missing") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise _unusable(path, f"is not valid JSON ({error})") from None
    if not isinstance(facts, dict) or not isinstance(facts.get("kept"), int):
        raise _unusable(path, "has no whole number under 'kept'")
    chains = _read_table(folder / CHAINS, _CHAIN_COLUMNS)
    if chains.num_rows != facts["kept"]:
        raise _unusable(folder / CHAINS, f"has {chains.num_rows} rows, but {FACTS} counts {facts['kept']} kept chains")
    pairs = _read_table(folder / PAIRS, ())
    if pairs.num_rows:
        _require_columns(folder / PAIRS, pairs, _PAIR_COLUMNS)
    return StoredChains(facts, chains, pairs if pairs.num_rows else None)


def sft_table(chains: Any, schema: TagSchema) -> Any:
    """The kept chains as a pyarrow.Table for training elsewhere.

    The column `messages` has the whole chat with the tagged response as its last turn; verl's `MultiTurnSFTDataset`
    reads that column. `steps` has the thought as (tag, text) pairs. The other columns do not change. TagprError if a
    response does not parse under `schema`, which then is not the stage's schema.
    """
    import pyarrow as pa

    message = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
    step = pa.list_(pa.struct([("tag", pa.string()), ("text", pa.string())]))
    messages, steps = [], []
    for row in chains.select(["record_id", "messages", "response"]).to_pylist():
        parsed = parse(row["response"], schema)
        if parsed.trace is None:
            raise TagprError(
                f"the chain of record {row['record_id']!r} does not parse under tag schema {schema.version!r} "
                f"({parsed.status}: {parsed.reason}); give the schema that the stage was made with"
            )
        messages.append([*row["messages"], {"role": "assistant", "content": row["response"]}])
        steps.append([{"tag": step.tag, "text": step.text} for step in parsed.trace.steps])
    at = chains.column_names.index("messages")
    table = chains.set_column(at, "messages", pa.array(messages, type=message)).drop_columns(["response"])
    return table.add_column(at + 1, "steps", pa.array(steps, type=step))


def write_dataset(
    target: Path,
    stored: StoredChains,
    schema: TagSchema,
    texts: Mapping[str, str],
    *,
    source: Mapping[str, Any],
    rows_per_file: int = ROWS_PER_FILE,
) -> Path:
    """Write a folder that `datasets.load_dataset(target)` reads; returns `target`.

    Args:
        texts: relative path -> content of the text files (README.md with the card's front matter, plots).
        source: the origin of the data set, written into MARKER.

    An older data set at `target` is replaced as a whole (see `publishing`). TagprError if no chain was kept.
    """
    if stored.chains.num_rows == 0:
        raise TagprError("no chain was kept, so there is no data set; `tagpr chains inspect` shows the reasons")
    with publishing(target, MARKER) as new:
        _write_shards(new / "data", sft_table(stored.chains, schema), rows_per_file)
        if stored.pairs is not None:
            _write_shards(new / "pairs", stored.pairs, rows_per_file)
        write_json(new / "tag_schema.json", to_mapping(schema))
        write_json(new / FACTS, dict(stored.facts))
        for name, text in texts.items():
            write_text(new / name, text)
        files = sorted(path for path in new.rglob("*") if path.is_file())
        hashes = {path.relative_to(new).as_posix(): sha256_file(path) for path in files}
        write_json(new / MARKER, {**source, "files": hashes})
    return target


@contextmanager
def publishing(target: Path, marker: str) -> Iterator[Path]:
    """Yield a new folder to fill, and rename it to `target` afterwards. After an exception `target` is unchanged.

    An existing `target` is replaced if it is an empty folder or has the file `marker`. TagprError for any other folder
    or file, so that nothing is deleted that this function did not write.
    """
    if target.exists() and not (target / marker).is_file() and (not target.is_dir() or any(target.iterdir())):
        raise TagprError(f"{target} exists and was not written by this command; choose another folder with --out")
    target.parent.mkdir(parents=True, exist_ok=True)
    temp = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        new = temp / "new"
        new.mkdir()
        yield new
        _swap(new, target, temp / "old")
    finally:
        shutil.rmtree(temp, ignore_errors=True)


def _swap(new: Path, target: Path, old: Path) -> None:
    if target.exists():
        target.rename(old)
    try:
        new.rename(target)
    except OSError:
        if old.exists():
            old.rename(target)
        raise
    sync_folder(target.parent)


def _write_shards(folder: Path, table: Any, rows_per_file: int) -> None:
    count = -(-table.num_rows // rows_per_file)
    folder.mkdir(parents=True)
    for index in range(count):
        part = table.slice(index * rows_per_file, rows_per_file)
        rows = (row for batch in part.to_batches(max_chunksize=64) for row in batch.to_pylist())
        write_parquet(folder / f"train-{index:05d}-of-{count:05d}.parquet", rows, table.schema)


def _read_table(path: Path, columns: Sequence[str]) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.ParquetFile(path).read()
    except FileNotFoundError:
        raise _unusable(path, "is missing") from None
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # the file system's, not the content's
            raise
        raise _unusable(path, f"is not a whole parquet file ({error})") from None
    _require_columns(path, table, columns)
    return table


def _require_columns(path: Path, table: Any, columns: Sequence[str]) -> None:
    missing = [name for name in columns if name not in table.column_names]
    if missing:
        raise _unusable(path, f"has no column {missing[0]!r}")


def _unusable(path: Path, why: str) -> TagprError:
    return TagprError(f"{path} {why}; delete the folder {path.parent} and run the stage again")


def _plain(value: Any) -> Any:
    return value.value if isinstance(value, Enum) else value
