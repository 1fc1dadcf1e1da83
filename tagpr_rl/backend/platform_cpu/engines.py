"""verl's FSDP2 engine registered for the CPU, and the platform's patches of verl's workers.

Imported in worker processes through `actor_rollout_ref.model.external_lib`, not with the plugin,
because verl's engine modules take seconds to import.
"""

from __future__ import annotations

from typing import Any

import torch
from verl.workers.engine import EngineRegistry
from verl.workers.engine.fsdp import transformer_impl
from verl.workers.engine.fsdp.transformer_impl import FSDPEngineWithLMHead

from tagpr_rl.backend.platform_cpu import patches
from tagpr_rl.backend.session.worker_settings import from_environment


@EngineRegistry.register(model_type="language_model", backend="fsdp2", device="cpu")
class CpuFsdp2Engine(FSDPEngineWithLMHead):
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


patches.gloo_process_group()
patches.fused_logprobs()
patches.direct_agent_loops()
patches.coalesced_puts()
torch.set_num_threads(from_environment().threads)
