"""What the CPU platform changes inside verl's worker processes: an FSDP2 engine, and patches of verl.

`backend.trainer.worker_hooks` calls `prepare`, and not the plugin, because importing verl's engines takes seconds.
Each patch says why it is there and names the upstream line that makes it necessary; tests/contract/test_patches.py
has a test for each that fails once the patch is no longer needed.
"""

from __future__ import annotations

import functools
import importlib
import types
from collections.abc import Awaitable, Callable
from itertools import chain
from typing import Any

import torch
from verl.workers.engine import EngineRegistry
from verl.workers.engine.fsdp import transformer_impl

from tagpr_rl.backend.forward.loss_tokens import LossTokenEngine
from tagpr_rl.backend.scoring.coalesce import Coalescer
from tagpr_rl.backend.session.worker_settings import from_environment


def prepare() -> None:
    """Make this process a worker of the CPU platform."""
    gloo_process_group()
    direct_agent_loops()
    coalesced_puts()
    torch.set_num_threads(from_environment().threads)


@EngineRegistry.register(model_type="language_model", backend="fsdp2", device="cpu")
class CpuFsdp2Engine(LossTokenEngine):
    """FSDP2 over gloo. Upstream registers the engine for cuda and npu only (transformer_impl.py:1143)."""

    def _build_fsdp_module(self, module: torch.nn.Module) -> Any:
        """Build without the pinned-memory offload that upstream forces on a forward-only model (:459)."""
        offload = transformer_impl.CPUOffloadPolicy
        transformer_impl.CPUOffloadPolicy = lambda pin_memory=True: None
        try:
            built = super()._build_fsdp_module(module)
        finally:
            transformer_impl.CPUOffloadPolicy = offload
        self._uses_fsdp2_cpu_offload_policy = False
        return built


def gloo_process_group() -> None:
    """Make verl's training workers ask torch for the backend "gloo".

    verl/utils/distributed.py:89 builds "cpu:gloo,cpu:gloo", which torch refuses as a duplicate.
    """
    from verl.utils import distributed
    from verl.workers import engine_workers

    original = distributed.initialize_global_process_group_ray
    if getattr(original, "tagpr_gloo", False):
        return

    def initialize(timeout_second: int | None = None, backend: str | None = None) -> None:
        original(timeout_second=timeout_second, backend=backend or "gloo")

    initialize.tagpr_gloo = True  # type: ignore[attr-defined]
    distributed.initialize_global_process_group_ray = initialize
    engine_workers.initialize_global_process_group_ray = initialize


def direct_agent_loops() -> None:
    """Build each response's agent loop by calling its class instead of Hydra.

    verl/experimental/agent_loop/agent_loop.py:683 runs `hydra.utils.instantiate` once per response, which took half
    of the agent worker's time; the config is a bare class name.
    """
    from verl.experimental.agent_loop import agent_loop

    if isinstance(agent_loop.hydra, types.ModuleType):
        utils = types.SimpleNamespace(instantiate=instantiate_agent_loop)
        agent_loop.hydra = types.SimpleNamespace(utils=utils)


def instantiate_agent_loop(config: Any, **arguments: Any) -> Any:
    """What `hydra.utils.instantiate(config, **arguments)` builds; any config but a bare `_target_` goes to Hydra."""
    if list(config) != ["_target_"]:
        import hydra

        return hydra.utils.instantiate(config, **arguments)
    return _class_named(config["_target_"])(**arguments)


@functools.cache
def _class_named(path: str) -> Any:
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


def coalesced_puts() -> None:
    """Put responses that end close together into TransferQueue with one call.

    verl/trainer/ppo/v1/agent_loop_tq.py:222 makes a TensorDict and a put for every response, which took half of the
    agent worker's time; TransferQueue takes any number of keys at once.
    """
    from verl.trainer.ppo.v1 import agent_loop_tq

    if isinstance(agent_loop_tq.tq, types.ModuleType):
        queue, make = agent_loop_tq.tq, agent_loop_tq.list_of_dict_to_tensordict
        agent_loop_tq.list_of_dict_to_tensordict = list  # the merged call makes the TensorDict
        agent_loop_tq.tq = types.SimpleNamespace(
            init=queue.init,
            async_kv_put=queue.async_kv_put,
            async_kv_batch_put=coalescing(queue.async_kv_batch_put, make),
        )


def coalescing(put: Callable[..., Awaitable[Any]], make: Callable[[list[dict[str, Any]]], Any]) -> Callable[..., Any]:
    """An `async_kv_batch_put` that merges concurrent calls with the same partition and the same names of fields.

    Args:
        put: TransferQueue's `async_kv_batch_put`.
        make: verl's `list_of_dict_to_tensordict`.
    """
    coalescers: dict[tuple[Any, ...], Coalescer[Any, Any]] = {}

    async def batch_put(*, keys: list[str], fields: list[dict[str, Any]], tags: list[Any], partition_id: str) -> Any:
        kind = (partition_id, *fields[0])
        if kind not in coalescers:

            async def call(items: list[tuple[list[str], list[dict[str, Any]], list[Any]]]) -> list[Any]:
                all_keys, all_fields, all_tags = (list(chain.from_iterable(part)) for part in zip(*items, strict=True))
                done = await put(keys=all_keys, fields=make(all_fields), tags=all_tags, partition_id=partition_id)
                return [done] * len(items)

            coalescers[kind] = Coalescer(call)
        return await coalescers[kind].submit((keys, fields, tags))

    return batch_put
