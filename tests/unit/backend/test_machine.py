"""`tagpr doctor`: each check sees what is wrong, and a table with a mistake exits with 2."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest

from tagpr_rl.backend.session import leftovers, machine
from tagpr_rl.backend.session.check import MISTAKE, OK, WARNING, Check
from tagpr_rl.cli import main

Usage = namedtuple("Usage", "total used free")
GIB = 1 << 30


@pytest.mark.slow
def test_versions_against_the_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock = tmp_path / "cpu.lock"
    monkeypatch.setattr(machine, "shipped", lambda _: lock)
    torch, rich = importlib.metadata.version("torch"), importlib.metadata.version("rich")
    for text, wanted in (
        (f"torch=={torch}\nrich=={rich}\n", [(OK, "2 packages")]),
        (f"torch==9.9\nrich=={rich}\n    # via torch==1\n", [(MISTAKE, f"torch {torch} (lock: 9.9)")]),
        (f"torch=={torch}\nRich==9.9\n", [(WARNING, f"rich {rich} (lock: 9.9)")]),
        ("ray==9.9\nwandb==9.9", [(MISTAKE, "ray ")]),
        (f"absent-package==1\ntorch=={torch}", [(OK, "1 packages")]),
    ):
        lock.write_text(text, encoding="utf-8")
        rows = list(machine.packages())
        assert [(row.state, part in row.seen) for row, (_, part) in zip(rows, wanted, strict=True)] == [
            (state, True) for state, _ in wanted
        ]
    lock.unlink()
    assert [row.state for row in machine.packages()] == [WARNING]


def test_plugin_memory_and_ports(monkeypatch: pytest.MonkeyPatch) -> None:
    assert machine.plugin().state == OK
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: [])
    assert machine.plugin().state == MISTAKE
    for total, free, state in ((64 << 20, 64 << 20, MISTAKE), (8 * GIB, GIB, WARNING), (8 * GIB, 7 * GIB, OK)):
        usage = Usage(total, 0, free)
        monkeypatch.setattr(machine.shutil, "disk_usage", lambda _, usage=usage: usage)
        row = machine.shared_memory()
        assert row.state == state and bool(row.remedy) == (state != OK)
    assert machine.ports().state == OK
    monkeypatch.setattr(machine, "LOOPBACK", ("192.0.2.1",))  # an address of documentation: nobody has it
    assert machine.ports().state == MISTAKE and "0 of 64" in machine.ports().seen


def test_a_control_group_s_limit_is_the_tightest_of_its_folders(tmp_path: Path) -> None:
    (tmp_path / "memory.max").write_text("max\n")
    assert machine.cgroup_memory(tmp_path) == (1 << 62, 0, 0)
    (tmp_path / "memory").mkdir()
    (tmp_path / "memory" / "memory.limit_in_bytes").write_text("2000\n")
    (tmp_path / "memory" / "memory.usage_in_bytes").write_text("500\n")
    (tmp_path / "memory.events").write_text("low 0\noom 4\noom_kill 3\n")
    assert machine.cgroup_memory(tmp_path) == (2000, 500, 3)


def test_variables_that_would_win_are_warnings() -> None:
    shell = {"WANDB_SWEEP_ID": "x", "RAY_ADDRESS": "h:1", "VLLM_USE_V1": "0", "PATH": "/bin"}
    rows = list(machine.variables(shell))
    assert all(row.state == WARNING and row.remedy for row in rows)
    text = " ".join(row.seen for row in rows)
    assert all(name in text for name in ("WANDB_SWEEP_ID", "RAY_ADDRESS", "VLLM_USE_V1")) and "PATH" not in text


def test_processes_of_a_run_that_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """A live run: driver 10 -> raylet 11 -> worker 12. Left over: raylet 21 without a driver, its worker 22, and worker
    30 without a raylet. A cluster that `ray start` made (40, 41) is nobody's leftover."""
    private = "/x/raylet --node_ip_address=127.0.0.2"
    tree = [(10, 1, "python launch.py", False), (11, 10, private, False), (12, 11, "ray::worker", True),
            (21, 1, private, False), (22, 21, "ray::worker", True), (30, 1, "ray::worker", True),
            (40, 1, "/x/raylet --node_ip_address=10.0.0.1", False), (41, 40, "ray::worker", True)]  # fmt: skip
    processes = {row[0]: leftovers.Process(*row) for row in tree}
    assert [process.pid for process in leftovers.orphaned(processes)] == [21, 22, 30]
    monkeypatch.setattr(leftovers, "own_processes", lambda: processes)
    first = next(iter(leftovers.leftovers(())))
    assert first.state == WARNING and first.remedy == "tagpr doctor --clean, or kill 21 22 30"


