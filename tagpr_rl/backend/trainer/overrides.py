"""Recipe -> verl overrides. Every verl key of the project stands in this file, in `engine_keys` or `hook_keys`.

None of these files imports verl, so that `tagpr plan` can print the overrides on any machine.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tagpr_rl.backend.trainer.engine_keys import HOOKS, engine_keys, hooks, load_format, model_keys
from tagpr_rl.backend.trainer.hook_keys import reward_keys, stop_keys, validation_keys
from tagpr_rl.config import GrpoStage, Recipe, SftStage, stage_limits
from tagpr_rl.config.placement import repeats

_AGENT_LOOPS = "tagpr_rl.backend.rollout.agent_loop.TagprAgentLoopManager"
_BUFFERS = "pkg://tagpr_rl.backend.trainer.replay_buffers"
_WORKER_EXTENSION = "tagpr_rl.backend.rollout.vllm_worker.TagprWorkerExtension"
_SCHEDULER = "tagpr_rl.backend.rollout.finished.scheduler"


@dataclass(frozen=True, slots=True)
class StagePaths:
    """Files and folders of one training stage, absolute."""

    model: Path
    train: Path
    checkpoints: Path
    rollouts: Path
    saved: Path | None = None
    """A grpo stage's responses to train on instead of generating (`rollouts_from`)."""
    validation: Path | None = None
    """Prompts of the questions that the stage is validated on."""


def world_size(recipe: Recipe) -> int:
    """Training processes: nodes x devices per node."""
    return recipe.platform.devices


def grpo_overrides(recipe: Recipe, name: str, paths: StagePaths) -> dict[str, Any]:
    """verl's `ppo_trainer` keys for the GRPO stage `name`; everything else keeps verl's default."""
    stage = recipe.stages[name]
    assert isinstance(stage, GrpoStage)
    return {
        **_data_keys(recipe, stage, paths),
        **_actor_keys(recipe, stage, paths),
        **_rollout_keys(recipe, stage),
        **reward_keys(recipe, stage, paths.saved),
        **_trainer_keys(recipe, name, stage, paths),
        **stop_keys(stage),
    }


def _data_keys(recipe: Recipe, stage: GrpoStage, paths: StagePaths) -> dict[str, Any]:
    prompt_tokens, response_tokens = stage_limits(recipe, stage)
    return {
        "data.train_files": str(paths.train),
        **validation_keys(stage, paths.train, paths.validation),
        "data.train_batch_size": stage.prompts_per_step,
        "data.max_prompt_length": prompt_tokens,
        "data.max_response_length": response_tokens,
        "data.filter_overlong_prompts": False,  # prompts are built to the limit
        "data.return_raw_chat": True,
        "data.seed": stage.seed,
        "data.shuffle": stage.rollouts_from is None,  # saved rows stand in the order of their steps
        "data.dataloader_num_workers": 0,
        **({"+data.curriculum.floor": stage.curriculum.floor} if stage.curriculum is not None else {}),
    }


def _actor_keys(recipe: Recipe, stage: GrpoStage, paths: StagePaths) -> dict[str, Any]:
    cpu = recipe.platform.device == "cpu"
    per_step, tokens = stage.prompts_per_step, recipe.training.max_tokens_per_device
    model, actor = "actor_rollout_ref.model", "actor_rollout_ref.actor"
    scale = stage_limits(recipe, stage)[1] if stage.loss_agg == "seq-mean-token-sum-norm" else None
    return {
        f"{model}.path": str(paths.model),
        f"{model}.external_lib": hooks(stage),
        **model_keys(model, recipe),
        f"{actor}.strategy": stage.strategy,
        **engine_keys(f"{actor}.fsdp_config", stage, recipe),
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
        f"{actor}.use_dynamic_bsz": tokens is not None,  # rollout and reference follow the actor
        **({f"{actor}.ppo_max_token_len_per_gpu": tokens} if tokens is not None else {}),
        f"{actor}.clip_ratio_low": stage.clip_low,
        f"{actor}.clip_ratio_high": stage.clip_high,
        f"{actor}.loss_agg_mode": stage.loss_agg,
        f"{actor}.loss_scale_factor": scale,
        f"{actor}.policy_loss.loss_mode": "vanilla" if stage.loss == "clip" else stage.loss,
        f"{actor}.calculate_entropy": True,
        f"{actor}.use_kl_loss": stage.kl_coef > 0,
        f"{actor}.kl_loss_coef": stage.kl_coef,
        f"{actor}.data_loader_seed": stage.seed,
        f"{actor}.checkpoint.save_contents": ["model", "optimizer", "extra", "hf_model"],
        f"{actor}.checkpoint.load_contents": ["model", "optimizer", "extra"],
        "actor_rollout_ref.ref.strategy": stage.strategy,
        **engine_keys("actor_rollout_ref.ref.fsdp_config", stage, recipe, trains=False),
        "actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu": stage.micro_batch_size,
    }


