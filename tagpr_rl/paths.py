"""The run directory: the only file that knows its layout, and how to write a file atomically."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any


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


def sha256_json(value: Any) -> str:
    """Hex SHA-256 of `value` as canonical JSON (sorted keys, no spaces)."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class StageDir:
    """Paths inside one stage's folder."""

    root: Path

    @property
    def manifest(self) -> Path:
        """Written last: exists = complete."""
        return self.root / "manifest.json"

    @property
    def hf(self) -> Path:
        """Published Hugging Face weights and tokenizer."""
        return self.root / "hf"

    @property
    def checkpoints(self) -> Path:
        """verl's own mid-stage checkpoints (`global_step_*`)."""
        return self.root / "checkpoints"

    @property
    def metrics(self) -> Path:
        """One JSON object per training step."""
        return self.root / "metrics.jsonl"

    @property
    def rollouts(self) -> Path:
        """One JSONL file per step: prompt, response, every reward component."""
        return self.root / "rollouts"

    @property
    def logs(self) -> Path:
        return self.root / "logs"


@dataclass(frozen=True, slots=True)
class RunDir:
    """Paths of one run: `runs/<name>/`."""

    root: Path

    @property
    def resolved(self) -> Path:
        """The recipe after `extends` and overrides, as JSON."""
        return self.root / "resolved.json"

    @property
    def environment(self) -> Path:
        return self.root / "environment.json"

    @property
    def tracking(self) -> Path:
        """The run's id at its trackers (W&B)."""
        return self.root / "tracking.json"

    @property
    def lock(self) -> Path:
        """Locked by the process that works on the run."""
        return self.root / ".lock"

    @property
    def report_json(self) -> Path:
        return self.root / "report.json"

    @property
    def report_html(self) -> Path:
        return self.root / "report.html"

    @property
    def prmu_eval(self) -> Path:
        """What `launch.py prmu eval` measured: `<stage>.json`, `<stage>.html`, and the responses it ranked."""
        return self.root / "prmu_eval"

    def stage(self, index: int, name: str) -> StageDir:
        """Folder of the `index`-th stage (from 0): `010_<name>`, `020_<name>`, ..."""
        return StageDir(self.root / f"{(index + 1) * 10:03d}_{name}")
