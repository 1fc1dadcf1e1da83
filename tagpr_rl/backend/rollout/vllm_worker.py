"""What runs inside a vLLM worker: receiving weights over the per-run socket, loading a folder.

Named in vLLM's `worker_extension_cls`; imports verl's own extension and adds to it.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from verl.workers.rollout.vllm_rollout import bucketed_weight_transfer as transfer
from verl.workers.rollout.vllm_rollout.utils import _resolve_vllm_weight_sync_local_rank, vLLMColocateWorkerExtension
from vllm.platforms import current_platform

from tagpr_rl.backend.rollout.weights import TimedWeightReceiver, socket_address
from tagpr_rl.backend.session.worker_settings import from_environment


def keep_cpu_linear_weights() -> None:
    """Let vLLM's CPU linear layers keep their weight, so that weights can be loaded again.

    vllm/model_executor/layers/linear.py:220 calls `dispatch_cpu_unquantized_gemm(layer,
    remove_weight=True)`, which replaces the parameter by an empty one after packing it.
    """
    from vllm.model_executor.layers import utils

    original = utils.dispatch_cpu_unquantized_gemm
    if getattr(original, "tagpr_keeps", False):
        return

    def dispatch(layer: torch.nn.Module, remove_weight: bool) -> None:
        original(layer, remove_weight=False)

    dispatch.tagpr_keeps = True  # type: ignore[attr-defined]
    utils.dispatch_cpu_unquantized_gemm = dispatch


class TagprWorkerExtension(vLLMColocateWorkerExtension):
    """verl's extension + per-run socket + reload from a folder; on CPU, weights that can be replaced."""

    def __new__(cls, **kwargs: Any) -> Any:
        transfer.BucketedWeightReceiver = TimedWeightReceiver
        if current_platform.is_cpu():
            keep_cpu_linear_weights()
            torch.set_num_threads(from_environment().threads)
        return super().__new__(cls, **kwargs)

    def _get_zmq_handle(self) -> str:
        parallel = getattr(getattr(self.model_runner, "vllm_config", None), "parallel_config", None)
        local_rank = _resolve_vllm_weight_sync_local_rank(self.local_rank, parallel)
        return socket_address(int(os.environ.get("VERL_REPLICA_RANK", "0")), local_rank)

    def load_folder(self, folder: str) -> int:
        """Replace the model's weights by those of a Hugging Face folder; returns the tensor count.

        Every worker of a tensor-parallel engine reads the whole folder, and keeps one tensor of it at a time.
        """
        from vllm.model_executor.model_loader.utils import process_weights_after_loading

        places = [(name, file) for file in sorted(Path(folder).glob("*.safetensors")) for name in _names(file)]
        model = self.model_runner.model
        model.load_weights((name, _tensor(file, name)) for name, file in places)
        device = self.device if self.device is not None else torch.device("cpu")
        process_weights_after_loading(model, self.model_runner.vllm_config.model_config, device)
        return len(places)


def _names(file: Path) -> list[str]:
    with safe_open(file, "pt") as handle:
        return list(handle.keys())


def _tensor(file: Path, name: str) -> torch.Tensor:
    """One tensor, in a mapping of its own that goes with it: an open file keeps what was read from it in memory."""
    with safe_open(file, "pt") as handle:
        tensor: torch.Tensor = handle.get_tensor(name)
        return tensor
