"""SFT and GRPO with an adapter and a user's own reward on the real stack: sampled with, trained, published."""

from __future__ import annotations

import json
import os
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
            "micro_batch_size": 8, "reuse_rollout_logprobs": False, "save_every": 1,
            "reward": [
                {"name": "task_format", "weight": 1.0}, {"name": "tag", "weight": 0.2},
                {"fn": "my_rewards:brevity", "weight": 0.5},
            ],
        },
    },
}  # fmt: skip
BREVITY = """
def brevity(response):
    \"\"\"1 for an empty response, less for each word.\"\"\"
    return 1 / (1 + len(response.text.split()))
"""


def launch(*arguments: str, folder: Path) -> str:
    """`tagpr ...` in a folder, as a user with a module of their own there types it."""
    command = [sys.executable, "-m", "tagpr_rl", *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=600, check=False, env=environment
    )
    assert done.returncode == 0, done.stdout[-1500:] + done.stderr[-3000:]
    return done.stdout


def test_an_adapter_is_trained_sampled_with_resumed_and_published(tmp_path: Path) -> None:
    from safetensors import safe_open
    from transformers import AutoModelForCausalLM

    recipe = tmp_path / "lora.yaml"
    recipe.write_text(yaml.safe_dump(RECIPE | {"out": str(tmp_path)}, sort_keys=False), encoding="utf-8")
    (tmp_path / "my_rewards.py").write_text(BREVITY, encoding="utf-8")
    launch("run", str(recipe), folder=tmp_path)
    run = tmp_path / "lora"
    guided = run / "050_guided"
    rows = [json.loads(line) for line in (guided / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["step"] for row in rows] == [1, 2]
    assert max(row["training/rollout_probs_diff_max"] for row in rows) < 1e-5
    responses = [
        json.loads(line)
        for file in sorted((guided / "rollouts").glob("step_*.jsonl"))
        for line in file.read_text(encoding="utf-8").splitlines()
    ]
    assert len(responses) == 2 * 16
    for response in responses:  # the workers found the module of the folder in which the command was typed
        assert response["reward_brevity"] == pytest.approx(1 / (1 + len(response["response"].split())))
        expected = response["reward_task"] * response["reward_format"] + 0.2 * response["reward_tag"]
        assert response["reward_total"] == pytest.approx(expected + 0.5 * response["reward_brevity"])
    with safe_open(run / "020_model" / "hf" / "model.safetensors", "pt") as old:
        for stage in ("040_sft", "050_guided"):
            with safe_open(run / stage / "hf" / "model.safetensors", "pt") as new:
                assert set(new.keys()) == set(old.keys())
                moved = [name for name in old.keys() if not new.get_tensor(name).equal(old.get_tensor(name))]  # noqa: SIM118
                assert moved and all(name.endswith("_proj.weight") for name in moved)  # linear layers alone

    # As after a kill between the last checkpoint and the end of the stage.
    (guided / "manifest.json").unlink()
    published = (guided / "hf" / "model.safetensors").read_bytes()
    assert "going on with stage 'guided' after step 2 of 2" in launch("resume", str(run), folder=tmp_path)
    assert (guided / "hf" / "model.safetensors").read_bytes() == published
    folder = Path(
        launch("export", str(run), "--stage", "guided", "--dtype", "float32", folder=tmp_path).strip().splitlines()[-1]
    )
    assert AutoModelForCausalLM.from_pretrained(folder).num_parameters() > 0
