"""A GRPO stage on the real stack with an adapter, and with the rollout on devices of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

pytestmark = [pytest.mark.stack, pytest.mark.torch, pytest.mark.timeout(900)]
ROOT = Path(__file__).resolve().parents[2]


def guided(tmp_path: Path, *overrides: str) -> tuple[Path, list[dict[str, Any]]]:
    """Run data, model, prompts, five SFT and two GRPO steps; its folder and metrics."""
    recipe = {
        "name": "placed",
        "out": str(tmp_path),
        "log": {"wandb": "disabled"},
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
                "micro_batch_size": 8, "weights": {"alpha": 0.2, "beta": 0},
            },
        },
    }  # fmt: skip
    path = tmp_path / "placed.yaml"
    path.write_text(yaml.safe_dump(recipe))
    command = [sys.executable, "launch.py", "run", str(path), *overrides]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-1500:] + done.stderr[-3000:]
    folder = tmp_path / "placed" / "050_guided"
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["step"] for row in rows] == [1, 2]
    assert all("reward/total/mean" in row for row in rows)
    return folder, rows


def test_the_rollout_computes_what_the_policy_with_its_adapter_does(tmp_path: Path) -> None:
    from safetensors import safe_open

    folder, rows = guided(tmp_path, "lora.rank=8", "stages.guided.reuse_rollout_logprobs=false")
    assert max(row["training/rollout_probs_diff_max"] for row in rows) < 1e-5
    run = folder.parent
    with safe_open(run / "020_model" / "hf" / "model.safetensors", "pt") as old:
        for stage in ("040_sft", "050_guided"):
            with safe_open(run / stage / "hf" / "model.safetensors", "pt") as new:
                assert set(new.keys()) == set(old.keys())
                moved = [name for name in new.keys() if not new.get_tensor(name).equal(old.get_tensor(name))]  # noqa: SIM118
                assert moved and all(name.endswith("_proj.weight") for name in moved)  # linear layers alone


def test_a_separate_rollout_generates_with_the_policy_s_weights(tmp_path: Path) -> None:
    folder, rows = guided(tmp_path, "placement.rollout=separate")
    assert (folder / "hf" / "model.safetensors").is_file()
    lines = (folder / "rollouts" / "step_0002.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 16
    # Old log-probabilities are the rollout's; the policy starts the first update of the stage from the same weights.
    assert abs(rows[0]["actor/ppo_kl"]) < 1e-3
