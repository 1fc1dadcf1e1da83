"""Killed runs go on, two runs on one host do not meet."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = [pytest.mark.stack, pytest.mark.torch, pytest.mark.timeout(900)]
ROOT = Path(__file__).resolve().parents[2]
SHORT = ("data.world.train_users=30", "stages.sft.steps=30", "stages.base.steps=5", "stages.prmu.steps=5")


def start(out: Path, *arguments: str) -> subprocess.Popen[str]:
    return launch("run", "recipes/smoke.yaml", f"out={out}", *SHORT, *arguments)


def launch(*arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "launch.py", *arguments]
    return subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )


def steps(metrics: Path) -> list[int]:
    if not metrics.is_file():
        return []
    return [json.loads(line)["step"] for line in metrics.read_text(encoding="utf-8").splitlines()]


def test_two_runs_side_by_side_then_one_is_killed_and_goes_on(tmp_path: Path) -> None:
    """The kill falls into the writing of step 3's checkpoint. `b` shows what comes of the same recipe undisturbed."""
    extra = ("stages.guided.steps=4", "stages.guided.save_every=1", "stages.guided.kl_coef=0", "log.wandb=offline")
    first = start(tmp_path / "a", *extra)
    second = start(tmp_path / "b", *extra, "--until", "guided")
    guided = tmp_path / "a" / "smoke" / "090_guided"
    try:
        deadline = time.monotonic() + 600
        while not list(guided.glob("checkpoints/.writing-*/global_step_3/actor/*")):
            assert first.poll() is None, first.stdout.read() if first.stdout else ""
            assert time.monotonic() < deadline, "the guided stage saved no third step in ten minutes"
            time.sleep(0.005)
        os.killpg(first.pid, signal.SIGKILL)  # the driver and the Ray processes it started
        output, _ = second.communicate(timeout=600)
        assert second.returncode == 0, output[-3000:]
    finally:
        for process in (first, second):
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
    assert steps(tmp_path / "b" / "smoke" / "090_guided" / "metrics.jsonl") == [1, 2, 3, 4]
    assert not (guided / "manifest.json").exists()

    again = launch("resume", str(tmp_path / "a" / "smoke"), "--until", "guided")
    output, _ = again.communicate(timeout=600)
    assert again.returncode == 0, output[-3000:]
    assert "going on with stage 'guided' after step 2 of 4" in output and output.count("done before") == 8
    manifest = json.loads((guided / "manifest.json").read_text(encoding="utf-8"))
    assert "resumed from step 2" in manifest["notes"]
    assert steps(guided / "metrics.jsonl") == [1, 2, 3, 4]
    assert sorted(path.name for path in (guided / "rollouts").iterdir()) == [f"step_{n:04d}.jsonl" for n in range(1, 5)]
    assert prompts(guided) == prompts(tmp_path / "b" / "smoke" / "090_guided")  # the data went on where they were
    assert [path.name for path in guided.glob("checkpoints/.writing-*/*")] == []
    assert {path.name.rsplit("-", 1)[1] for path in (tmp_path / "a" / "smoke" / "wandb").glob("*run-*")} == {
        json.loads((tmp_path / "a" / "smoke" / "tracking.json").read_text(encoding="utf-8"))["id"]
    }


def prompts(stage: Path) -> list[list[str]]:
    """Questions of each step."""
    found = []
    for path in sorted((stage / "rollouts").iterdir()):
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        found.append(sorted({f"{line['task']}/{line['record_id']}" for line in lines}))
    return found
