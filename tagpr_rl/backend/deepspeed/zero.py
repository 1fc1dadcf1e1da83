"""The dict of settings that DeepSpeed reads. Imports nothing heavy."""

from __future__ import annotations

from typing import Any, Protocol

BUCKET_ELEMENTS = 50_000_000
"""Elements per communication bucket (200 MB in fp32); DeepSpeed's 500 M costs 2 GB of device memory."""


class ZeroSettings(Protocol):
    """What the dict is made of."""

    zero_stage: int
    offload_optimizer: bool
    offload_params: bool


def zero_config(config: ZeroSettings, *, bf16: bool, clip: float | None, hidden: int, device: str) -> dict[str, Any]:
    """The dict for `deepspeed.initialize`.

    Args:
        config: the engine's settings (settings.DeepSpeedEngineConfig or the recipe's block).
        bf16: compute in bfloat16 with fp32 master weights; otherwise all in fp32.
        clip: largest gradient norm; None for a model that is not trained.
        hidden: the model's hidden size; ZeRO 3 keeps vectors whole and shards matrices.
        device: "cpu" or "cuda".
    """
    trains = clip is not None
    stage = config.zero_stage if trains or config.zero_stage == 3 else 0  # without an optimizer 1 and 2 shard nothing
    zero: dict[str, Any] = {
        "stage": stage,
        "contiguous_gradients": True,
        "overlap_comm": device != "cpu",
        "reduce_bucket_size": BUCKET_ELEMENTS,
        "allgather_bucket_size": BUCKET_ELEMENTS,
    }
    pin = device != "cpu"
    if stage == 3:
        zero["stage3_param_persistence_threshold"] = 10 * hidden
        zero["stage3_prefetch_bucket_size"] = BUCKET_ELEMENTS
    if config.offload_optimizer and trains:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": pin}
    if config.offload_params and stage == 3:
        zero["offload_param"] = {"device": "cpu", "pin_memory": pin}
    settings: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,
        # verl scales the loss of each micro-batch itself; the engine marks the last one as the boundary.
        "gradient_accumulation_steps": 1,
        "zero_optimization": zero,
        # torch's AdamW serves on the host as well, and needs no compiler.
        "zero_force_ds_cpu_optimizer": False,
    }
    if trains:
        settings["gradient_clipping"] = clip
    if bf16:
        settings["bf16"] = {"enabled": True, "check_grad_overflow": True}  # skip a step whose norm is not finite
        settings["data_types"] = {"grad_accum_dtype": "fp32"}
        settings["communication_data_type"] = "fp32"
    return settings
