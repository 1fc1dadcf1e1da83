"""What runs inside a vLLM worker: receiving weights over the per-run socket and proving them, loading a folder.

Named in vLLM's `worker_extension_cls`; imports verl's own extension and adds to it.
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from verl.workers.rollout.vllm_rollout import bucketed_weight_transfer as transfer
from verl.workers.rollout.vllm_rollout.utils import (
    VLLM_LORA_INT_ID,
    _resolve_vllm_weight_sync_local_rank,
    is_quantized_model,
    vLLMColocateWorkerExtension,
)
from vllm.platforms import current_platform

from tagpr_rl.backend.rollout.arrival import ADAPTER, Arrival, Weights
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
    """verl's extension + per-run socket, checksums, reload from a folder; on CPU, weights that can be replaced."""

    _arrival: Arrival
    """The last hand-over."""

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

    def update_weights_from_ipc(
        self, peft_config: Any = None, base_sync_done: bool = False, use_shm: bool = False
    ) -> None:
        """Take new weights, or an adapter alone (see verl's vLLMColocateWorkerExtension)."""
        self._arrival = Arrival()
        super().update_weights_from_ipc(peft_config, base_sync_done, use_shm)

    def _update_weights(self, weights: Weights, peft_config: Any, base_sync_done: bool) -> None:
        """Load a bucket of weights; note what the engine must hold afterwards.

        Noted is nothing if a worker holds a shard of each weight, or other numbers than those sent (quantized): then
        the arrival alone is proven.
        """
        own, config = self._arrival.take(weights), self.model_runner.vllm_config
        if config.parallel_config.tensor_parallel_size > 1 or is_quantized_model(config):
            self._arrival.unknown += len(own)
        elif peft_config and base_sync_done:
            rank, alpha = peft_config["r"], peft_config["lora_alpha"]
            scaling = alpha / (math.sqrt(rank) if peft_config.get("use_rslora") else rank)
            self._arrival.expect_adapter(own, self._adapter_modules()[0].lora_a_stacked[0].dtype, scaling)
        else:
            model = self.model_runner.model
            packed = getattr(model, "packed_modules_mapping", {})
            fused = {part: whole for whole, parts in packed.items() for part in parts}
            self._arrival.expect(own, dict(model.named_parameters()), fused)
        super()._update_weights(own, peft_config, base_sync_done)

    def weights_proof(self) -> dict[str, Any]:
        """What the last hand-over brought and what the engine holds now (`arrival.require` judges it)."""
        held: dict[str, Any] = {name: [weight] for name, weight in self.model_runner.model.named_parameters()}
        if ADAPTER in self._arrival.expected:
            slot = self.model_runner.lora_manager._adapter_manager.lora_index_to_id.index(VLLM_LORA_INT_ID)
            modules = self._adapter_modules()
            held[ADAPTER] = [part[slot] for m in modules for part in (*m.lora_a_stacked, *m.lora_b_stacked)]
        return self._arrival.proof(held)

    def _adapter_modules(self) -> list[Any]:
        return list(self.model_runner.lora_manager._adapter_manager.modules.values())

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
