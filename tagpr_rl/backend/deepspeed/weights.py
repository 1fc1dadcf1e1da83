"""Whole weights out of a DeepSpeed engine: for vLLM in the dtype of training, for files in fp32."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

Named = Iterator[tuple[str, torch.Tensor]]


def is_sharded(parameter: torch.nn.Parameter) -> bool:
    """True where ZeRO 3 has partitioned the parameter (its own data is then empty)."""
    return hasattr(parameter, "ds_id")


def _by_module(model: torch.nn.Module) -> Iterator[tuple[list[tuple[str, Any]], list[tuple[str, torch.Tensor]]]]:
    """Per module its own (parameters, persistent buffers) by full name. A tied tensor comes once, under its first name:
    `embed_tokens.weight`, never again as `lm_head.weight`."""
    seen: set[int] = set()
    for prefix, module in model.named_modules():
        start = f"{prefix}." if prefix else ""
        parameters = []
        for name, parameter in module.named_parameters(recurse=False):
            if id(parameter) not in seen:
                seen.add(id(parameter))
                parameters.append((start + name, parameter))
        skip = module._non_persistent_buffers_set
        buffers = [(start + n, b) for n, b in module.named_buffers(recurse=False) if n not in skip]
        yield parameters, buffers


def training_weights(model: torch.nn.Module) -> Named:
    """(name, whole tensor) of every weight, as it is used in training.

    Under ZeRO 3 each module's weights are gathered by a collective call: **every rank must drain this**.
    Tensors are then copies; otherwise they are the live weights.
    """
    from deepspeed.runtime.zero import GatheredParameters

    for parameters, buffers in _by_module(model):
        sharded = any(is_sharded(parameter) for _, parameter in parameters)
        with GatheredParameters([parameter for _, parameter in parameters], enabled=sharded):
            for name, parameter in parameters:
                tensor = parameter.detach()
                yield name, tensor.clone() if is_sharded(parameter) else tensor
        yield from buffers


def master_weights(model: torch.nn.Module) -> Named:
    """(name, whole fp32 tensor on the CPU) from the optimizer's master weights. Every rank must drain this."""
    from deepspeed.utils import safe_get_full_fp32_param

    def master(parameter: Any) -> torch.Tensor:
        full = safe_get_full_fp32_param(parameter)
        return (parameter if full is None else full).detach().to("cpu", torch.float32, copy=True)

    yield from _mapped(model, master)


def _mapped(model: torch.nn.Module, get: Callable[[Any], torch.Tensor]) -> Named:
    for parameters, buffers in _by_module(model):
        for name, parameter in parameters:
            yield name, get(parameter)
        for name, buffer in buffers:
            yield name, buffer.detach().to("cpu", copy=True)