def test_a_real_process_is_seen_by_its_environment() -> None:
    command = [sys.executable, "-c", "input()"]
    environment = {**os.environ, "TAGPR_WORKER_SETTINGS": "{}"}
    with subprocess.Popen(command, stdin=subprocess.PIPE, env=environment) as process:
        assert process.stdin is not None
        while b"TAGPR" not in Path(f"/proc/{process.pid}/environ").read_bytes():  # until exec is done
            pass
        found = leftovers.own_processes()
        process.stdin.close()
    assert found[process.pid].of_run and found[process.pid].parent == os.getpid() and not found[os.getpid()].of_run


def test_segments_and_sessions_that_nobody_uses(tmp_path: Path) -> None:
    segment = tmp_path / "psm_1"
    segment.write_bytes(b"x" * 10)
    with segment.open("rb"):
        assert leftovers.stale_segments(tmp_path) == []
    assert leftovers.stale_segments(tmp_path) == [segment]
    for pid in (os.getpid(), 2**22 + 1):
        (tmp_path / "ray" / f"session_2026-01-01_00-00-00_000000_{pid}").mkdir(parents=True)
    assert [path.name.rpartition("_")[2] for path in leftovers.dead_sessions(tmp_path)] == [str(2**22 + 1)]


def test_clean_ends_a_dead_run_s_processes_and_deletes_its_sessions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker whose driver is gone, another process, and sessions: dead, dead but written to, and alive."""
    dead, alive = 2**22 + 1, os.getpid()
    names = {"old": (dead, True), "busy": (dead, False), "live": (alive, True)}
    for name, (pid, quiet) in names.items():
        session = tmp_path / f"tagpr-{name}" / "ray" / f"session_2026-01-01_00-00-00_000000_{pid}"
        session.mkdir(parents=True)
        (session / "raylet.out").write_text("log")
        if quiet:
            for path in (session / "raylet.out", session):
                os.utime(path, (1e9, 1e9))
    command = [sys.executable, "-c", "input()"]
    environment = {**os.environ, "TAGPR_WORKER_SETTINGS": "{}"}
    with (
        subprocess.Popen(command, stdin=subprocess.PIPE, env=environment) as worker,
        subprocess.Popen(command, stdin=subprocess.PIPE) as other,
    ):
        rows = {p.pid: leftovers.Process(p.pid, 1, "ray::worker", p is worker) for p in (worker, other)}
        monkeypatch.setattr(leftovers, "own_processes", lambda: rows)
        lines = list(leftovers.clean([str(tmp_path)]))
        assert worker.wait(timeout=10) == -9 and other.poll() is None
        assert other.stdin is not None
        other.stdin.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tagpr-busy", "tagpr-live"]
    assert sorted(line.split()[0] for line in lines) == ["deleted", "ended", "left"]


@pytest.mark.parametrize("states, code", [((OK, WARNING), 0), ((OK, MISTAKE, WARNING), 2)])
def test_the_table_shows_mistakes_first_and_sets_the_exit_code(
    monkeypatch: pytest.MonkeyPatch, capsys: Any, states: tuple[str, ...], code: int
) -> None:
    from tagpr_rl.cli import doctor

    rows = [Check(f"the {state} row", state, f"[seen] {state}", "do this") for state in states]
    monkeypatch.setattr(doctor, "machine_checks", lambda folder, environment: iter(rows))
    assert main(["doctor"]) == code
    out = capsys.readouterr().out
    assert out.index(f"the {sorted(states)[0 if code else 1]}") < out.index("the ok") and "[seen]" in out
    assert f"{states.count(MISTAKE)} mistakes, 1 warnings" in out
