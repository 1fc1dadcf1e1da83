"""PRMU's scorer in a real GRPO stage: it dies and comes back, freezes and is replaced, and with damaged weights it
stops the stage, which says why."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

pytestmark = [pytest.mark.fault, pytest.mark.stack, pytest.mark.torch, pytest.mark.timeout(900)]
ROOT = Path(__file__).resolve().parents[2]
SETTINGS = (
    "data.world.train_users=30", "stages.sft.steps=30", "stages.base.steps=5", "stages.prmu.steps=5",
    "stages.guided.steps=60", "stages.guided.kl_coef=0", "placement.prmu_serving.restarts=3",
    "placement.prmu_serving.health_s=4",
)  # fmt: skip


def rows(metrics: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()] if metrics.is_file() else []


def scorer(driver: int) -> int | None:
    """Process id of the PRMU actor that `driver` started, once it is running."""
    for process in psutil.Process(driver).children(recursive=True):
        try:
            if "PrmuActor" in " ".join(process.cmdline()):
                return process.pid
        except psutil.NoSuchProcess:
            continue
    return None


def until(moment: Callable[[], bool], driver: subprocess.Popen[str], what: str, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not moment():
        assert driver.poll() is None, what
        assert time.monotonic() < deadline, f"{seconds} s without: {what}"
        time.sleep(0.02)


@pytest.fixture
def driver(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    with (tmp_path / "output").open("w", encoding="utf-8") as output:
        command = [sys.executable, "launch.py", "run", "recipes/smoke.yaml", f"out={tmp_path}", *SETTINGS]
        process = subprocess.Popen(
            [*command, "--until", "guided"], cwd=ROOT, stdout=output, stderr=subprocess.STDOUT, text=True,
            start_new_session=True, env={**os.environ, "COLUMNS": "200"},
        )  # fmt: skip
        yield process
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def steps_after(metrics: Path, driver: subprocess.Popen[str], what: str) -> float:
    """Seconds until three more steps are done."""
    before, began = len(rows(metrics)), time.monotonic()
    until(lambda: len(rows(metrics)) > before + 2, driver, f"three steps after {what}", 120)
    return time.monotonic() - began


def test_a_scorer_dies_freezes_and_reads_damaged_weights(driver: subprocess.Popen[str], tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    stage = tmp_path / "smoke" / "090_guided"
    metrics = stage / "metrics.jsonl"
    until(lambda: len(rows(metrics)) >= 1, driver, "a step of the guided stage", 600)
    first = scorer(driver.pid)
    assert first is not None
    os.kill(first, signal.SIGKILL)
    print(f"three steps {steps_after(metrics, driver, 'its death'):.1f} s after the death")
    second = scorer(driver.pid)
    assert second is not None and second != first
    os.kill(second, signal.SIGSTOP)
    print(f"three steps {steps_after(metrics, driver, 'it froze'):.1f} s after it froze")
    third = scorer(driver.pid)
    assert third is not None and third != second
    assert all(row["prmu/masked"] == 0 for row in rows(metrics))

    weights = tmp_path / "smoke" / "080_prmu" / "prmu" / "model.safetensors"
    damaged = load_file(weights)
    damaged["head.bias"].fill_(float("nan"))
    save_file(damaged, weights)
    os.kill(third, signal.SIGKILL)  # a scorer that restarts reads the folder again
    killed = time.monotonic()
    assert driver.wait(timeout=120) != 0
    stopped = time.monotonic() - killed
    print(f"stopped {stopped:.1f} s after the damage")
    assert stopped < 60
    output = " ".join((tmp_path / "output").read_text(encoding="utf-8").split())
    assert "PRMU could not score" in output and "max_masked_fraction=0.05" in output
    assert "is dead" in output and "head.bias holds values that are not finite" in output
    assert not (stage / "manifest.json").exists()
    done = rows(metrics)
    assert all(row["prmu/masked"] == 0 and row["reward/prmu/mean"] > 0 for row in done)
    assert all(0 <= row["timing_s/prmu_wait"] < row["timing_s/step"] for row in done)
    assert [row["step"] for row in done] == list(range(1, len(done) + 1))
    for file in sorted((stage / "rollouts").glob("step_*.jsonl")):
        lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        assert {(line["prmu_status"], line["prmu_reason"]) for line in lines} == {("scored", "")}
        assert all(line["reward_prmu"] > 0 for line in lines)
