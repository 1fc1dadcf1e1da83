"""verl's keys of a model and of the engine that trains it, the same for SFT and GRPO."""

from __future__ import annotations

from typing import Any

from tagpr_rl.config import Recipe, TrainingStage
from tagpr_rl.config.placement import repeats
from tagpr_rl.config.platform import attention, checkpointing, packs

HOOKS = "tagpr_rl.backend.trainer.worker_hooks"
_DEEPSPEED = "tagpr_rl.backend.deepspeed.engine"


def _mixed_precision(engine: str, recipe: Recipe) -> dict[str, str]:
    """Compute dtype of an FSDP engine; verl takes bfloat16 if this is not set (transformer_impl.py:397)."""
    compute = "fp32" if recipe.model.dtype == "float32" else "bf16"
    dtypes = {"param_dtype": compute, "reduce_dtype": "fp32", "buffer_dtype": "fp32"}
    return {f"++{engine}.mixed_precision.{key}": value for key, value in dtypes.items()}


def model_keys(model: str, recipe: Recipe) -> dict[str, Any]:
    """Attention, recomputation and LoRA of `model`, a block of verl's `HFModelConfig` (config/model/hf_model.yaml).

    `lora_rank` is what verl's FSDP engine reads; of the block `lora` it reads `merge` alone (transformer_impl.py:996).
    """
    keys: dict[str, Any] = {
        f"+{model}.override_config.attn_implementation": attention(recipe.platform, recipe.training),
        f"{model}.use_remove_padding": packs(recipe.platform, recipe.training),
        f"{model}.enable_gradient_checkpointing": checkpointing(recipe.platform, recipe.training),
    }
    lora = recipe.lora
    if lora is not None:
        named = lora.target_modules
        keys |= {
            f"{model}.lora_rank": lora.rank,
            f"{model}.lora_alpha": lora.alpha,
            f"{model}.target_modules": named if isinstance(named, str) else list(named),
            f"{model}.lora.merge": lora.merge,
        }
    return keys


def engine_keys(engine: str, stage: TrainingStage, recipe: Recipe, *, trains: bool = True) -> dict[str, Any]:
    """Strategy, dtypes, sharding and offload of the engine config at `engine` (trainer/config/engine/fsdp.yaml)."""
    keys: dict[str, Any] = {
        f"{engine}.strategy": stage.strategy,
        f"{engine}.model_dtype": "fp32",
        **_mixed_precision(engine, recipe),
    }
    if recipe.platform.device != "cpu" and repeats(recipe.platform, recipe.placement):
        keys[f"{engine}.full_determinism"] = True  # on the CPU the same updates are equal to the bit without it
    if stage.strategy == "deepspeed":
        keys[f"{engine}._target_"] = f"{_DEEPSPEED}.DeepSpeedEngineConfig"
        keys[f"{engine}.fsdp_size"] = 1  # real weights on every rank (engine.DeepSpeedEngineConfig)
        keys |= {f"+{engine}.{key}": value for key, value in stage.zero().model_dump().items()}
        return keys
    training = recipe.training
    return {
        **keys,
        f"{engine}.fsdp_size": training.fsdp_size or -1,
        f"{engine}.ulysses_sequence_parallel_size": training.sequence_parallel,
        f"{engine}.param_offload": training.offload_params,
        **({f"{engine}.optimizer_offload": training.offload_optimizer} if trains else {}),
    }


def hooks(stage: TrainingStage) -> str | list[str]:
    """Modules that verl imports before it builds an engine."""
    return [HOOKS, _DEEPSPEED] if stage.strategy == "deepspeed" else HOOKS


def load_format(recipe: Recipe) -> str:
    """Where an engine's first weights come from: "dummy" = the actor sends them before the first token.

    With an adapter that is sent alone, the engine reads the base from its folder ("auto"). verl would otherwise gather
    the whole base in fp32 in the host memory of every process before it sends the first tensor (fsdp_utils.py:765).
    """
    return "dummy" if recipe.lora is None or recipe.lora.merge else "auto"
