"""The processes of a run on one machine, as /proc shows them, and the rules by which one of them is lost."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")
LOOK_S = 5.0
"""Seconds from one look to the next."""
STOPPED_LOOKS = 4
"""Looks at a stopped process until it is lost: Ctrl-Z and `fg` stop and continue all processes of a run at once."""
SILENT_LOOKS = 8
"""Looks without a context switch until a worker is lost. Ray's own threads in a living worker wake every second."""
DEAD_LOOKS = 4
"""Looks at a stage that goes on after a death. Most stages end by themselves before, with an error that says more."""
UNWATCHED = ("wandb", "PrmuActor")
"""Trackers are left out if they do not answer (tracking/tracker.py), and PRMU's actors are restarted by their own watch
(scoring/prmu_client.py)."""


@dataclass(frozen=True, slots=True)
class Part:
    """One process of a run at one look."""

    host: str
    pid: int
    parent: int
    title: str
    """Its command line; a Ray worker's is `ray::` and what it runs."""
    state: str
    """/proc's letter: `T` is stopped by a signal, `Z` has ended; `t` is held by a debugger, which is nobody's fault."""
    switches: int
    """Context switches of all its threads since they began. A process that is stopped or frozen has no new ones."""

    @property
    def is_worker(self) -> bool:
        """A Ray worker, which is never without a context switch for long."""
        return self.title.startswith("ray::")


@dataclass(frozen=True, slots=True)
class Lost:
    """A part that the run waits for in vain."""

    name: str
    pid: int
    host: str
    how: str
    """What was seen, as the rest of a sentence: `is stopped (no sign of life for 20 s)`."""


def look(host: str, run_id: str, above: int | None = None) -> list[Part]:
    """This user's processes of the run: those with its id in their environment, and those below the process `above`."""
    facts: dict[int, tuple[Part, bool]] = {}
    for folder in PROC.glob("[0-9]*"):
        try:
            if folder.stat().st_uid != os.getuid():
                continue
            own = run_id.encode() in (folder / "environ").read_bytes()
            title = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace").strip()
            stat = (folder / "stat").read_text(encoding="utf-8", errors="replace")
        except OSError:  # it has ended meanwhile
            continue
        state, parent = stat.rpartition(")")[2].split()[:2]
        pid = int(folder.name)
        facts[pid] = Part(host, pid, int(parent), title, state, 0), own

    def is_below(pid: int) -> bool:
        seen: set[int] = set()
        while pid in facts and pid not in seen:
            seen.add(pid)
            pid = facts[pid][0].parent
            if pid == above:
                return True
        return False

    kept = [part for pid, (part, own) in facts.items() if pid != os.getpid() and (own or is_below(pid))]
    return [Part(p.host, p.pid, p.parent, p.title, p.state, _switches(PROC / str(p.pid))) for p in kept]


def _switches(process: Path) -> int:
    total = 0
    for status in process.glob("task/*/status"):
        try:
            lines = status.read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:  # the thread has ended
            continue
        total += sum(int(line.split()[1]) for line in lines if "ctxt_switches" in line)
    return total


class Rules:
    """Judges looks that follow each other by LOOK_S. It counts looks, not seconds: a sleeping laptop makes none."""

    def __init__(self) -> None:
        self._before: dict[tuple[str, int], Part] = {}
        self._stopped: Counter[tuple[str, int]] = Counter()
        self._silent: Counter[tuple[str, int]] = Counter()
        self._gone: dict[tuple[str, int], Part] = {}
        self._dead: Counter[tuple[str, int]] = Counter()

    def judge(self, parts: Iterable[Part], deaths: Mapping[tuple[str, int], str]) -> Lost | None:
        """The first lost part. `deaths`: (host, pid) of a dead actor -> its name, as Ray's head tells."""
        now = {(part.host, part.pid): part for part in parts if part.state != "Z"}
        ended = {key: part for key, part in self._before.items() if key not in now}
        self._gone = {key: part for key, part in {**self._gone, **ended}.items() if _is_missed(part, now)}
        for counter in (self._stopped, self._silent):
            for key in set(counter) - set(now):
                del counter[key]
        lost = None
        for key, part in now.items():
            before = self._before.get(key)
            self._stopped[key] = self._stopped[key] + 1 if part.state == "T" else 0
            same = part.is_worker and before is not None and before.switches == part.switches
            self._silent[key] = self._silent[key] + 1 if same else 0
            if any(word in part.title for word in UNWATCHED):
                continue
            if self._stopped[key] >= STOPPED_LOOKS:
                lost = lost or _lost(part, f"is stopped by a signal since {STOPPED_LOOKS * LOOK_S:.0f} s")
            elif self._silent[key] >= SILENT_LOOKS:
                lost = lost or _lost(part, f"has shown no sign of life for {SILENT_LOOKS * LOOK_S:.0f} s")
        for key, name in {**deaths, **{key: _name(part) for key, part in self._gone.items()}}.items():
            self._dead[key] += 1
            if self._dead[key] >= DEAD_LOOKS and not any(word in name for word in UNWATCHED):
                lost = lost or Lost(name, key[1], key[0], "has died, and the stage still waits for it")
        self._before = now
        return lost


def _is_missed(part: Part, now: Mapping[tuple[str, int], Part]) -> bool:
    """Whether a process that is gone must not be: an engine of vLLM, or a server of Ray's own, whose parent lives."""
    program = part.title.partition(" ")[0].rpartition("/")[2]
    if program in ("raylet", "gcs_server"):
        return True
    return part.title.startswith("VLLM::") and (part.host, part.parent) in now


def _lost(part: Part, how: str) -> Lost:
    return Lost(_name(part), part.pid, part.host, how)


def _name(part: Part) -> str:
    """`AgentLoopWorker.generate` of the title `ray::AgentLoopWorker.generate`; else the program's name."""
    first = part.title.partition(" ")[0]
    return first.removeprefix("ray::") if part.is_worker else first.rpartition("/")[2] or str(part.pid)
