"""A process of a run that dies or stops ends the wait of its stage: the rules by hand, then in a real Ray session."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tagpr_rl.backend.session.parts import DEAD_LOOKS, SILENT_LOOKS, STOPPED_LOOKS, Part, Rules, look
from tagpr_rl.backend.session.supervisor import _deaths

ROOT = Path(__file__).resolve().parents[2]
WORKER = Part("host", 7, 3, "ray::Agent.generate", "S", 100)


def judge(rules: Rules, *parts: Part, deaths: dict[tuple[str, int], str] | None = None) -> str:
    lost = rules.judge(parts, deaths or {})
    return f"{lost.name} {lost.how}" if lost else ""


def at(state: str, switches: int, title: str = WORKER.title) -> Part:
    return Part("host", 7, 3, title, state, switches)


def test_a_stopped_process_is_lost_after_four_looks_in_a_row() -> None:
    rules = Rules()
    seen = [judge(rules, at("T", 100 + i)) for i in range(STOPPED_LOOKS - 1)]
    seen.append(judge(rules, at("S", 200)))  # it goes on: the count begins anew
    seen += [judge(rules, at("T", 300 + i)) for i in range(STOPPED_LOOKS)]
    assert seen == [""] * (2 * STOPPED_LOOKS - 1) + ["Agent.generate is stopped by a signal since 20 s"]


def test_a_worker_without_a_context_switch_is_lost() -> None:
    rules = Rules()
    seen = [judge(rules, at("S", 100)) for _ in range(SILENT_LOOKS + 1)]
    assert seen == [""] * SILENT_LOOKS + ["Agent.generate has shown no sign of life for 40 s"]
    rules = Rules()
    assert not any(judge(rules, at("S", i)) for i in range(20))
    rules = Rules()  # another program may sleep as long as it likes
    assert not any(judge(rules, at("S", 100, "bash script")) for _ in range(20))


def test_a_debugger_a_tracker_and_prmu_s_own_watch_are_left_alone() -> None:
    for part in (at("t", 1), at("T", 1, "/bin/wandb-core --port"), at("T", 1, "ray::PrmuActor.score")):
        rules = Rules()
        seen = [judge(rules, Part("host", 7, 3, part.title, part.state, i)) for i in range(20)]
        assert not any(seen), part


def test_a_death_is_lost_if_the_stage_goes_on() -> None:
    rules = Rules()
    seen = [judge(rules, deaths={("node", 9): "Agent"}) for _ in range(DEAD_LOOKS)]
    assert seen == [""] * (DEAD_LOOKS - 1) + ["Agent has died, and the stage still waits for it"]
    rules = Rules()
    assert not any(judge(rules, deaths={("node", 9): "PrmuActor"}) for _ in range(20))


def test_a_missing_engine_is_a_death_and_a_missing_helper_is_not() -> None:
    engine, helper = Part("host", 8, 7, "VLLM::EngineCore", "S", 1), Part("host", 9, 7, "gcc -c x", "S", 1)
    rules = Rules()
    seen = [judge(rules, at("S", 1), engine, helper)]
    seen += [judge(rules, at("S", 2 + i)) for i in range(DEAD_LOOKS)]
    assert seen == [""] * DEAD_LOOKS + ["VLLM::EngineCore has died, and the stage still waits for it"]
    rules = Rules()  # nor is one whose server ends a little later
    seen = [judge(rules, at("S", 1), engine), judge(rules, at("S", 2)), *(judge(rules) for _ in range(20))]
    assert not any(seen)
    rules = Rules()  # an engine that ends with its server was ended
    seen = [judge(rules, at("S", 1), engine), *(judge(rules) for _ in range(20))]
    assert not any(seen)


def test_who_died_before_the_wait_began_is_not_waited_for() -> None:
    from ray.core.generated.common_pb2 import ActorDeathCause, ActorDiedErrorContext

    context = ActorDiedErrorContext(
        reason=ActorDiedErrorContext.Reason.Value("WORKER_DIED"), pid=7, node_ip_address="h"
    )
    actor = {
        "State": "DEAD", "DeathCause": ActorDeathCause(actor_died_error_context=context), "ActorClassName": "A",
        "EndTime": 100_000,
    }  # fmt: skip
    assert _deaths([actor], 99.0) == {("h", 7): "A"} and _deaths([actor], 101.0) == {}
    assert _deaths([{**actor, "State": "RESTARTING"}], 99.0) == {}


def test_a_look_finds_processes_by_mark_and_by_descent() -> None:
    mark = "tagprtest1"
    marked = subprocess.Popen(["sleep", "60"], env={**os.environ, "X": f"run_id {mark}"})
    child = subprocess.Popen(["sleep", "61"])
    try:
        os.kill(child.pid, signal.SIGSTOP)
        here = {part.pid: part for part in look("h", mark)}
        assert set(here) == {marked.pid} and here[marked.pid].title == "sleep 60" and here[marked.pid].switches > 0
        below = {part.pid: part for part in look("h", mark, above=os.getpid())}
        assert {marked.pid, child.pid} <= set(below) and os.getpid() not in below
        assert below[child.pid].state == "T" and below[child.pid].parent == os.getpid()
    finally:
        for process in (marked, child):
            process.kill()
            process.wait()


@pytest.mark.stack
@pytest.mark.torch
@pytest.mark.timeout(300)
def test_a_real_session_ends_with_the_part_s_name(tmp_path: Path) -> None:
    """An actor that is stopped, one that is killed while another waits for it, Ray's stopped server, memory.

    An actor that goes with its ended stage's placement group is not lost.
    """
    for fault, name in (
        ("stop", "is stopped by a signal"),
        ("kill", "still waits for it"),
        ("ask", "has died. Its last lines"),
        ("head", "gcs_server"),
        ("memory", "GB limit"),
        ("group", "answer: 1"),
    ):
        command = [sys.executable, str(ROOT / "tests/support/lost_part.py"), fault]
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=120, env=os.environ | {"PYTHONPATH": str(ROOT)}
        )
        assert done.returncode == 0, (fault, done.stdout[-2000:], done.stderr[-3000:])
        assert name in done.stdout, (fault, done.stdout)
        assert fault == "group" or "left: 0" in done.stdout, (fault, done.stdout)
