"""SFT and GRPO with an adapter on the real stack: what the rollout samples with is what the policy is."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

pytestmark = [pytest.mark.stack, pytest.mark.torch, pytest.mark.timeout(900)]
ROOT = Path(__file__).resolve().parents[2]
RECIPE = {
    "name": "lora",
    "log": {"wandb": "disabled"},
    "lora": {"rank": 8},
    "data": {
        "world": {"train_users": 20, "held_out_users": 6, "time_users": 4},
        "prompt": {"max_tokens": 256, "max_response_tokens": 32},
    },
    "stages": {
        "data": {"kind": "data"},
        "model": {"kind": "model"},
        "prompts": {"kind": "prompts"},
        "sft": {"kind": "sft", "init": "model", "dataset": "direct", "steps": 5, "lr": 1e-2, "warmup_steps": 0},
        "guided": {
            "kind": "grpo", "init": "sft", "steps": 2, "prompts_per_step": 4, "group_size": 4, "mini_batches": 2,
            "micro_batch_size": 8, "weights": {"alpha": 0.2, "beta": 0}, "reuse_rollout_logprobs": False,
            "save_every": 1,
        },
    },
}  # fmt: skip


def launch(*arguments: str) -> str:
    command = [sys.executable, "launch.py", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout[-1500:] + done.stderr[-3000:]
    return done.stdout


def test_an_adapter_is_trained_sampled_with_resumed_and_published(tmp_path: Path) -> None:
    from safetensors import safe_open
    from transformers import AutoModelForCausalLM

    recipe = tmp_path / "lora.yaml"
    recipe.write_text(yaml.safe_dump(RECIPE | {"out": str(tmp_path)}, sort_keys=False), encoding="utf-8")
    launch("run", str(recipe))
    run = tmp_path / "lora"
    guided = run / "050_guided"
    rows = [json.loads(line) for line in (guided / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["step"] for row in rows] == [1, 2]
    assert max(row["training/rollout_probs_diff_max"] for row in rows) < 1e-5
    with safe_open(run / "020_model" / "hf" / "model.safetensors", "pt") as old:
        for stage in ("040_sft", "050_guided"):
            with safe_open(run / stage / "hf" / "model.safetensors", "pt") as new:
                assert set(new.keys()) == set(old.keys())
                moved = [name for name in old.keys() if not new.get_tensor(name).equal(old.get_tensor(name))]  # noqa: SIM118
                assert moved and all(name.endswith("_proj.weight") for name in moved)  # linear layers alone

    # As after a kill between the last checkpoint and the end of the stage.
    (guided / "manifest.json").unlink()
    published = (guided / "hf" / "model.safetensors").read_bytes()
    assert "going on with stage 'guided' after step 2 of 2" in launch("resume", str(run))
    assert (guided / "hf" / "model.safetensors").read_bytes() == published
    folder = Path(launch("export", str(run), "--stage", "guided", "--dtype", "float32").strip().splitlines()[-1])
    assert AutoModelForCausalLM.from_pretrained(folder).num_parameters() > 0
