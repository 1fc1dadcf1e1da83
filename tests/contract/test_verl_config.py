"""Every override that a recipe makes is a key that verl knows, and arrives where it was meant to."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tagpr_rl.backend.verl_config import StagePaths, grpo_overrides, sft_overrides
from tagpr_rl.config import load_recipe

os.environ.setdefault("VERL_PLATFORM", "cpu")
pytestmark = [pytest.mark.stack, pytest.mark.torch]
ROOT = Path(__file__).resolve().parents[2]
PATHS = StagePaths(Path("/m o'del"), Path("/train.parquet"), Path("/ckpt"), Path("/rollouts"))


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_grpo_keys(device: str) -> None:
    from tagpr_rl.backend.hydra_config import compose

    recipe = load_recipe(
        ROOT / "recipes/demo.yaml",
        (f"platform.device={device}", "stages.guided.clip_high=0.28", "stages.guided.kl_coef=0.02",
         "stages.guided.norm_advantage_by_std=false", "stages.guided.mini_batches=2"),
    )  # fmt: skip
    config = compose("ppo_trainer", grpo_overrides(recipe, "guided", PATHS))
    actor, rollout = config.actor_rollout_ref.actor, config.actor_rollout_ref.rollout
    assert config.actor_rollout_ref.model.path == "/m o'del"
    assert (actor.clip_ratio_low, actor.clip_ratio_high) == (0.2, 0.28)
    assert actor.use_kl_loss and actor.kl_loss_coef == 0.02
    assert actor.strategy == actor.fsdp_config.strategy == "fsdp2"
    assert actor.ppo_mini_batch_size == 16  # prompts; verl multiplies by the group size
    assert config.algorithm.norm_adv_by_std_in_grpo is False
    assert config.data.train_batch_size == 32 and rollout.n == 8
    assert rollout.engine_kwargs.vllm.worker_extension_cls.endswith("TagprWorkerExtension")
    assert config.trainer.device == device
    on_cpu = device == "cpu"
    assert config.actor_rollout_ref.model.use_remove_padding is not on_cpu
    assert rollout.enforce_eager is on_cpu
    assert ("kv_cache_memory_bytes" in rollout.engine_kwargs.vllm) is on_cpu
    assert bool(config.trainer.v1.sampler.custom_sampler.path) is on_cpu
    assert actor.fsdp_config.mixed_precision.param_dtype == "fp32"


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_sft_keys(device: str) -> None:
    from tagpr_rl.backend.hydra_config import compose

    recipe = load_recipe(ROOT / "recipes/demo.yaml", (f"platform.device={device}", "model.dtype=bfloat16"))
    config = compose("sft_trainer_engine", sft_overrides(recipe, "sft", PATHS))
    assert config.optim.lr == 3e-3 and list(config.optim.betas) == [0.9, 0.98]
    assert config.engine.strategy == "fsdp2" and config.engine.mixed_precision.param_dtype == "bf16"
    assert config.trainer.total_training_steps == 1300
    assert config.data.custom_cls.name == "TokenizedDataset"


def test_deepspeed_keys() -> None:
    from verl.utils.config import omega_conf_to_dataclass

    from tagpr_rl.backend.deepspeed.settings import DeepSpeedEngineConfig
    from tagpr_rl.backend.hydra_config import compose

    recipe = load_recipe(
        ROOT / "recipes/demo_deepspeed.yaml",
        ("stages.guided.deepspeed={zero_stage: 3, offload_params: true}", "stages.guided.kl_coef=0.02",
         "stages.sft.deepspeed.universal_checkpoints=false"),
    )  # fmt: skip
    config = compose("ppo_trainer", grpo_overrides(recipe, "guided", PATHS)).actor_rollout_ref
    for role in (config.actor, config.ref):
        engine = omega_conf_to_dataclass(role.fsdp_config)
        assert isinstance(engine, DeepSpeedEngineConfig) and role.strategy == engine.strategy == "deepspeed"
        assert (engine.zero_stage, engine.offload_params, engine.offload_optimizer) == (3, True, False)
    assert config.ref.fsdp_config.forward_only and not config.actor.fsdp_config.forward_only
    assert "tagpr_rl.backend.deepspeed.engine" in config.model.external_lib
    engine = omega_conf_to_dataclass(compose("sft_trainer_engine", sft_overrides(recipe, "sft", PATHS)).engine)
    assert isinstance(engine, DeepSpeedEngineConfig)
    assert (engine.zero_stage, engine.universal_checkpoints) == (2, False)
