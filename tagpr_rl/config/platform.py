"""The blocks `platform`, `training` and `budget`: the machine, and what a training process does with its device."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from tagpr_rl.config.base import Closed, Count, Fraction, Machines


class PlatformBlock(Closed):
    """The device profile. The rest of the recipe does not depend on it."""

    device: Literal["cpu", "cuda"] = "cpu"
    """What the models run on."""
    nodes: Machines = 1
    """Machines that train the policy."""
    devices_per_node: Machines = 1
    """Devices of each machine that train the policy; on the CPU a device is one worker process."""
    threads: Count = 2
    """CPU threads of each worker process."""
    deterministic: bool | None = None
    """Repeat to the bit: a second run, or one that was interrupted and resumed, ends with the same weights, on the same
    kind of machine with the same `threads` and devices. null = on the CPU with placement.rollout: colocated. On GPUs
    it asks torch and vLLM for deterministic kernels, which are slower, and is not tested."""
    ray_address: str | None = None
    """Address of an existing Ray cluster; null = a private local one."""
    vllm_memory_mb: Count = 512
    """KV cache of the vLLM engine on the CPU, in MiB."""
    vllm_gpu_utilization: Fraction = 0.5
    """Share of a GPU's memory that a vLLM engine takes."""
    vllm_model_runner: Literal["auto", "v1", "v2"] = "auto"
    """vLLM's model runner; auto = what vLLM chooses for the model. vLLM 0.24.0 takes v2 for Qwen3 on a GPU; v2 needs
    Triton, so a CPU has v1."""
    weight_bucket_mb: Count = 64
    """Buffer of the weight transfer to vLLM, in MiB; must hold the largest tensor."""
    zmq_timeout_s: Count = 120
    """Seconds after which a weight transfer whose other end is silent fails."""

    @property
    def devices(self) -> int:
        """Devices that train the policy, on all machines; a process each."""
        return self.nodes * self.devices_per_node


class TrainingBlock(Closed):
    """How a training process uses its device."""

    attention: Literal["auto", "sdpa", "packed_sdpa", "eager", "flash_attention_2"] = "auto"
    """auto: sdpa on the CPU, packed_sdpa on CUDA. packed_sdpa and flash_attention_2 (which needs the flash-attn
    package) pack sequences without padding; the others pad. eager keeps all `[T, T]` weights, and on a CPU it is the
    fastest below about 400 tokens."""
    fsdp_size: Count | None = None
    """Devices that share one copy of the weights; null = all. Smaller = hybrid sharding."""
    sequence_parallel: Count = 1
    """Devices that share one sequence (Ulysses); needs flash_attention_2."""
    gradient_checkpointing: bool | None = None
    """Recompute activations in the backward pass instead of keeping them; null = on CUDA only."""
    offload_params: bool = False
    """Keep weights and gradients in host memory while the other model works."""
    offload_optimizer: bool = False
    """Keep optimizer states in host memory between updates."""
    max_tokens_per_device: Count | None = None
    """Micro-batches by tokens instead of `micro_batch_size` sequences; at least the longest sequence."""


class BudgetBlock(Closed):
    """What `tagpr plan` compares the run with. It changes nothing in a run."""

    device: str | None = None
    """Name of the GPU in the table of `tagpr plan`, for example H100-80GB; null = memory is printed and not compared,
    and hours are not estimated."""
    host_memory_gib: Annotated[float, Field(gt=0.0)] | None = None
    """Memory of a node in GiB, compared with what a stage takes of the host (loading, offloaded states, a reference,
    sleeping engines, saving, a PRMU on the CPU); null = not compared. cluster.memory_gb is compared if it is given."""


def checkpointing(platform: PlatformBlock, training: TrainingBlock) -> bool:
    """Whether activations are recomputed."""
    chosen = training.gradient_checkpointing
    return platform.device != "cpu" if chosen is None else chosen


def attention(platform: PlatformBlock, training: TrainingBlock) -> str:
    """The attention implementation that `auto` stands for, or the one named."""
    if training.attention != "auto":
        return training.attention
    return "sdpa" if platform.device == "cpu" else "packed_sdpa"


def packs(platform: PlatformBlock, training: TrainingBlock) -> bool:
    """Whether a micro-batch is one row of sequences without padding."""
    return attention(platform, training) in ("packed_sdpa", "flash_attention_2")
