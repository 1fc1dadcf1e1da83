"""Every override that a recipe makes is a key that verl knows, and arrives where it was meant to."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from tagpr_rl.backend.trainer.overrides import StagePaths, grpo_overrides, sft_overrides
from tagpr_rl.config import load_recipe

os.environ.setdefault("VERL_PLATFORM", "cpu")
pytestmark = [pytest.mark.stack, pytest.mark.torch]
ROOT = Path(__file__).resolve().parents[2]
PATHS = StagePaths(Path("/m o'del"), Path("/train.parquet"), Path("/ckpt"), Path("/rollouts"))


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_grpo_keys(device: str) -> None:
    from tagpr_rl.backend.trainer.overrides import compose

    recipe = load_recipe(
        ROOT / "recipes/demo.yaml",
        (f"platform.device={device}", "platform.vllm_memory_mb=256", "stages.guided.clip_high=0.28",
         "stages.guided.kl_coef=0.02", "stages.guided.advantage.normalise=none", "stages.guided.mini_batches=2"),
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
    assert rollout.engine_kwargs.vllm.scheduler_cls == "tagpr_rl.backend.rollout.finished.scheduler"
    assert config.trainer.device == device
    on_cpu = device == "cpu"
    assert config.actor_rollout_ref.model.use_remove_padding is not on_cpu
    assert rollout.enforce_eager is on_cpu
    assert rollout.engine_kwargs.vllm.get("kv_cache_memory_bytes") == (256 << 20 if on_cpu else None)
    assert config.trainer.v1.sampler.custom_sampler.name == "FastReplayBuffer"  # on every device
    assert actor.fsdp_config.mixed_precision.param_dtype == "fp32"


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_sft_keys(device: str) -> None:
    from tagpr_rl.backend.trainer.overrides import compose

    recipe = load_recipe(ROOT / "recipes/demo.yaml", (f"platform.device={device}", "model.dtype=bfloat16"))
    config = compose("sft_trainer_engine", sft_overrides(recipe, "sft", PATHS))
    assert config.optim.lr == 3e-3 and list(config.optim.betas) == [0.9, 0.98]
    assert config.engine.strategy == "fsdp2" and config.engine.mixed_precision.param_dtype == "bf16"
    assert config.trainer.total_training_steps == 1300
    assert config.data.custom_cls.name == "TokenizedDataset"


def test_deepspeed_keys() -> None:
    from verl.utils.config import omega_conf_to_dataclass

    from tagpr_rl.backend.deepspeed.engine import DeepSpeedEngineConfig
    from tagpr_rl.backend.trainer.overrides import compose

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


GPU = (
    "platform.device=cuda",
    "platform.devices_per_node=8",
    "model.dtype=bfloat16",
    "stages.guided.micro_batch_size=4",
)


def composed(stage: str, *overrides: str) -> Any:
    from tagpr_rl.backend.trainer.overrides import compose

    recipe = load_recipe(ROOT / "recipes/demo.yaml", overrides)
    if stage == "sft":
        return compose("sft_trainer_engine", sft_overrides(recipe, "sft", PATHS))
    return compose("ppo_trainer", grpo_overrides(recipe, stage, PATHS))


def test_lora_keys() -> None:
    from verl.utils.config import omega_conf_to_dataclass

    lora = ("lora.rank=8", "lora.alpha=24", "lora.target_modules=[q_proj, v_proj]", "lora.merge=true")
    for model in (composed("guided", *lora).actor_rollout_ref.model, composed("sft", *lora).model):
        assert (model.lora_rank, model.lora_alpha, list(model.target_modules)) == (8, 24, ["q_proj", "v_proj"])
        assert model.lora.merge is True
        assert model.lora.rank == 0  # the Megatron engine's; verl's FSDP engine reads lora_rank
    plain = composed("guided").actor_rollout_ref.model
    assert plain.lora_rank == 0 and plain.lora.merge is False
    optimizer = omega_conf_to_dataclass(composed("sft", *lora).optim)
    assert optimizer.lr == 3e-3


def test_training_keys() -> None:
    config = composed(
        "guided", *GPU, "training.fsdp_size=4", "training.sequence_parallel=2", "training.offload_params=true",
        "training.offload_optimizer=true", "training.max_tokens_per_device=4096",
        "training.attention=flash_attention_2", "training.gradient_checkpointing=false", "placement.tensor_parallel=4",
    )  # fmt: skip
    actor, ref, rollout, model = (config.actor_rollout_ref[key] for key in ("actor", "ref", "rollout", "model"))
    for engine in (actor.fsdp_config, ref.fsdp_config):
        assert (engine.fsdp_size, engine.ulysses_sequence_parallel_size, engine.param_offload) == (4, 2, True)
    assert actor.fsdp_config.optimizer_offload and not ref.fsdp_config.optimizer_offload
    assert actor.use_dynamic_bsz and actor.ppo_max_token_len_per_gpu == 4096
    assert ref.log_prob_use_dynamic_bsz and ref.log_prob_max_token_len_per_gpu == 4096
    assert rollout.log_prob_use_dynamic_bsz and rollout.log_prob_max_token_len_per_gpu == 4096
    assert model.override_config.attn_implementation == "flash_attention_2" and model.use_remove_padding
    assert model.enable_gradient_checkpointing is False
    assert rollout.tensor_model_parallel_size == 4
    padded = composed("guided", *GPU, "training.attention=sdpa")
    assert padded.actor_rollout_ref.model.use_remove_padding is False
    assert padded.actor_rollout_ref.actor.fsdp_config.fsdp_size == -1
    sft = composed("sft", *GPU, "training.max_tokens_per_device=4096", "training.fsdp_size=2")
    assert sft.data.use_dynamic_bsz and sft.data.max_token_len_per_gpu == 4096 and sft.engine.fsdp_size == 2


def test_separate_keys_meet_what_verl_s_trainer_asserts() -> None:
    from verl.trainer.ppo.utils import need_critic, need_reference_policy
    from verl.utils.config import validate_config

    config = composed(
        "guided", *GPU, "placement.rollout=separate", "placement.rollout_nodes=2",
        "placement.rollout_devices_per_node=8", "stages.guided.mini_batches=2", "placement.warmup_batches=1.5",
    )  # fmt: skip
    rollout, separate = config.actor_rollout_ref.rollout, config.trainer.v1.separate_async
    assert config.trainer.v1.trainer_mode == "separate_async"
    assert config.actor_rollout_ref.hybrid_engine is False
    assert (rollout.nnodes, rollout.n_gpus_per_node, rollout.checkpoint_engine.backend) == (2, 8, "nccl")
    # trainer_separate_async.py:48
    assert config.data.train_batch_size == (
        separate.parameter_sync_step * config.actor_rollout_ref.actor.ppo_mini_batch_size
    )
    assert separate.num_warmup_batches == 1.5
    assert rollout.checkpoint_engine.custom_backend_module == config.actor_rollout_ref.model.external_lib
    assert "scheduler_cls" not in rollout.engine_kwargs.vllm  # an interrupted engine hands over what it has
    validate_config(config=config, use_reference_policy=need_reference_policy(config), use_critic=need_critic(config))
    policy = composed("guided", "placement.rollout=separate").actor_rollout_ref
    cpu = policy.rollout.checkpoint_engine
    assert (cpu.backend, cpu.custom_backend_module) == ("tagpr_tcp", policy.model.external_lib)


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").rglob("*qwen3*.yaml")), ids=lambda path: path.stem)
def test_verl_accepts_the_gpu_recipes(path: Path) -> None:
    from verl.trainer.ppo.utils import need_critic, need_reference_policy
    from verl.utils.config import validate_config

    from tagpr_rl.backend.trainer.overrides import compose

    recipe = load_recipe(path)
    for name in ("guided", "explore"):
        config = compose("ppo_trainer", grpo_overrides(recipe, name, PATHS))
        validate_config(
            config=config, use_reference_policy=need_reference_policy(config), use_critic=need_critic(config)
        )
    assert compose("sft_trainer_engine", sft_overrides(recipe, "sft", PATHS)).optim.lr == recipe.stages["sft"].lr
