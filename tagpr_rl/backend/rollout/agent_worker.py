"""Patches of verl's agent-loop worker, on every device: what it does for each response is done in Python on the host.

Each says which upstream line makes it necessary; tests/contract/test_patches.py has a test for each that fails once the
patch is no longer needed.
"""

from __future__ import annotations

import functools
import importlib
import types
from collections.abc import Awaitable, Callable
from itertools import chain
from typing import Any

from tagpr_rl.backend.scoring.coalesce import Coalescer


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
