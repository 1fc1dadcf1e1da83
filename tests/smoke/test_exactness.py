"""Rollout (vLLM) and actor (FSDP2) compute the same probabilities, before and after weight transfers.

From the untrained model, whose logits are small. A trained model's logits reach 24, where one step of fp32 is
1.9e-6: there the two engines differ by up to 3e-6, and each of them by 1e-6 to 2e-6 from a float64 reference.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.stack, pytest.mark.torch, pytest.mark.timeout(600)]
ROOT = Path(__file__).resolve().parents[2]

RECIPE = """
name: exact
data:
  world: {train_users: 20, held_out_users: 4, time_users: 0}
log: {wandb: disabled}
stages:
  data: {kind: data}
  model: {kind: model}
  prompts: {kind: prompts}
  exact:
    {kind: grpo, init: model, steps: 4, prompts_per_step: 8, group_size: 4, lr: 1e-3, reuse_rollout_logprobs: false,
     weights: {alpha: 0, beta: 0, gamma: 1}}
"""


def test_probabilities_differ_by_less_than_a_millionth_at_every_step(tmp_path: Path) -> None:
    recipe = tmp_path / "exact.yaml"
    recipe.write_text(RECIPE, encoding="utf-8")
    command = [sys.executable, "launch.py", "run", str(recipe), f"out={tmp_path}", "--until", "exact"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    lines = (tmp_path / "exact" / "040_exact" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    steps = [json.loads(line) for line in lines]
    assert [row["step"] for row in steps] == [1, 2, 3, 4]
    assert max(row["training/rollout_probs_diff_max"] for row in steps) < 1e-6
    assert all(row["actor/grad_norm"] > 0 for row in steps)  # the weights moved, so the transfer was of new ones
