"""The blocks `platform`, `training` and `budget`: the machine, and what a training process does with its device."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from tagpr_rl.config.base import Closed, Count, Fraction, NonNegative

Positive = Annotated[float, Field(gt=0.0)]


class CpuCuts(Closed):
    """Step-time cuts of the CPU platform. None applies on CUDA; none changes a sampled token."""

    fast_logprobs: bool = True
    """Fused cross-entropy instead of verl's Python loop over tokens (verl/utils/torch_functional.py)."""
    single_process_vllm: bool = True
    """vLLM engine and worker in one process instead of two that spin on each other."""
    final_output_only: bool = True
    """Ask vLLM for the finished output once, without detokenising every token."""
    replay_poll_seconds: Annotated[float, Field(gt=0.0)] = 0.05
    """verl polls its replay buffer every 2 s and has no key for it."""
    direct_agent_loops: bool = True
    """Build each response's agent loop without Hydra."""
    coalesced_puts: bool = True
    """Put responses that end close together into TransferQueue with one call."""
    disable_compile: bool = True
    """No torch.compile in rollout workers: 12 s of start-up saved."""


class PlatformBlock(Closed):
    """The device profile. The rest of the recipe does not depend on it."""

    device: Literal["cpu", "cuda"] = "cpu"
    nodes: Count = 1
    devices_per_node: Count = 1
    """Logical devices; on CPU one device is one worker process."""
    threads: Count = 2
    """CPU threads of each worker process."""
    ray_address: str | None = None
    """An existing Ray cluster; null = a private local one."""
    object_store_mb: Count = 400
    vllm_memory_mb: Count = 512
    """KV cache of the vLLM engine on CPU, in MiB."""
    vllm_gpu_utilization: Fraction = 0.5
    weight_bucket_mb: Count = 64
    """Buffer for weight transfer to vLLM; must hold the largest tensor."""
    zmq_timeout_s: Count = 120
    cuts: CpuCuts = CpuCuts()


class TrainingBlock(Closed):
    """How a training process uses its device."""

    attention: Literal["auto", "sdpa", "flash_attention_2"] = "auto"
    """auto: sdpa on the CPU, flash_attention_2 on CUDA. flash_attention_2 needs the flash-attn package and packs
    sequences without padding; sdpa pads."""
    fsdp_size: Count | None = None
    """Devices that share one copy of the weights; None = all. Smaller = hybrid sharding."""
    sequence_parallel: Count = 1
    """Devices that share one sequence (Ulysses); needs flash_attention_2."""
    gradient_checkpointing: bool | None = None
    """None: off on the CPU, on on CUDA."""
    offload_params: bool = False
    """Keep weights and gradients in host memory while the other model works."""
    offload_optimizer: bool = False
    """Keep optimizer states in host memory between updates."""
    max_tokens_per_device: Count | None = None
    """Micro-batches by tokens instead of `micro_batch_size` sequences; at least the longest sequence."""


class BudgetBlock(Closed):
    """Figures that `plan` computes memory and time with. They change nothing in a run."""

    device: str | None = None
    """A name of `budget.DEVICES`, for example H100-80GB; None = memory is printed and not compared."""
    memory_gib: Positive | None = None
    """Overrides the table."""
    peak_tflops: Positive | None = None
    """Dense bfloat16 peak; overrides the table."""
    bandwidth_gbps: Positive | None = None
    """Memory bandwidth in GB/s; overrides the table."""
    host_memory_gib: Positive | None = None
    """Of a node; compared with what is offloaded and with a PRMU on the CPU. None = not compared."""
    mfu: Annotated[float, Field(gt=0.0, le=1.0)] = 0.35
    """Model FLOPs utilisation of training, an assumption (ours)."""
    decode_efficiency: Annotated[float, Field(gt=0.0, le=1.0)] = 0.4
    """Share of memory bandwidth that generation reaches, an assumption (ours)."""
    mean_length: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """Mean sequence length as a share of the limit; 1 = an upper bound of the time."""
    reserve_gib: NonNegative = 6.0
    """CUDA context, NCCL buffers and fragmentation, an assumption (ours)."""


def checkpointing(platform: PlatformBlock, training: TrainingBlock) -> bool:
    """Whether activations are recomputed."""
    chosen = training.gradient_checkpointing
    return platform.device != "cpu" if chosen is None else chosen


def attention(platform: PlatformBlock, training: TrainingBlock) -> str:
    """The attention implementation that `auto` stands for, or the one named."""
    if training.attention != "auto":
        return training.attention
    return "sdpa" if platform.device == "cpu" else "flash_attention_2"
