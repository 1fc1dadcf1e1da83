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
    command = [sys.executable, "launch.py", "run", "recipes/smoke.yaml", f"out={out}", *SHORT, *arguments]
    return subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )


def steps(metrics: Path) -> list[int]:
    if not metrics.is_file():
        return []
    return [json.loads(line)["step"] for line in metrics.read_text(encoding="utf-8").splitlines()]


def test_two_runs_side_by_side_then_one_is_killed_and_goes_on(tmp_path: Path) -> None:
    extra = ("stages.guided.steps=4", "stages.guided.save_every=1", "stages.guided.kl_coef=0")
    first = start(tmp_path / "a", *extra)
    second = start(tmp_path / "b", *extra, "--until", "guided")
    guided = tmp_path / "a" / "smoke" / "090_guided"
    try:
        deadline = time.monotonic() + 600
        while len(steps(guided / "metrics.jsonl")) < 2:
            assert first.poll() is None, first.stdout.read() if first.stdout else ""
            assert time.monotonic() < deadline, "the guided stage made no steps in ten minutes"
            time.sleep(0.2)
        os.killpg(first.pid, signal.SIGKILL)  # the driver and the Ray processes it started
        output, _ = second.communicate(timeout=600)
        assert second.returncode == 0, output[-3000:]
    finally:
        for process in (first, second):
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
    assert steps(tmp_path / "b" / "smoke" / "090_guided" / "metrics.jsonl") == [1, 2, 3, 4]
    assert not (guided / "manifest.json").exists()

    again = start(tmp_path / "a", *extra, "--until", "guided")
    output, _ = again.communicate(timeout=600)
    assert again.returncode == 0, output[-3000:]
    assert output.count("done before") == 8
    manifest = json.loads((guided / "manifest.json").read_text(encoding="utf-8"))
    assert any("resumed from step" in note for note in manifest["notes"])
    assert steps(guided / "metrics.jsonl") == [1, 2, 3, 4]
    assert sorted(path.name for path in (guided / "rollouts").iterdir()) == [f"step_{n:04d}.jsonl" for n in range(1, 5)]
