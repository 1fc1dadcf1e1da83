"""What a run on GPUs gets before its first process: verl's own variables, and the engine that carries its weights."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

os.environ.setdefault("VERL_PLATFORM", "cpu")
pytest.importorskip("verl")
pytestmark = [pytest.mark.stack, pytest.mark.torch]

from tagpr_rl.backend.session.ray_session import environment, worker_settings  # noqa: E402
from tagpr_rl.backend.trainer.overrides import StagePaths, grpo_overrides  # noqa: E402
from tagpr_rl.config import load_recipe  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
SEPARATE = load_recipe(ROOT / "recipes/lamp/qwen3_8b_separate.yaml", ["data.lamp_dir=/nowhere"])


def test_verl_s_variables_reach_the_processes_of_a_run_on_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    from verl.trainer.constants_ppo import PPO_RAY_RUNTIME_ENV

    for name in PPO_RAY_RUNTIME_ENV["env_vars"]:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NCCL_DEBUG", "INFO")
    given = environment(SEPARATE, worker_settings(SEPARATE))
    assert given["VLLM_DISABLE_COMPILE_CACHE"] == "1" and given["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] == "true"
    assert given["NCCL_DEBUG"] == "INFO"  # the shell's
    assert given["TOKENIZERS_PARALLELISM"] == "false" and given["VERL_PLATFORM"] == "nvidia"  # this project's
    assert set(PPO_RAY_RUNTIME_ENV["env_vars"]) <= set(given)


def test_weights_for_a_separate_rollout_need_cupy_and_the_stage_says_so_at_its_start() -> None:
    paths = StagePaths(model=Path("/m"), train=Path("/t"), checkpoints=Path("/c"), rollouts=Path("/r"))
    name = "actor_rollout_ref.rollout.checkpoint_engine.backend"
    assert grpo_overrides(SEPARATE, "guided", paths)[name] == "nccl"
    code = """
import sys
sys.modules["cupy"] = None  # as if it were not installed
from tagpr_rl.backend.trainer.grpo import require_weight_transfer
require_weight_transfer("tagpr_tcp")
require_weight_transfer("nccl")
"""
    variables = {**os.environ, "VERL_PLATFORM": "nvidia"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=variables)
    assert "TagprError: placement.rollout=separate: verl's checkpoint engine nccl does not load" in done.stderr
    assert "cupy" in done.stderr.splitlines()[-1] and "make install-gpu" in done.stderr.splitlines()[-1]


def test_the_lock_has_cupy_for_the_cuda_of_its_torch() -> None:
    lock = (ROOT / "requirements/gpu.lock").read_text(encoding="utf-8")
    built = re.search(r"^cupy-cuda(\d+)x==", lock, re.MULTILINE)
    toolkit = re.search(r"^cuda-toolkit==(\d+)\.", lock, re.MULTILINE)
    assert built is not None and toolkit is not None and built[1] == toolkit[1]


def test_a_run_on_gpus_polls_as_quickly_as_one_on_the_cpu_and_a_separate_rollout_as_verl_does() -> None:
    paths = StagePaths(model=Path("/m"), train=Path("/t"), checkpoints=Path("/c"), rollouts=Path("/r"))
    together = load_recipe(ROOT / "recipes/lamp/qwen3_8b.yaml", ["data.lamp_dir=/nowhere"])
    name = "trainer.v1.sampler.custom_sampler.name"
    assert grpo_overrides(together, "guided", paths)[name] == "FastReplayBuffer"
    assert grpo_overrides(SEPARATE, "guided", paths)[name] == "AsyncReplayBuffer"
