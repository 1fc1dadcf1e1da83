"""Watches the processes of a run while a stage waits for them, and ends the wait if one of them is lost.

Ray, verl and vLLM report a death to those who ask the dead part, and nobody reports a process that is stopped. A stage
that waits for either waits for ever.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tagpr_rl.backend.session.parts import LOOK_S, Lost, Part, Rules, look
from tagpr_rl.backend.session.room import PendingGroups
from tagpr_rl.types import TagprError

POLL_S = 0.5
"""Seconds between two checks of a stage that waits."""
_CHECKS = round(60 / POLL_S)
"""Checks without an answer of Ray's head and the other nodes. They are counted and not timed: a laptop may sleep."""
_LINES = 8
_NOT_SAID = (":job_id:", ":actor_name:", ":task_name:")
"""Ray's own lines in a worker's log."""
_END_S = 5.0
_SKEW_S = 5.0
"""Ray's head may have another clock than this process."""
_DIED = re.compile(r"actor died unexpectedly.*?class_name: (?P<name>\S+).*?pid: (?P<pid>\d+).*?ip: (?P<host>\S+)", re.S)
"""In the message of Ray's ActorDiedError, also where other actors passed it on."""
_USED = re.compile(r"[\d.]+GB used / [\d.]+GB limit")
"""In the message of Ray's OutOfMemoryError."""
_UNEXPECTED = ("WORKER_DIED", "NODE_DIED")
"""ActorDiedErrorContext.Reason (ray/protobuf common.proto) of an actor that nobody ended."""
_STAGE_ENDED = "placement group was removed"
"""In Ray's message of an actor's death that a finished GRPO stage willed: it removes its placement group."""


class LostPartError(TagprError):
    """A process of the run died or froze, and the stage waited for it."""


class Supervisor:
    """One run's processes on all nodes. Two threads look every LOOK_S seconds, `check` raises what they saw.

    One thread reads this machine's /proc, which cannot hang. The other asks Ray's head and the other nodes.
    """

    def __init__(self, ray: Any, run_id: str, *, private: bool) -> None:
        self._ray, self._run_id = ray, run_id
        self._above = os.getpid() if private else None  # Ray's own servers are this process's children then
        self._node = ray.get_runtime_context().get_node_id()
        self._groups = PendingGroups(ray.get_runtime_context().get_job_id())
        self._logs = Path(ray._private.worker._global_node.get_logs_dir_path())
        self._watches: dict[str, Any] = {}
        self._unanswered = 0
        self._since = time.time()
        self._outcome: Exception | None = None
        self._end = threading.Event()

    def start(self) -> None:
        """Begin to look."""
        for look_at in (self._look_here, self._look_elsewhere):
            threading.Thread(target=self._watch, args=(look_at,), name="tagpr-supervisor", daemon=True).start()

    def stop(self) -> None:
        """Look no longer."""
        self._end.set()

    def begin(self) -> None:
        """A new wait begins; who died before is not waited for."""
        self._since = time.time() - _SKEW_S

    def check(self) -> None:
        """LostPartError if a part is lost, TagprError if Ray has no room for one.

        A waiting stage calls this about every POLL_S seconds.
        """
        self._unanswered += 1
        if self._outcome is None and self._unanswered > _CHECKS:
            self._outcome = LostPartError("Ray's head, or a node of the run, does not answer for a minute")
        if self._outcome is not None:
            raise self._outcome

    def _watch(self, look_at: Callable[[Rules], Lost | None]) -> None:
        rules = Rules()
        while not self._end.wait(LOOK_S):
            try:
                lost = look_at(rules)
            except Exception as error:  # noqa: BLE001  (`check` raises it in the thread that waits)
                if not self._end.is_set():
                    self._outcome = self._outcome or error
                return
            if lost is not None:
                self._outcome = self._outcome or LostPartError(self.describe(lost))
                return

    def _look_here(self, rules: Rules) -> Lost | None:
        return rules.judge(look(socket.gethostname(), self._run_id, self._above), {})

    def _look_elsewhere(self, rules: Rules) -> Lost | None:
        actors = self._actors()
        names = {node["NodeID"]: node["NodeManagerAddress"] for node in self._ray.nodes() if node["Alive"]}
        busy = {actor["Address"]["NodeID"] for actor in actors if actor["State"] == "ALIVE"} - {self._node}
        looks = [self._node_watch(node).look.remote(names[node], self._run_id) for node in busy if node in names]
        parts = [part for parts in self._ray.get(looks) for part in parts]
        lost = rules.judge(parts, _deaths(actors, self._since))
        self._unanswered = 0
        self._groups.judge(self._ray.util.placement_group_table(), LOOK_S)
        if lost is not None and (place := {name: node for node, name in names.items()}.get(lost.host)) in self._watches:
            self._watches[place].end.remote(lost.pid)
        return lost

    def _actors(self) -> list[dict[str, Any]]:
        """This job's actors as Ray's head lists them; `ray.util.state` would need a dashboard."""
        from ray._private.state import state

        job = self._ray.JobID.from_hex(self._ray.get_runtime_context().get_job_id())
        return list(state.actor_table(None, job).values())

    def _node_watch(self, node: str) -> Any:
        if node not in self._watches:
            from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

            place = NodeAffinitySchedulingStrategy(node, soft=False)
            self._watches[node] = self._ray.remote(num_cpus=0, scheduling_strategy=place)(NodeWatch).remote()
        return self._watches[node]

    def describe(self, lost: Lost) -> str:
        """One sentence, and the part's last lines."""
        files = sorted(self._logs.glob(f"worker-*-{lost.pid}.*"), key=lambda path: path.stat().st_mtime)
        texts = [path.read_text(encoding="utf-8", errors="replace").splitlines() for path in files]
        said = [line for text in texts for line in text if line.strip() and not line.startswith(_NOT_SAID)]
        said = [line for line in said if "%|" not in line]  # progress bars
        lines = [f"  {line}" for line in said[-_LINES:]]
        tail = ". Its last lines:\n" + "\n".join(lines) if lines else ""
        return f"{lost.name} (process {lost.pid} on {lost.host}) {lost.how}{tail}"


