"""Processes, shared memory and folders that an earlier run of this user has left on this machine."""

from __future__ import annotations

import os
import re
import shutil
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tagpr_rl.backend.session.check import OK, WARNING, Check
from tagpr_rl.backend.session.shell import PREFIX

PROC = Path("/proc")
MARK = b"TAGPR_WORKER_SETTINGS="
"""Every process of a run has it in its environment (worker_settings.py)."""
PRIVATE = "127.0.0.2"
"""The address of Ray's processes of a run's own cluster (ray_session.py)."""
_SESSION = re.compile(r"session_[\d-]+_[\d-]+_\d+_(\d+)$")
LARGE = 1 << 30
QUIET_S = 600.0
"""A session of a process that lives, in whatever container, writes a log more often."""


@dataclass(frozen=True, slots=True)
class Process:
    """One process of this user, from /proc."""

    pid: int
    parent: int
    command: str
    of_run: bool
    """A run has started it."""


def leftovers(temporary: Sequence[str]) -> Iterator[Check]:
    """What is left over; `temporary`: the folders in which runs keep temporary files."""
    processes = own_processes()
    orphans = orphaned(processes)
    live = sum(process.of_run for process in processes.values()) - len([p for p in orphans if p.of_run])
    if orphans:
        pids = " ".join(str(process.pid) for process in orphans)
        seen = f"{len(orphans)} processes of a run that has ended: {', '.join(p.command[:30] for p in orphans[:3])}"
        yield Check("earlier runs", WARNING, seen, f"tagpr doctor --clean, or kill {pids}")
    else:
        yield Check("earlier runs", OK, f"no process is left over, {live} belong to runs that go on")
    if stale := stale_segments():
        size = sum(path.stat().st_size for path in stale)
        names = " ".join(str(path) for path in stale[:5]) + (" ..." if len(stale) > 5 else "")
        yield Check("earlier runs", WARNING, f"{len(stale)} unused segments, {size >> 20} MiB of memory", f"rm {names}")
    dead = [path for folder in dict.fromkeys(temporary) for path in dead_sessions(Path(folder))]
    size = sum(_size(path) for path in dead)
    if size >= LARGE:
        seen = f"{len(dead)} sessions of ended runs, {size >> 20} MiB below {', '.join({str(p.parent) for p in dead})}"
        yield Check("earlier runs", WARNING, seen, "tagpr doctor --clean")


def clean(temporary: Sequence[str]) -> Iterator[str]:
    """End what runs that are gone have left of processes, and delete their Ray sessions; a line for each.

    Only what bears a run's mark: processes with its variable, private Ray clusters without a driver, sessions of
    processes that have ended. Shared memory bears none, so `leftovers` names its files and they stay.
    """
    for process in orphaned(own_processes()):
        try:
            os.kill(process.pid, signal.SIGKILL)
        except ProcessLookupError:  # its parent's end was its own
            continue
        yield f"ended process {process.pid}: {process.command[:60]}"
    for session in (path for folder in dict.fromkeys(temporary) for path in dead_sessions(Path(folder))):
        if _last_write(session) > time.time() - QUIET_S:
            yield f"left {session}: it was written to just now, perhaps by a container that shares the folder"
            continue
        outer = session.parent.parent
        private = outer.name.startswith(PREFIX) and outer.stat().st_uid == os.getuid()
        target = outer if private and not _live_sessions(session.parent) else session
        size = _size(target)
        shutil.rmtree(target, ignore_errors=True)
        yield f"deleted {target} ({size >> 20} MiB)"


def _last_write(folder: Path) -> float:
    """The latest change of a file or folder below it, in seconds since 1970."""
    times = [folder.lstat().st_mtime]
    for base, folders, names in os.walk(folder):
        for name in (*folders, *names):
            with suppress(OSError):
                times.append(os.lstat(os.path.join(base, name)).st_mtime)
    return max(times)


def _live_sessions(folder: Path) -> bool:
    """Whether a session below Ray's folder belongs to a process that lives."""
    names = (_SESSION.search(path.name) for path in folder.glob("session_*") if not path.is_symlink())
    return any((PROC / name[1]).exists() for name in names if name)


def own_processes() -> dict[int, Process]:
    """Process id -> process of this user; those that end meanwhile are left out."""
    found = {}
    for folder in PROC.glob("[0-9]*"):
        try:
            if folder.stat().st_uid != os.getuid():
                continue
            status = (folder / "stat").read_text(encoding="utf-8", errors="replace")
            command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
            environment = b"\0" + (folder / "environ").read_bytes()
        except OSError:
            continue
        parent = int(status.rpartition(")")[2].split()[1])
        found[int(folder.name)] = Process(int(folder.name), parent, command.strip(), b"\0" + MARK in environment)
    return found


def orphaned(processes: dict[int, Process]) -> list[Process]:
    """Processes of runs whose driver is gone: no raylet above them, or a private one that nobody's child is."""

    def raylet_of(process: Process) -> Process | None:
        seen: set[int] = set()
        here: Process | None = process
        while here is not None and here.pid not in seen:
            if "raylet" in here.command.partition(" ")[0]:
                return here
            seen.add(here.pid)
            here = processes.get(here.parent)
        return None

    def is_orphan(process: Process) -> bool:
        private = PRIVATE in process.command and re.search(r"/(raylet|gcs_server)\b", process.command) is not None
        if private:
            return process.parent == 1
        raylet = raylet_of(process) if process.of_run else None
        return process.of_run and (raylet is None or (PRIVATE in raylet.command and raylet.parent == 1))

    return [process for process in processes.values() if is_orphan(process)]


def stale_segments(folder: Path = Path("/dev/shm")) -> list[Path]:
    """Files of this user in shared memory that no process of this user has open or mapped."""
    own = [path for path in folder.glob("*") if path.is_file() and path.stat().st_uid == os.getuid()]
    if not own:
        return []
    used = set()
    for process in PROC.glob("[0-9]*"):
        used |= set(re.findall(rf"{re.escape(str(folder))}/\S+", _text(process / "maps")))
        used |= {_target(handle) for handle in process.glob("fd/*")}
    return [path for path in own if str(path) not in used]


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:  # another user's, or ended meanwhile
        return ""


def _target(handle: Path) -> str:
    try:
        return os.readlink(handle)
    except OSError:
        return ""


def dead_sessions(folder: Path) -> list[Path]:
    """Ray's session folders below `folder` whose process has ended."""
    found = (path for pattern in ("ray/session_*", f"{PREFIX}*/ray/session_*") for path in folder.glob(pattern))
    sessions = [path for path in found if not path.is_symlink() and _SESSION.search(path.name)]
    dead = [path for path in sessions if not (PROC / _SESSION.search(path.name)[1]).exists()]  # type: ignore[index]
    return [path for path in dead if path.stat().st_uid == os.getuid()]


def _size(folder: Path) -> int:
    total = 0
    for base, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(base, name)).st_size
            except OSError:
                continue
    return total
