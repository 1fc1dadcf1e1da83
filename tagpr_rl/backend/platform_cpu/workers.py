"""What the CPU platform changes inside verl's worker processes: an FSDP2 engine, and patches of verl.

`backend.trainer.worker_hooks` calls `prepare`, and not the plugin, because importing verl's engines takes seconds.
Each patch says why it is there and names the upstream line that makes it necessary; tests/contract/test_patches.py
has a test for each that fails once the patch is no longer needed.
"""

from __future__ import annotations

from typing import Any

import torch
from verl.workers.engine import EngineRegistry
from verl.workers.engine.fsdp import transformer_impl

from tagpr_rl.backend.forward.loss_tokens import LossTokenEngine
from tagpr_rl.backend.session.worker_settings import from_environment


def prepare() -> None:
    """Make this process a worker of the CPU platform."""
    gloo_process_group()
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
