"""Recipe -> verl overrides: every verl key name of the project stands in this file.

Imports nothing of verl, so that `launch.py plan` can print the overrides on any machine.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tagpr_rl.config import GrpoStage, Recipe, SftStage

_HOOKS = "tagpr_rl.backend.worker_hooks"
_AGENT_LOOPS = "tagpr_rl.backend.agent_loop.TagprAgentLoopManager"
_WORKER_EXTENSION = "tagpr_rl.backend.vllm_worker.TagprWorkerExtension"


@dataclass(frozen=True, slots=True)
class StagePaths:
    """Files and folders of one training stage, absolute."""

    model: Path
    train: Path
    checkpoints: Path
    rollouts: Path


def world_size(recipe: Recipe) -> int:
    """Training processes: nodes x devices per node."""
    return recipe.platform.nodes * recipe.platform.devices_per_node


def _mixed_precision(engine: str, recipe: Recipe) -> dict[str, str]:
    """Compute dtype of an FSDP engine; verl takes bfloat16 where this is not set (transformer_impl.py:397)."""
    compute = "fp32" if recipe.model.dtype == "float32" else "bf16"
    dtypes = {"param_dtype": compute, "reduce_dtype": "fp32", "buffer_dtype": "fp32"}
    return {f"++{engine}.mixed_precision.{key}": value for key, value in dtypes.items()}


def grpo_overrides(recipe: Recipe, name: str, paths: StagePaths) -> dict[str, Any]:
    """verl's `ppo_trainer` keys for the GRPO stage `name`; everything else keeps verl's default."""
    stage = recipe.stages[name]
    assert isinstance(stage, GrpoStage)
    return {
        **_data_keys(recipe, stage, paths),
        **_actor_keys(recipe, stage, paths),
        **_rollout_keys(recipe, stage),
        **_reward_keys(recipe, stage),
        **_trainer_keys(recipe, name, stage, paths),
    }


def _data_keys(recipe: Recipe, stage: GrpoStage, paths: StagePaths) -> dict[str, Any]:
    prompt = recipe.data.prompt
    return {
        "data.train_files": str(paths.train),
        "data.val_files": str(paths.train),  # verl wants a file; validation is off, ours is the eval stage
        "data.val_max_samples": 1,
        "data.train_batch_size": stage.prompts_per_step,
        "data.max_prompt_length": prompt.max_tokens,
        "data.max_response_length": prompt.max_response_tokens,
        "data.filter_overlong_prompts": False,  # prompts are built to the limit
        "data.return_raw_chat": True,
        "data.seed": stage.seed,
        "data.shuffle": True,
        "data.dataloader_num_workers": 0,
    }


def _actor_keys(recipe: Recipe, stage: GrpoStage, paths: StagePaths) -> dict[str, Any]:
    cpu = recipe.platform.device == "cpu"
    per_step = stage.prompts_per_step
    model, actor = "actor_rollout_ref.model", "actor_rollout_ref.actor"
    keys: dict[str, Any] = {
        f"{model}.path": str(paths.model),
        f"{model}.external_lib": _HOOKS,
        f"{model}.use_remove_padding": not cpu,  # packed rows are quadratic under sdpa
        f"{model}.enable_gradient_checkpointing": not cpu,
        f"{actor}.strategy": "fsdp2",
        f"{actor}.fsdp_config.strategy": "fsdp2",
        f"{actor}.fsdp_config.model_dtype": "fp32",
        **_mixed_precision(f"{actor}.fsdp_config", recipe),
        f"{actor}.fsdp_config.use_torch_compile": not cpu,
        f"{actor}.fsdp_config.seed": stage.seed,
        f"{actor}.use_torch_compile": not cpu,
        f"{actor}.optim.lr": stage.lr,
        f"{actor}.optim.lr_warmup_steps": stage.lr_warmup_steps,
        f"{actor}.optim.weight_decay": stage.weight_decay,
        f"{actor}.optim.betas": list(stage.betas),
        f"{actor}.grad_clip": stage.max_grad_norm,
        f"{actor}.optim.clip_grad": stage.max_grad_norm,
        f"{actor}.ppo_mini_batch_size": per_step // stage.mini_batches,
        f"{actor}.ppo_micro_batch_size_per_gpu": stage.micro_batch_size,
        f"{actor}.clip_ratio_low": stage.clip_low,
        f"{actor}.clip_ratio_high": stage.clip_high,
        f"{actor}.loss_agg_mode": stage.loss_agg,
        f"{actor}.calculate_entropy": True,
        f"{actor}.use_kl_loss": stage.kl_coef > 0,
        f"{actor}.kl_loss_coef": stage.kl_coef,
        f"{actor}.data_loader_seed": stage.seed,
        f"{actor}.checkpoint.save_contents": ["model", "optimizer", "extra", "hf_model"],
        f"{actor}.checkpoint.load_contents": ["model", "optimizer", "extra"],
        "actor_rollout_ref.ref.strategy": "fsdp2",
        "actor_rollout_ref.ref.fsdp_config.strategy": "fsdp2",
        "actor_rollout_ref.ref.fsdp_config.model_dtype": "fp32",
        **_mixed_precision("actor_rollout_ref.ref.fsdp_config", recipe),
        "actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu": stage.micro_batch_size,
    }
    if cpu:
        keys[f"+{model}.override_config.attn_implementation"] = "sdpa"
    return keys


def _rollout_keys(recipe: Recipe, stage: GrpoStage) -> dict[str, Any]:
    platform, prompt = recipe.platform, recipe.data.prompt
    cpu = platform.device == "cpu"
    rollout = "actor_rollout_ref.rollout"
    length = prompt.max_tokens + prompt.max_response_tokens
    keys: dict[str, Any] = {
        f"{rollout}.name": "vllm",
        f"{rollout}.n": stage.group_size,
        f"{rollout}.temperature": stage.temperature,
        f"{rollout}.seed": stage.seed,
        f"{rollout}.dtype": recipe.model.dtype,
        f"{rollout}.tensor_model_parallel_size": 1,
        f"{rollout}.max_model_len": length,
        f"{rollout}.max_num_batched_tokens": max(8192, length),
        f"{rollout}.max_num_seqs": stage.prompts_per_step * stage.group_size if cpu else 256,
        f"{rollout}.gpu_memory_utilization": platform.vllm_gpu_utilization,
        f"{rollout}.load_format": "dummy",  # weights arrive from the actor before the first token
        f"{rollout}.calculate_log_probs": True,
        f"{rollout}.log_prob_micro_batch_size_per_gpu": stage.micro_batch_size,
        f"{rollout}.enforce_eager": cpu,
        f"{rollout}.free_cache_engine": not cpu,
        f"+{rollout}.enable_sleep_mode": not cpu,
        f"++{rollout}.agent.agent_loop_manager_class": _AGENT_LOOPS,
        f"{rollout}.agent.num_workers": platform.nodes if cpu else 8 * platform.nodes,
        f"{rollout}.checkpoint_engine.update_weights_bucket_megabytes": platform.weight_bucket_mb,
        f"+{rollout}.engine_kwargs.vllm.worker_extension_cls": _WORKER_EXTENSION,
    }
    if cpu:
        keys[f"+{rollout}.engine_kwargs.vllm.kv_cache_memory_bytes"] = platform.vllm_memory_mb << 20
        if platform.cuts.single_process_vllm:
            keys[f"+{rollout}.engine_kwargs.vllm.distributed_executor_backend"] = "uni"
    return keys


def _reward_keys(recipe: Recipe, stage: GrpoStage) -> dict[str, Any]:
    return {
        "reward.num_workers": 0,  # agent-loop workers ask the scoring actors themselves (backend.agent_loop)
        "reward.reward_model.enable": False,
        "+reward.reward_kwargs.prmu_timeout_s": stage.prmu_timeout_s,
        "+reward.reward_kwargs.max_masked_fraction": stage.max_masked_fraction,
    }


def _trainer_keys(recipe: Recipe, name: str, stage: GrpoStage, paths: StagePaths) -> dict[str, Any]:
    platform = recipe.platform
    cpu = platform.device == "cpu"
    keys: dict[str, Any] = {
        "algorithm.adv_estimator": "grpo",
        "algorithm.norm_adv_by_std_in_grpo": stage.norm_advantage_by_std,
        "algorithm.use_kl_in_reward": False,
        "algorithm.rollout_correction.bypass_mode": stage.reuse_rollout_logprobs,
        "trainer.device": platform.device,
        "trainer.use_v1": True,
        "trainer.v1.trainer_mode": "sync",
        "trainer.nnodes": platform.nodes,
        "trainer.n_gpus_per_node": platform.devices_per_node,
        "trainer.total_training_steps": stage.steps,
        "trainer.total_epochs": 1_000_000,  # steps decide
        "trainer.save_freq": stage.save_every or stage.steps,
        "trainer.test_freq": -1,
        "trainer.val_before_train": False,
        "trainer.max_actor_ckpt_to_keep": None,  # tagpr_rl.checkpoints keeps and drops
        "trainer.default_local_dir": str(paths.checkpoints),
        "trainer.rollout_data_dir": str(paths.rollouts),
        "trainer.project_name": recipe.log.project,
        "trainer.experiment_name": f"{recipe.name}/{name}",
        "trainer.logger": [],  # backend.tracking logs instead
        "trainer.resume_mode": "auto",
        "transfer_queue.backend.SimpleStorage.num_data_storage_units": platform.nodes if cpu else 8,
        "transfer_queue.backend.SimpleStorage.total_storage_size": 100_000,
    }
    if cpu:
        keys["trainer.v1.sampler.custom_sampler.path"] = "pkg://tagpr_rl.backend.replay"
        keys["trainer.v1.sampler.custom_sampler.name"] = "FastReplayBuffer"
    return keys


def sft_overrides(recipe: Recipe, name: str, paths: StagePaths) -> dict[str, Any]:
    """verl's `sft_trainer_engine` keys for the SFT stage `name`."""
    stage = recipe.stages[name]
    assert isinstance(stage, SftStage)
    cpu = recipe.platform.device == "cpu"
    return {
        "data.train_files": str(paths.train),
        "data.val_files": None,
        "data.train_batch_size": stage.batch_size,
        "data.micro_batch_size_per_gpu": stage.batch_size // world_size(recipe),
        "data.use_dynamic_bsz": not cpu,
        "data.max_length": recipe.data.prompt.max_tokens + recipe.data.prompt.max_response_tokens,
        "data.custom_cls.path": "pkg://tagpr_rl.backend.sft_dataset",
        "data.custom_cls.name": "TokenizedDataset",
        "data.num_workers": 0,
        "model.path": str(paths.model),
        "model.external_lib": _HOOKS,
        "model.use_remove_padding": not cpu,
        "model.enable_gradient_checkpointing": not cpu,
        **({"+model.override_config.attn_implementation": "sdpa"} if cpu else {}),
        "engine.strategy": "fsdp2",
        "engine.model_dtype": "fp32",
        **_mixed_precision("engine", recipe),
        "engine.use_torch_compile": not cpu,
        "engine.seed": stage.seed,
        "optim.lr": stage.lr,
        "optim.betas": list(stage.betas),
        "optim.weight_decay": stage.weight_decay,
        "optim.lr_warmup_steps": stage.warmup_steps,
        "optim.lr_scheduler_type": "cosine",
        "optim.clip_grad": stage.max_grad_norm,
        "checkpoint.save_contents": ["model", "optimizer", "extra", "hf_model"],
        "checkpoint.load_contents": ["model", "optimizer", "extra"],
        "trainer.default_local_dir": str(paths.checkpoints),
        "trainer.total_training_steps": stage.steps,
        "trainer.total_epochs": 1_000_000,
        "trainer.save_freq": stage.save_every or -1,
        "trainer.test_freq": -1,
        "trainer.max_ckpt_to_keep": None,
        "trainer.device": recipe.platform.device,
        "trainer.project_name": recipe.log.project,
        "trainer.experiment_name": f"{recipe.name}/{name}",
        "trainer.logger": [],
        "trainer.seed": stage.seed,
        "trainer.nnodes": recipe.platform.nodes,
        "trainer.n_gpus_per_node": recipe.platform.devices_per_node,
        "trainer.resume_mode": "auto",
    }


def as_hydra(overrides: dict[str, Any]) -> list[str]:
    """The overrides in Hydra's `key=value` syntax, strings quoted."""
    return [f"{key}={_hydra_value(value)}" for key, value in overrides.items()]


def _hydra_value(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return "[" + ",".join(_hydra_value(item) for item in value) + "]"
    if isinstance(value, str):
        return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"
    return str(value)