def _rollout_keys(recipe: Recipe, stage: GrpoStage) -> dict[str, Any]:
    platform = recipe.platform
    cpu = platform.device == "cpu"
    rollout = "actor_rollout_ref.rollout"
    length = sum(stage_limits(recipe, stage))
    keys: dict[str, Any] = {
        f"{rollout}.name": "vllm",
        f"{rollout}.n": stage.group_size,
        f"{rollout}.temperature": stage.temperature,
        f"{rollout}.seed": stage.seed,
        f"{rollout}.dtype": recipe.model.dtype,
        f"{rollout}.tensor_model_parallel_size": recipe.placement.tensor_parallel,
        f"{rollout}.max_model_len": length,
        f"{rollout}.max_num_batched_tokens": max(8192, length),
        f"{rollout}.max_num_seqs": 256,  # a larger step comes in waves: PRMU scores one during the next
        f"{rollout}.gpu_memory_utilization": platform.vllm_gpu_utilization,
        f"{rollout}.load_format": load_format(recipe),
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
    if recipe.placement.rollout == "separate":
        keys |= _separate_keys(recipe, stage)
    else:  # a separate engine is interrupted for new weights, and goes on from the tokens that it had sent
        keys[f"+{rollout}.engine_kwargs.vllm.scheduler_cls"] = _SCHEDULER
    if repeats(platform, recipe.placement):
        # A prompt that is split over two passes loses its seed: gpu_model_runner.py:3750 in 0.27.1 cannot turn a CPU
        # generator back. The budget above holds the longest sequence.
        keys[f"{rollout}.enable_chunked_prefill"] = False
    if cpu:
        keys[f"+{rollout}.engine_kwargs.vllm.kv_cache_memory_bytes"] = platform.vllm_memory_mb << 20
        # Engine and worker in one process: two would spin on each other's core.
        keys[f"+{rollout}.engine_kwargs.vllm.distributed_executor_backend"] = "uni"
    return keys


def _separate_keys(recipe: Recipe, stage: GrpoStage) -> dict[str, Any]:
    """Rollout on devices of its own (verl 0.9.1 trainer_separate_async.py:48-80 checks these keys).

    `hybrid_engine` false keeps engines off the policy's devices. Weights are sent once a step: verl requires
    train_batch_size = parameter_sync_step x ppo_mini_batch_size, so each update is one of verl's triggers.
    """
    rollout, own = "actor_rollout_ref.rollout", recipe.placement
    cpu = recipe.platform.device == "cpu"
    return {
        "actor_rollout_ref.hybrid_engine": False,
        f"{rollout}.nnodes": own.rollout_nodes,
        f"{rollout}.n_gpus_per_node": own.rollout_devices_per_node,
        f"{rollout}.checkpoint_engine.backend": "tagpr_tcp" if cpu else "nccl",
        # Also the only module that a standalone rollout's weight receiver imports (checkpoint_engine/base.py:336).
        f"{rollout}.checkpoint_engine.custom_backend_module": HOOKS,
        "trainer.v1.separate_async.parameter_sync_step": stage.mini_batches,
        "trainer.v1.separate_async.num_warmup_batches": own.warmup_batches,
    }


def _trainer_keys(recipe: Recipe, name: str, stage: GrpoStage, paths: StagePaths) -> dict[str, Any]:
    platform, correction = recipe.platform, stage.correction(recipe.model.dtype)
    cpu = platform.device == "cpu"
    keys: dict[str, Any] = {
        "algorithm.adv_estimator": "grpo",
        "algorithm.norm_adv_by_std_in_grpo": stage.advantage.normalise
        != "none",  # hooks.rewards replaces the advantages all the same
        "algorithm.use_kl_in_reward": False,
        "algorithm.rollout_correction.bypass_mode": stage.reuse_rollout_logprobs,
        "algorithm.rollout_correction.rollout_is": correction.level if correction else None,
        **({"algorithm.rollout_correction.rollout_is_threshold": correction.threshold} if correction else {}),
        "trainer.device": platform.device,
        "trainer.use_v1": True,
        "trainer.v1.trainer_mode": "separate_async" if recipe.placement.rollout == "separate" else "sync",
        "trainer.nnodes": platform.nodes,
        "trainer.n_gpus_per_node": platform.devices_per_node,
        "trainer.total_training_steps": stage.steps,
        "trainer.total_epochs": 1_000_000,  # steps decide
        "trainer.save_freq": stage.save_every or stage.steps,
        "trainer.test_freq": -1 if stage.validation is None else stage.validation.every,
        "trainer.val_before_train": False,
        "trainer.max_actor_ckpt_to_keep": None,  # tagpr_rl.run.checkpoints keeps and drops
        "trainer.default_local_dir": str(paths.checkpoints),
        "trainer.rollout_data_dir": str(paths.rollouts),
        "trainer.project_name": recipe.log.project,
        "trainer.experiment_name": f"{recipe.name}/{name}",
        "trainer.logger": [],  # backend.tracking logs instead
        "trainer.resume_mode": "auto",
        "transfer_queue.backend.SimpleStorage.num_data_storage_units": platform.nodes if cpu else 8,
        "transfer_queue.backend.SimpleStorage.total_storage_size": 100_000,
    }
    buffer = "FastReplayBuffer" if recipe.placement.rollout == "colocated" else "AsyncReplayBuffer"
    sampler = "trainer.v1.sampler"
    if stage.advantage.zero_variance == "resample":
        buffer = "ResamplingReplayBuffer"
        limit = math.ceil(stage.advantage.resample_limit * stage.prompts_per_step)
        keys |= {
            "algorithm.filter_groups.enable": True,
            "algorithm.filter_groups.metric": "reward",
            f"+{sampler}.sampler_kwargs.train_batch_size": stage.prompts_per_step,
            f"+{sampler}.sampler_kwargs.limit": limit,
        }
    return keys | {
        f"{sampler}.custom_sampler.path": _BUFFERS,
        f"{sampler}.custom_sampler.name": buffer,
        f"+{sampler}.sampler_kwargs.group_size": stage.group_size,
    }


def _sft_tokens(recipe: Recipe) -> int | None:
    """Tokens of a micro-batch of SFT; None = a process takes its whole share at once (CPU)."""
    tokens = recipe.training.max_tokens_per_device
    if tokens is None and recipe.platform.device != "cpu":
        return max(8192, recipe.data.prompt.max_tokens + recipe.data.prompt.max_response_tokens)
    return tokens


def sft_overrides(recipe: Recipe, name: str, paths: StagePaths, steps: int | None = None) -> dict[str, Any]:
    """verl's `sft_trainer_engine` keys for the SFT stage `name`; `steps` if the data allows fewer than the recipe."""
    stage = recipe.stages[name]
    assert isinstance(stage, SftStage)
    cpu, tokens = recipe.platform.device == "cpu", _sft_tokens(recipe)
    return {
        "data.train_files": str(paths.train),
        "data.val_files": None,
        "data.train_batch_size": stage.batch_size,
        "data.micro_batch_size_per_gpu": stage.batch_size // world_size(recipe),
        "data.use_dynamic_bsz": tokens is not None,
        **({"data.max_token_len_per_gpu": tokens} if tokens is not None else {}),
        "data.max_length": recipe.data.prompt.max_tokens + recipe.data.prompt.max_response_tokens,
        "data.custom_cls.path": f"pkg://{HOOKS}",
        "data.custom_cls.name": "TokenizedDataset",
        "data.num_workers": 0,
        "model.path": str(paths.model),
        "model.external_lib": hooks(stage),
        **model_keys("model", recipe),
        **engine_keys("engine", stage, recipe),
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
        "trainer.total_training_steps": steps or stage.steps,
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
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{_hydra_value(item)}" for key, item in value.items()) + "}"
    if isinstance(value, str):
        return _hydra_text(value)
    return str(value)


def _hydra_text(text: str) -> str:
    r"""Text in single quotes, such that Hydra and OmegaConf read the same text again.

    OmegaConf takes `${` for a reference unless a backslash stands before it, Hydra a quote for the end. Backslashes
    count as such only before one of the two (or at the end), and are doubled there.
    """
    text = re.sub(r"(\\*)\$\{", lambda match: match[1] * 2 + r"\${", text)
    text = re.sub(r"(\\*)('|\Z)", lambda match: match[1] * 2 + match[2].replace("'", r"\'"), text)
    return f"'{text}'"


def compose(config_name: str, overrides: dict[str, Any]) -> Any:
    """verl's Hydra config `config_name` (ppo_trainer, sft_trainer_engine) with `overrides`; unknown keys raise."""
    from hydra import compose as hydra_compose
    from hydra import initialize_config_module
    from hydra.core.global_hydra import GlobalHydra

    GlobalHydra.instance().clear()
    with initialize_config_module(config_module="verl.trainer.config", version_base=None):
        return hydra_compose(config_name=config_name, overrides=as_hydra(overrides))
