"""verl's engine config class for the backend `deepspeed`.

Imports nothing of DeepSpeed: the driver process builds this class to validate a config.
"""

from __future__ import annotations

from dataclasses import dataclass

from verl.workers.config import FSDPEngineConfig
from verl.workers.config.engine import EngineConfig


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
