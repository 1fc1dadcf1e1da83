"""SFT and GRPO stages of a recipe run on DeepSpeed; the rollout samples from exactly the weights that ZeRO 3 trains."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.stack, pytest.mark.torch, pytest.mark.timeout(600)]
ROOT = Path(__file__).resolve().parents[2]

RECIPE = """
name: zero
data:
  world: {train_users: 20, held_out_users: 4, time_users: 0}
log: {wandb: disabled}
stages:
  data: {kind: data}
  model: {kind: model}
  prompts: {kind: prompts}
  sft: {kind: sft, init: model, dataset: direct, steps: 3, warmup_steps: 1, strategy: deepspeed}
  chains: {kind: chains}
  prmu: {kind: prmu, init: sft, steps: 2, batch_size: 4, strategy: deepspeed}
  rl:
    {kind: grpo, init: sft, prmu: prmu, steps: 2, prompts_per_step: 4, group_size: 4, micro_batch_size: 8, lr: 1e-3,
     kl_coef: 0.01, reuse_rollout_logprobs: false, weights: {alpha: 0, beta: 0.1, gamma: 1},
     strategy: deepspeed, deepspeed: {zero_stage: 3}}
"""


def test_a_recipe_runs_on_deepspeed(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    recipe = tmp_path / "zero.yaml"
    recipe.write_text(RECIPE, encoding="utf-8")
    command = [sys.executable, "launch.py", "run", str(recipe), f"out={tmp_path}", "--until", "rl"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    run = tmp_path / "zero"
    steps = [json.loads(line) for line in (run / "070_rl" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["step"] for row in steps] == [1, 2]
    assert max(row["training/rollout_probs_diff_max"] for row in steps) < 1e-6
    assert all(row["actor/grad_norm"] > 0 for row in steps)
    assert steps[0]["actor/kl_loss"] == pytest.approx(0.0, abs=1e-6)  # the reference starts as the policy
    assert steps[1]["actor/kl_loss"] > 1e-9  # and stays behind
    before, after = (load_file(run / stage / "hf" / "model.safetensors") for stage in ("040_sft", "070_rl"))
    assert before.keys() == after.keys() and all(tensor.isfinite().all() for tensor in after.values())
    assert any((before[name] != after[name]).any() for name in before)
    for stage, step in (("040_sft", 3), ("070_rl", 2)):
        assert list((run / stage).glob(f"checkpoints/global_step_{step}/**/deepspeed.json"))
