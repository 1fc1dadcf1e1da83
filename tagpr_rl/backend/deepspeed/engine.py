"""verl's engine `deepspeed`: forward, loss and data handling of the FSDP engine, sharding and updates by ZeRO.

Named in `model.external_lib`, which verl imports before it builds an engine (verl/workers/config/model.py:149).
DeepSpeed itself is imported when an engine is built: the driver process builds `DeepSpeedEngineConfig` alone, to
validate a config.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from verl.utils.device import get_device_name
from verl.utils.model import convert_weight_keys
from verl.utils.torch_dtypes import PrecisionType
from verl.workers.config import FSDPEngineConfig
from verl.workers.config.engine import EngineConfig
from verl.workers.engine import EngineRegistry
from verl.workers.engine.fsdp.utils import unfuse_moe_params

from tagpr_rl.backend.deepspeed.checkpoint import DeepSpeedCheckpointManager
from tagpr_rl.backend.deepspeed.zero import import_deepspeed, training_weights, zero_config
from tagpr_rl.backend.forward.checksum import with_checksum
from tagpr_rl.backend.forward.loss_tokens import LossTokenEngine


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


class _Loss:
    """A loss whose `backward` goes through DeepSpeed."""

    def __init__(self, engine: Any, loss: torch.Tensor) -> None:
        self._engine, self._loss = engine, loss

    def backward(self) -> None:
        self._engine.backward(self._loss)


class _EngineBackward:
    """Stands where verl keeps its fp16 gradient scaler (transformer_impl.py:727: `scaler.scale(loss).backward()`),
    so that the loop over micro-batches stays verl's. It scales nothing."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine

    def scale(self, loss: torch.Tensor) -> _Loss:
        return _Loss(self._engine, loss)


@EngineRegistry.register(model_type="language_model", backend="deepspeed", device=["cuda", "cpu"])
class DeepSpeedEngine(LossTokenEngine):
    """ZeRO 1, 2 or 3. `self.module` is DeepSpeed's engine; `self.optimizer` is ZeRO's optimizer around verl's."""

    engine_config: DeepSpeedEngineConfig
    module: Any
    optimizer: Any

    def _build_fsdp_module(self, module: torch.nn.Module) -> torch.nn.Module:
        """Set the compute dtype; under ZeRO 3 partition the weights, one after the other."""
        if self._is_lora:
            raise ValueError("LoRA is not supported with strategy 'deepspeed'; use strategy 'fsdp2'")
        precision = self.engine_config.mixed_precision or {}
        # Outside the model (log-probabilities, loss) verl's autocast applies; inside, DeepSpeed's own dtype does.
        self._autocast_dtype = PrecisionType.to_dtype(precision.get("param_dtype", "bf16"))
        if self._autocast_dtype not in (torch.float32, torch.bfloat16):
            raise ValueError(f"strategy 'deepspeed' computes in fp32 or bf16, not {self._autocast_dtype}")
        if self.engine_config.zero_stage == 3:
            from deepspeed.runtime.zero import Init

            module = module.to(self._autocast_dtype)
            Init(module=module, config_dict_or_path=self._settings(), dtype=self._autocast_dtype)
        return module

    def _settings(self) -> dict[str, Any]:
        trains = not self.engine_config.forward_only
        return zero_config(
            self.engine_config,
            bf16=self._autocast_dtype == torch.bfloat16,
            clip=float(self.optimizer_config.clip_grad) if trains else None,
            hidden=self.model_config.hf_config.hidden_size,
            device=get_device_name(),
        )

    def _build_model_optimizer(self) -> None:
        """verl's model, optimizer and LR schedule, then DeepSpeed around the first two.

        The schedule stays on the inner optimizer, whose parameter groups ZeRO steps with, and is verl's to step.
        """
        deepspeed = import_deepspeed(get_device_name())
        deepspeed.init_distributed(dist_init_required=False, verbose=False)
        super()._build_model_optimizer()
        self.module, wrapped, _, _ = deepspeed.initialize(
            model=self.module, optimizer=self.optimizer, config=self._settings()
        )
        if not self.engine_config.forward_only:
            self.optimizer = wrapped
            self.scaler = _EngineBackward(self.module)

    def initialize(self) -> None:
        """Build everything on its device; nothing is moved between phases (ZeRO's offload settings do that)."""
        self._build_model_optimizer()
        self.checkpoint_manager = DeepSpeedCheckpointManager(
            model=self.module,
            optimizer=self.optimizer,
            lr_scheduler=self.lr_scheduler,
            processing_class=self.model_config.get_processor(),
            checkpoint_config=self.checkpoint_config,
            convert_other_world_size=self.engine_config.universal_checkpoints,
        )

    @contextmanager
    def _gradient_sync_context(self, *, is_last_micro_batch: bool) -> Iterator[None]:
        """Tell DeepSpeed which backward pass completes the update."""
        self.module.set_gradient_accumulation_boundary(is_last_micro_batch)
        yield

    def optimizer_step(self) -> float:
        """Clip and update; returns the norm before clipping. An update with a norm that is not finite is skipped."""
        self.module.step()
        norm = float(self.module.get_global_grad_norm())
        if not math.isfinite(norm):
            print(f"WARN: grad_norm is not finite: {norm}; the update was skipped")
        return norm

    def to(self, device: str, model: bool = True, optimizer: bool = True, grad: bool = True) -> None:
        """Nothing: DeepSpeed places its state itself."""

    def save_checkpoint(
        self,
        local_path: str,
        hdfs_path: str | None = None,
        global_step: int = 0,
        max_ckpt_to_keep: int | None = None,
        **kwargs: Any,
    ) -> None:
        """Write a checkpoint (see checkpoint.DeepSpeedCheckpointManager). Every rank calls this."""
        self.checkpoint_manager.save_checkpoint(
            local_path=local_path, hdfs_path=hdfs_path, global_step=global_step, max_ckpt_to_keep=max_ckpt_to_keep
        )

    def load_checkpoint(
        self, local_path: str, hdfs_path: str | None = None, del_local_after_load: bool = True, **kwargs: Any
    ) -> None:
        """Load a checkpoint of this or another world size. Every rank calls this."""
        self.checkpoint_manager.load_checkpoint(local_path=local_path, hdfs_path=hdfs_path)

    def get_per_tensor_param(self, layered_summon: bool = False, base_sync_done: bool = False, **kwargs: Any) -> Any:
        """(generator of (name, whole tensor) and the checksum, None): a tied tensor once; every rank must drain it."""
        model = self.module.module
        # One name at a time: the conversion takes a dict, and all weights at once would not fit under ZeRO 3.
        pairs = training_weights(model)
        renamed = (item for pair in pairs for item in convert_weight_keys(dict([pair]), model).items())
        weights = unfuse_moe_params(renamed, self.model_config.hf_config.model_type)
        return with_checksum(weights), None

    def get_per_tensor_param_shard(self, **kwargs: Any) -> Any:
        """Refused: the weights are not DTensors."""
        raise NotImplementedError("the delta_sharded checkpoint engine needs strategy 'fsdp2'")
