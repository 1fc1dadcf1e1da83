"""DeepSpeed settings: verl's engine config class for the backend, and the dict that DeepSpeed reads.

Imports nothing of DeepSpeed: the driver process builds this class to validate a config.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from verl.workers.config import FSDPEngineConfig
from verl.workers.config.engine import EngineConfig

BUCKET_ELEMENTS = 50_000_000
"""Elements per communication bucket (200 MB in fp32); DeepSpeed's 500 M costs 2 GB of device memory."""


@dataclass
class DeepSpeedEngineConfig(FSDPEngineConfig):
    """verl's FSDP settings plus ZeRO's. What ZeRO cannot honour is refused here.

    A class of its own, because only FSDPEngineConfig.__post_init__ (verl/workers/config/engine.py:304)
    rejects the backend's name.
    """

    strategy: str = "deepspeed"
    fsdp_size: int = 1
    """1 makes verl load real weights on every rank (fsdp_utils.py:64), which DeepSpeed needs."""
    zero_stage: int = 2
    """1 shards optimizer states, 2 gradients as well, 3 weights as well."""
    offload_optimizer: bool = False
    """Optimizer states and the optimizer's step on the host."""
    offload_params: bool = False
    """Weights on the host between uses (ZeRO 3)."""
    universal_checkpoints: bool = True
    """Load a checkpoint of another world size by converting it; False refuses it."""

    def __post_init__(self) -> None:
        EngineConfig.__post_init__(self)
        wrong = []
        if self.strategy != "deepspeed":
            wrong.append(f"strategy={self.strategy}: this class is for 'deepspeed'")
        if self.zero_stage not in (1, 2, 3):
            wrong.append(f"zero_stage={self.zero_stage}: use 1, 2 or 3")
        if self.offload_params and self.zero_stage != 3:
            wrong.append(f"offload_params needs zero_stage=3, not {self.zero_stage}")
        if self.fsdp_size != 1:
            wrong.append(f"fsdp_size={self.fsdp_size}: use 1, so that every rank holds real weights")
        if self.ulysses_sequence_parallel_size != 1:
            wrong.append("ulysses_sequence_parallel_size: sequence parallelism is not supported")
        if self.param_offload or self.optimizer_offload:
            wrong.append("param_offload, optimizer_offload are FSDP's: use offload_params, offload_optimizer")
        if self.qat.enable:
            wrong.append("qat.enable: quantization-aware training is not supported")
        if wrong:
            raise ValueError("deepspeed engine: " + "; ".join(wrong))


def zero_config(
    config: DeepSpeedEngineConfig, *, bf16: bool, clip: float | None, hidden: int, device: str
) -> dict[str, Any]:
    """The dict for `deepspeed.initialize`.

    Args:
        config: the engine's settings.
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
