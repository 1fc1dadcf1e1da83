"""Files written whole or not at all, their hashes, those that ship with the package, and the form of hub names."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

CACHED_FROM_BYTES = 64 * 2**20
"""Size from which a file's hash is kept (content_sha256)."""
ROW_GROUP_CHARS = 64 << 20
"""Characters of text in one row group of a parquet file. pyarrow and `datasets` read no group over 2 GiB."""


def shipped(name: str) -> Path:
    """A folder of files that ship with the package (`recipes`): inside it if installed, beside it in a checkout."""
    package = Path(__file__).resolve().parent
    return next((path for path in (package / name, package.parent / name) if path.is_dir()), package.parent / name)


def user_path(text: str) -> Path:
    """The path that a user wrote: a leading `~` is the home folder. ValueError for what is surely another mistake.

    Refused: nothing, spaces around it, control characters, `$` (variables belong to the shell), backslashes and
    names that no file system takes.
    """
    if not text or text != text.strip():
        raise ValueError(f"{text!r} is no path: it is empty or has spaces around it")
    if wrong := re.search(r"[\x00-\x1f\x7f$\\]", text):
        hint = "variables are not replaced here" if wrong[0] == "$" else "folders are separated by /"
        raise ValueError(f"{text!r} is no path: it has the character {wrong[0]!r} ({hint})")
    if max(len(os.fsencode(part)) for part in text.split("/")) > 255:
        raise ValueError(f"'{text[:40]}...' is no path: a name in it has more than 255 bytes")
    full = os.path.expanduser(text)
    if text.startswith("~") and full == text:
        raise ValueError(f"{text!r} is no path: nobody of that name has a home folder here")
    return Path(full)


def target_mistake(path: Path, *, folder: bool) -> str:
    """Why no file (or no folder) can be written at `path`; "" if one can: a temporary file is made there."""
    try:
        if path.exists() and path.is_dir() != folder:
            return f"{path} is a {'file' if folder else 'folder'}, and a {'folder' if folder else 'file'} is written"
        if path.exists() and not folder and not path.is_file():
            return f"{path} is no ordinary file"
        above = path if path.is_dir() else path.parent
        while not above.exists():
            above = above.parent
        with tempfile.TemporaryFile(dir=above):
            return ""
    except OSError as error:
        return f"{path} cannot be written: {error.strerror}"


def is_hub_name(path: Path | str) -> bool:
    """Whether `path` has the form of a name on the Hugging Face hub, `owner/name`."""
    return re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", str(path)) is not None


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success fsync it and rename it over `path`.

    On an exception the temporary file is removed and `path` is as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    fd, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(fd)
    temp = Path(name)
    try:
        yield temp
        with temp.open("rb+") as handle:
            os.fsync(handle.fileno())
        umask = os.umask(0)
        os.umask(umask)
        temp.chmod(0o666 & ~umask)  # mkstemp makes 0600
        temp.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        if error.errno is not None and error.filename in (None, name):  # a full disk is reported without a name
            error.filename = str(path)
        raise
    finally:
        temp.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Make renames inside `folder` survive a power cut."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network file systems cannot sync a folder
            raise
    finally:
        os.close(handle)


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` atomically (UTF-8)."""
    with replacing(path) as temp:
        temp.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON to `path` atomically. NaN and infinities are refused (ValueError)."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def sha256_file(path: Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as handle:
        while block := handle.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def content_sha256(path: Path) -> str:
    """`sha256_file` of a file that may have many gigabytes: it is read once on this machine, then known.

    The hash is kept in the user's cache folder under the file's place, inode, size and time stamps (of content and of
    inode, which no program can set back), so a file that was replaced or written in place is read again.
    """
    stat = path.stat()
    if stat.st_size < CACHED_FROM_BYTES:
        return sha256_file(path)
    mark = [str(path.resolve()), stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    if cache.startswith("~"):  # this user has no home folder
        return sha256_file(path)
    entry = Path(cache) / "tagpr_rl/sha256" / sha256_json(mark)
    with suppress(OSError):
        if re.fullmatch("[0-9a-f]{64}", known := entry.read_text(encoding="ascii")):
            return known
    digest = sha256_file(path)
    with suppress(OSError):  # without a cache the file is read each time
        write_text(entry, digest)
    return digest


def sha256_json(value: Any) -> str:
    """Hex SHA-256 of `value` as canonical JSON (sorted keys, no spaces)."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def write_parquet(
    path: Path, rows: Iterable[Mapping[str, Any]], schema: Any = None, *, compression: str = "snappy"
) -> int:
    """Write rows that share their keys, atomically, in row groups of ROW_GROUP_CHARS; returns the number of rows.

    With a `schema` (pyarrow's) the rows may be an iterator, of which no more than one group is held; without one they
    are a sequence that is looked through for it.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    if schema is None:
        assert isinstance(rows, Sequence)
        found = [pa.Table.from_pylist(group).schema for group in _row_groups(rows)]
        schema = pa.unify_schemas(found, promote_options="permissive") if found else pa.schema([])
    count = 0
    with replacing(path) as temporary, pq.ParquetWriter(temporary, schema, compression=compression) as writer:
        for group in _row_groups(rows):
            writer.write_table(pa.Table.from_pylist(group, schema=schema))
            count += len(group)
    return count


def read_parquet(path: Path, columns: Sequence[str] | None = None) -> Iterator[dict[str, Any]]:
    """The rows of a parquet file, of which no more than a small batch is held."""
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=64, columns=columns):
            yield from batch.to_pylist()


def _row_groups(rows: Iterable[Mapping[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """The rows in lists of ROW_GROUP_CHARS or of one row."""
    group: list[dict[str, Any]] = []
    size = 0
    for row in rows:
        own = _chars(row)
        if group and size + own > ROW_GROUP_CHARS:
            yield group
            group, size = [], 0
        group.append(dict(row))
        size += own
    if group:
        yield group


def _chars(value: Any) -> int:
    """Characters of a value's text, at any depth; a number counts as eight."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, Mapping):
        return sum(map(_chars, value.values()))
    if isinstance(value, list | tuple):
        return sum(map(_chars, value)) if value and not isinstance(value[0], int | float) else 8 * len(value)
    return 8