class NodeWatch:
    """Looks at the run's processes of another node; an actor that is pinned to it."""

    def look(self, name: str, run_id: str) -> list[Part]:
        """`parts.look` there; `name`: the node's address."""
        return look(name, run_id)

    def end(self, pid: int) -> None:
        """Kill a process of this user, which may be stopped."""
        _send(pid, signal.SIGKILL)


def _send(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def _deaths(actors: Iterable[Mapping[str, Any]], since: float) -> dict[tuple[str, int], str]:
    """(address, pid) -> class of actors that died of nobody's will after `since` and are not started again."""
    found = {}
    for actor in actors:
        context = actor["DeathCause"].actor_died_error_context
        unexpected = context.Reason.Name(context.reason) in _UNEXPECTED and _STAGE_ENDED not in context.error_message
        if actor["State"] == "DEAD" and unexpected and actor["EndTime"] / 1000 >= since:
            found[context.node_ip_address, context.pid] = actor["ActorClassName"]
    return found


_current: Supervisor | None = None


@contextmanager
def supervised(ray: Any, run_id: str, *, private: bool) -> Iterator[None]:
    """Watch the run's processes inside the block.

    At its end stopped workers are killed and stopped servers continued: Ray would wait for them.
    """
    global _current
    _current = Supervisor(ray, run_id, private=private)
    _current.start()
    try:
        yield
    finally:
        _current.stop()
        _current = None
        for part in look("", run_id, os.getpid() if private else None):
            if part.state == "T":
                _send(part.pid, signal.SIGKILL if part.is_worker else signal.SIGCONT)


def begin() -> None:
    """A new wait of the run begins."""
    if _current is not None:
        _current.begin()


def is_done(task: Any, seconds: float) -> bool:
    """Whether the Ray task ends within `seconds`. LostPartError if a process of the run is lost."""
    import ray

    if _current is not None:
        _current.check()
    return bool(ray.wait([task], timeout=seconds)[0])


def result(task: Any) -> Any:
    """`ray.get` of one task. LostPartError if a process of the run is lost while it waits."""
    begin()
    while not is_done(task, POLL_S):
        pass
    return value(task)


def value(task: Any) -> Any:
    """`ray.get` of a task that has ended. LostPartError if an actor died, or Ray ended a process for want of memory."""
    import ray

    try:
        return ray.get(task)
    except ray.exceptions.OutOfMemoryError as error:
        used = _USED.search(str(error))
        raise LostPartError(
            f"the memory of a node ran out ({used[0] if used else 'its limit is unknown'}), and Ray ended a process of "
            "the run. End other programs there, or lower micro_batch_size, platform.vllm_memory_mb or platform.threads"
        ) from error
    except ray.exceptions.RayError as error:
        died = _DIED.search(str(error))
        if died is None or _current is None:
            raise
        name, pid, host = died["name"].rpartition(".")[2], int(died["pid"]), died["host"]
        raise LostPartError(_current.describe(Lost(name, pid, host, "has died"))) from error


def end_processes(run_id: str) -> None:
    """End what is left on this machine of a run whose Ray session has ended: stopped processes, orphans of its workers.

    They get _END_S seconds to end by themselves.
    """
    deadline = time.monotonic() + _END_S
    while left := look("", run_id):
        if any(part.state == "T" for part in left) or time.monotonic() > deadline:
            for part in left:
                _send(part.pid, signal.SIGKILL)
            return
        time.sleep(0.05)
