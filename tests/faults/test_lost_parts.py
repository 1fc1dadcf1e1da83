"""One part of a GRPO stage after another is killed or stopped; each time the stage goes on, or ends and is resumed.

The stage has 80 steps: each fault comes a step after the last resume, and at the end no step is missing.
"""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from fault_runs import ANSWER_S, GUIDED, Launched, Record, prepared, steps

pytestmark = [pytest.mark.fault, pytest.mark.stack, pytest.mark.torch, pytest.mark.timeout(2400)]
WHERE = "A process of a GRPO stage"
KILL, STOP = signal.SIGKILL, signal.SIGSTOP
ENDS = {
    # title of the process -> how the table calls it
    "ray::WorkerDict": "policy worker",
    "ray::TagprAgentLoopWorker": "agent loop",
    "ray::TagprHttpServer": "vLLM's server",
    "VLLM::EngineCore": "vLLM's engine",
    "ray::GrpoDriver": "driver of the trainer",
    "ray::TransferQueueController": "controller of TransferQueue",
    "ray::SimpleStorageUnit": "storage of TransferQueue",
    "raylet/raylet": "Ray's node",
    "gcs_server": "Ray's head",
}
GOES_ON = {
    "ray::PrmuActor": "scorer of PRMU",
    "ray::TagChecker": "checker of tags",
    "wandb-core": "W&B's process",
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepared(tmp_path_factory.mktemp("parts"))


@pytest.fixture
def stage(run: Path) -> Iterator[Launched]:
    """The run, resumed, one step after its last."""
    before = steps(run)
    launched = Launched("resume", str(run), log=run.parent / "output.log")
    try:
        launched.wait_for(lambda: len(steps(run)) > len(before), "a step after the resume")
        yield launched
    finally:
        launched.kill()
    assert steps(run)[: len(before)] == before, "no step is lost"


def send(stage: Launched, title: str, number: signal.Signals) -> float:
    pids = stage.pids(title)
    assert pids, f"no process {title!r}"
    os.kill(pids[0], number)
    return time.monotonic()


@pytest.mark.parametrize("number", [KILL, STOP], ids=["killed", "stopped"])
@pytest.mark.parametrize("title", ENDS)
def test_a_part_that_is_lost_ends_the_stage(
    stage: Launched, run: Path, title: str, number: signal.Signals, record: Record
) -> None:
    end = stage.end(send(stage, title, number))
    assert end.code == 2, end.output[-3000:]
    assert end.seconds <= ANSWER_S
    assert "stage 'guided'" in end.error and "tagpr resume" in end.output
    assert stage.left() == []
    assert not (run / GUIDED / "manifest.json").exists()
    fault = f"{ENDS[title]} {'killed' if number == KILL else 'stopped'}"
    said = re.sub(r"\(process \d+ on [\w.-]+\)|[\w./-]*/short\S*", "...", end.error.removeprefix("error: "))
    record(WHERE, fault, f"ends with 2: {said[:140]}", end.seconds)


@pytest.mark.parametrize("number", [KILL, STOP], ids=["killed", "stopped"])
@pytest.mark.parametrize("title", GOES_ON)
def test_a_stage_goes_on_without_or_with_a_new_part(
    stage: Launched, run: Path, title: str, number: signal.Signals, record: Record
) -> None:
    before = len(steps(run))
    began = send(stage, title, number)
    # Two steps may have been scored before.
    stage.wait_for(lambda: len(steps(run)) >= before + 4, "four steps after the fault", 2 * ANSWER_S)
    seconds = time.monotonic() - began
    assert seconds <= ANSWER_S
    fault = f"{GOES_ON[title]} {'killed' if number == KILL else 'stopped'}"
    record(WHERE, fault, "goes on; four more steps are done", seconds)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["SIGINT", "SIGTERM"])
def test_a_signal_ends_the_run(stage: Launched, number: signal.Signals, code: int, record: Record) -> None:
    os.kill(stage.process.pid, number)
    end = stage.end(time.monotonic())
    assert end.code == code and "the same command goes on" in end.output, end.output[-3000:]
    assert end.seconds <= ANSWER_S and stage.left() == []
    record("The command itself", number.name, f"ends with {code}", end.seconds)


def test_a_killed_command_leaves_nothing(stage: Launched, record: Record) -> None:
    os.kill(stage.process.pid, signal.SIGKILL)
    began = time.monotonic()
    stage.process.wait()
    assert stage.left(ANSWER_S) == []
    record("The command itself", "SIGKILL", "its processes end, too", time.monotonic() - began)


def test_no_step_is_missing_at_the_end(run: Path, record: Record) -> None:
    launched = Launched("resume", str(run), log=run.parent / "output.log")
    end = launched.end(time.monotonic(), 500)
    assert end.code == 0, end.output[-3000:]
    assert steps(run) == list(range(1, 81))
    assert sorted(path.name for path in (run / GUIDED / "rollouts").iterdir()) == [
        f"step_{step:04d}.jsonl" for step in range(1, 81)
    ]
    assert launched.left() == []
