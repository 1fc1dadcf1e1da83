"""PRMU in a run: training is killed and goes on, and `prmu eval` measures what came of it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = [pytest.mark.stack, pytest.mark.torch, pytest.mark.timeout(600)]
ROOT = Path(__file__).resolve().parents[2]
RECIPE = """
name: short
data:
  prompt: {max_tokens: 512, max_response_tokens: 96}
  world: {train_users: 40, held_out_users: 12, time_users: 4}
log: {wandb: disabled}
stages:
  data: {kind: data}
  model: {kind: model}
  chains: {kind: chains}
  sft: {kind: sft, init: model, steps: 10}
  prmu:
    {kind: prmu, init: sft, steps: 40, batch_size: 8, save_every: 5, policy_samples: 4, policy_questions: 40,
     probe_fraction: 0.1, eval_every: 20}
"""


def launch(*arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "launch.py", *arguments]
    return subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )


def rows(path: Path) -> list[dict[str, float]]:
    """Whole lines of a metrics.jsonl."""
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]


def test_prmu_is_killed_goes_on_and_is_measured(tmp_path: Path) -> None:
    run, recipe = tmp_path / "short", tmp_path / "short.yaml"
    stage = run / "050_prmu"
    recipe.write_text(RECIPE, encoding="utf-8")
    first = launch("run", str(recipe), f"out={tmp_path}")
    deadline = time.monotonic() + 400
    try:
        while len(rows(stage / "metrics.jsonl")) < 12:
            assert first.poll() is None, first.stdout.read() if first.stdout else ""
            assert time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        os.killpg(first.pid, signal.SIGKILL)
        first.wait()
    assert not (stage / "manifest.json").exists()
    again = launch("resume", str(run))
    output, _ = again.communicate(timeout=400)
    assert again.returncode == 0, output[-3000:]
    notes = json.loads((stage / "manifest.json").read_text(encoding="utf-8"))["notes"]
    assert any(note.startswith("resumed from step ") for note in notes), notes
    assert [row["step"] for row in rows(stage / "metrics.jsonl")] == list(range(1, 41))
    assert not list((stage / "prmu").glob("**/*.pt"))
    assert "Scores a response" in (stage / "prmu" / "README.md").read_text(encoding="utf-8")

    measured = launch("prmu", "eval", str(run), "--questions", "40", "--samples", "4")
    output, _ = measured.communicate(timeout=400)
    assert measured.returncode == 0, output[-3000:]
    facts = json.loads((run / "prmu_eval" / "prmu.json").read_text(encoding="utf-8"))
    assert facts["user_only"]["generic"] == 0.5
    assert facts["cold_start"][0]["accuracy"][0] == 0.5  # without items, both users are nobody
    best = facts["best_of_n"]
    oracle, own = best["rankings"]["oracle"]["gain"][0], best["rankings"]["prmu"]["gain"][0]
    assert own <= oracle
    assert best["n"] == 4
    assert "<svg" in (run / "prmu_eval" / "prmu.html").read_text(encoding="utf-8")

    wrong = launch("prmu", "eval", str(run), "--stage", "sft")
    output, _ = wrong.communicate(timeout=100)
    assert wrong.returncode == 2
    assert "name a prmu stage" in output
