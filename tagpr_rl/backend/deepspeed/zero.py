"""What the engines share of DeepSpeed ZeRO: its import, its dict of settings, and whole weights out of a sharded model.

Imports DeepSpeed inside functions, because the process that validates a config must not pay for it.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from typing import Any, Protocol

import torch

BUCKET_ELEMENTS = 50_000_000
"""Elements per communication bucket (200 MB in fp32); DeepSpeed's default of 500 M costs 2 GB of device memory."""

NamedTensors = Iterator[tuple[str, torch.Tensor]]


def import_deepspeed(device: str) -> Any:
    """The module `deepspeed`, made ready for `device` ("cpu" or "cuda")."""
    if device == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    import deepspeed

    no_shared_memory_op(deepspeed)
    deepspeed.utils.logger.setLevel("WARNING")
    # DeepSpeed 0.19.8 calls collectives that torch 2.13 renamed, and torch warns at every call.
    warnings.filterwarnings("ignore", message="`torch.distributed", category=FutureWarning)
    return deepspeed


def no_shared_memory_op(deepspeed: Any) -> None:
    """Mark the op `deepspeed_shm_comm` as not available, so that collectives go through torch's gloo.

    If the accelerator is the CPU and there is a compiler, deepspeed/comm/torch.py:47 compiles the op with g++: half a
    minute in every fresh environment, and no setting turns it off. tests/contract/test_deepspeed.py has a test that
    fails once this patch is no longer needed.
    """
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


class ZeroSettings(Protocol):
    """The settings that a recipe's block `deepspeed` and verl's engine config have in common."""

    @property
    def zero_stage(self) -> int: ...

    @property
    def offload_optimizer(self) -> bool: ...

    @property
    def offload_params(self) -> bool: ...


def zero_config(config: ZeroSettings, *, bf16: bool, clip: float | None, hidden: int, device: str) -> dict[str, Any]:
    """The dict for `deepspeed.initialize`.

    Args:
        config: the engine's settings (engine.DeepSpeedEngineConfig or the recipe's block).
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
    host = {"device": "cpu", "pin_memory": device != "cpu"}
    if stage == 3:
        zero["stage3_param_persistence_threshold"] = 10 * hidden
        zero["stage3_prefetch_bucket_size"] = BUCKET_ELEMENTS
    if config.offload_optimizer and trains:
        zero["offload_optimizer"] = host
    if config.offload_params and stage == 3:
        zero["offload_param"] = host
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


def training_weights(model: torch.nn.Module) -> NamedTensors:
    """(name, whole tensor) of every weight, in the dtype of training.

    Under ZeRO 3 a collective call gathers each module's weights: **every rank must drain this generator**. The tensors
    are then copies; otherwise they are the live weights.
    """
    from deepspeed.runtime.zero import GatheredParameters

    for parameters, buffers in _by_module(model):
        sharded = any(_is_sharded(parameter) for _, parameter in parameters)
        with GatheredParameters([parameter for _, parameter in parameters], enabled=sharded):
            for name, parameter in parameters:
                tensor = parameter.detach()
                yield name, tensor.clone() if _is_sharded(parameter) else tensor
        yield from buffers


def master_weights(model: torch.nn.Module) -> NamedTensors:
    """(name, whole fp32 tensor on the CPU) from the optimizer's master weights. Every rank must drain this."""
    from deepspeed.utils import safe_get_full_fp32_param

    for parameters, buffers in _by_module(model):
        for name, parameter in parameters:
            full = safe_get_full_fp32_param(parameter)
            yield name, (parameter if full is None else full).detach().to("cpu", torch.float32, copy=True)
        for name, buffer in buffers:
            yield name, buffer.detach().to("cpu", copy=True)


def _is_sharded(parameter: torch.nn.Parameter) -> bool:
    """Whether ZeRO 3 has partitioned the parameter; its own data is then empty."""
    return hasattr(parameter, "ds_id")


def _by_module(
    model: torch.nn.Module,
) -> Iterator[tuple[list[tuple[str, torch.nn.Parameter]], list[tuple[str, torch.Tensor]]]]:
    """The (parameters, persistent buffers) of each module by full name. A tied tensor comes once, under its first
    name: `embed_tokens.weight`, never again as `lm_head.weight`."""
    seen: set[int] = set()
    for prefix, module in model.named_modules():
        start = f"{prefix}." if prefix else ""
        parameters = []
        for name, parameter in module.named_parameters(recurse=False):
            if id(parameter) not in seen:
                seen.add(id(parameter))
                parameters.append((start + name, parameter))
        skip = module._non_persistent_buffers_set
        buffers = [(start + name, buffer) for name, buffer in module.named_buffers(recurse=False) if name not in skip]
        yield parameters, buffers
