"""The `placement` block: what runs beside the devices of the policy, and what cannot be combined with what."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field

from tagpr_rl.config.base import Closed, Count, Machines
from tagpr_rl.config.grpo import GrpoStage
from tagpr_rl.config.model import VLLM_LORA_RANKS, LoraBlock
from tagpr_rl.config.platform import PlatformBlock, TrainingBlock, attention
from tagpr_rl.config.stage import StageBase, TrainingStage
from tagpr_rl.config.stages import ChainsStage, PrmuStage


class PrmuServing(Closed):
    """The actors that score responses with PRMU while a GRPO stage trains."""

    scorers: Machines | None = None
    """Number of actors, each with the whole model; null = with `prmu: cpu` one a node, with `shared` one on each of the
    policy's devices, with `dedicated` one. A user's responses go to the same actor, unless another one has much less to
    do."""
    dtype: Literal["float32", "tf32", "bfloat16"] | None = None
    """Number format that scores are computed in; null = the one that PRMU was trained in. tf32: float32 weights, whose
    products a GPU rounds to 10 bits of mantissa. bfloat16 halves the memory of the weights, too."""
    batch_tokens: Count | None = None
    """Padded tokens of a forward pass, profile included; null = 2,048 on the CPU, whose caches hold no more, and
    16,384 on a GPU."""
    cache_mb: Annotated[float, Field(ge=0.0)] = 512.0
    """Memory in MiB for the encoded profile items of each actor, on the model's device; the last used ones are kept."""
    health_s: Annotated[float, Field(gt=0.0)] = 15.0
    """An actor that does not say within this many seconds that it is well is restarted."""
    restarts: Annotated[int, Field(ge=0)] = 3
    """Restarts of each actor in a stage, after crashes and freezes."""


class PlacementBlock(Closed):
    """What runs beside the policy's devices (`platform.nodes` x `platform.devices_per_node`)."""

    rollout: Literal["colocated", "separate"] = "colocated"
    """colocated: vLLM on the policy's devices, in turns (verl's hybrid engine, synchronous trainer).
    separate: vLLM on devices of its own while the policy trains (verl's separate_async trainer; the responses of a
    step then come from weights that are up to `warmup_batches` steps older)."""
    rollout_nodes: Machines = 1
    """Machines with rollout devices (separate only)."""
    rollout_devices_per_node: Machines = 1
    """Rollout devices of each of these machines (separate only)."""
    tensor_parallel: Machines = 1
    """Devices of one vLLM engine, in rollouts and in evaluation, which has an engine on every such group of the run's
    devices."""
    warmup_batches: Annotated[float, Field(gt=0.0)] = 1.0
    """Batches that are generated ahead (separate only); 1 = one step off-policy."""
    prmu: Literal["cpu", "shared", "dedicated"] = "cpu"
    """cpu: the scorer has no accelerator. shared: on one of the policy's devices. dedicated: on its own."""
    prmu_devices: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """Share of a device that each dedicated scorer reserves (Ray's num_gpus)."""
    prmu_serving: PrmuServing = PrmuServing()
    """Number and limits of the actors that score with PRMU."""


def repeats(platform: PlatformBlock, placement: PlacementBlock) -> bool:
    """Whether the run is to repeat to the bit: `platform.deterministic`, or what null stands for."""
    if platform.deterministic is not None:
        return platform.deterministic
    return platform.device == "cpu" and placement.rollout == "colocated"


OFFLINE_SHARE = 0.75
"""Share of a GPU's memory for an engine that has the GPU for itself: an evaluation's, a teacher's."""


def engine_count(platform: PlatformBlock, placement: PlacementBlock, tensor: int) -> int:
    """Engines of `tensor` devices that have room on all devices of a run at once, each within a node."""
    count = platform.nodes * (platform.devices_per_node // tensor)
    if placement.rollout == "separate":
        count += placement.rollout_nodes * (placement.rollout_devices_per_node // tensor)
    return count


def scorer_tokens(placement: PlacementBlock) -> int:
    """Padded tokens of one forward pass of PRMU's scorer."""
    return placement.prmu_serving.batch_tokens or (2048 if placement.prmu == "cpu" else 16_384)


def scorer_count(platform: PlatformBlock, placement: PlacementBlock) -> int:
    """Number of PRMU's scorers in a GRPO stage."""
    if placement.prmu_serving.scorers is not None:
        return placement.prmu_serving.scorers
    return {"cpu": platform.nodes, "shared": platform.devices, "dedicated": 1}[placement.prmu]


def prmu_processes(platform: PlatformBlock, stage: PrmuStage) -> int:
    """Processes that train PRMU: as many of the policy's devices as share a batch in equal parts."""
    return math.gcd(stage.batch_size, platform.devices)


def placement_mistakes(
    platform: PlatformBlock,
    placement: PlacementBlock,
    training: TrainingBlock,
    lora: LoraBlock | None,
    stages: Mapping[str, StageBase],
    longest: int,
) -> list[str]:
    """Combinations of settings that cannot work, each with its remedy. `longest` is the longest sequence in tokens."""
    cpu, world = platform.device == "cpu", platform.devices
    kernel, tokens = attention(platform, training), training.max_tokens_per_device
    checks = [
        (
            cpu and placement.prmu != "cpu",
            f"placement.prmu={placement.prmu} needs an accelerator; with platform.device=cpu use cpu",
        ),
        (
            cpu and platform.vllm_model_runner == "v2",
            "platform.vllm_model_runner=v2 needs a GPU (Triton); with platform.device=cpu use auto or v1",
        ),
        (
            cpu and kernel == "flash_attention_2",
            "training.attention=flash_attention_2 needs a GPU; with platform.device=cpu use auto, sdpa or eager",
        ),
        (
            training.sequence_parallel > 1 and kernel != "flash_attention_2",
            f"training.sequence_parallel={training.sequence_parallel} needs training.attention=flash_attention_2 "
            "(verl patches that one alone); use 1 or install flash-attn on a GPU",
        ),
        (
            world % training.sequence_parallel > 0,
            f"training.sequence_parallel={training.sequence_parallel} does not divide the {world} devices",
        ),
        (
            training.fsdp_size is not None and world % training.fsdp_size > 0,
            f"training.fsdp_size={training.fsdp_size} does not divide the {world} devices",
        ),
        (
            cpu and (training.offload_params or training.offload_optimizer),
            "training.offload_*: there is nothing to offload to with platform.device=cpu; leave it false",
        ),
        (
            tokens is not None and tokens * training.sequence_parallel < longest,
            f"training.max_tokens_per_device={tokens} is below the longest sequence of {longest} tokens; raise it",
        ),
    ]
    mistakes = [*_rollout_mistakes(platform, placement, lora), *(text for wrong, text in checks if wrong)]
    for name, stage in stages.items():
        if isinstance(stage, TrainingStage) and stage.strategy == "deepspeed":
            mistakes += _deepspeed_mistakes(name, training, lora)
        if isinstance(stage, ChainsStage):
            mistakes += _teacher_mistakes(name, stage, platform)
        if placement.rollout == "separate" and isinstance(stage, GrpoStage) and not stage.reuse_rollout_logprobs:
            mistakes.append(
                f"stages.{name}.reuse_rollout_logprobs=false: with placement.rollout=separate the old "
                "log-probabilities are those of the weights that wrote the response; set it true"
            )
    return mistakes


def _teacher_mistakes(name: str, stage: ChainsStage, platform: PlatformBlock) -> list[str]:
    mistakes = []
    for role, block in stage.blocks().items():
        where, tensor = f"stages.{name}.{role}.tensor_parallel={block.tensor_parallel}", block.tensor_parallel or 1
        if tensor > 1 and platform.device == "cpu":
            mistakes.append(f"{where} needs GPUs; with platform.device=cpu use 1")
        elif platform.devices_per_node % tensor:
            mistakes.append(
                f"{where} does not divide platform.devices_per_node={platform.devices_per_node}; an engine stays in "
                "its node"
            )
    return mistakes


def _deepspeed_mistakes(name: str, training: TrainingBlock, lora: LoraBlock | None) -> list[str]:
    defaults, keys = TrainingBlock(), ("fsdp_size", "offload_optimizer", "offload_params", "sequence_parallel")
    return [
        *([f"stages.{name}.strategy=deepspeed does not train LoRA; use fsdp2"] if lora is not None else []),
        *(
            f"training.{key} is FSDP2's; stages.{name} has strategy=deepspeed, whose settings are its deepspeed block"
            for key in keys
            if getattr(training, key) != getattr(defaults, key)
        ),
    ]


def _rollout_mistakes(platform: PlatformBlock, placement: PlacementBlock, lora: LoraBlock | None) -> list[str]:
    tensor, separate = placement.tensor_parallel, placement.rollout == "separate"
    key = "placement.rollout_devices_per_node" if separate else "platform.devices_per_node"
    per_node = placement.rollout_devices_per_node if separate else platform.devices_per_node
    checks = [
        (
            per_node % tensor > 0,
            f"placement.tensor_parallel={tensor} does not divide {key}={per_node}; an engine stays in its node",
        ),
        (
            platform.device == "cpu" and tensor > 1,
            f"placement.tensor_parallel={tensor} needs GPUs; with platform.device=cpu use 1",
        ),
        (
            bool(platform.deterministic) and separate,
            "platform.deterministic: with placement.rollout=separate new weights interrupt responses at any token; use "
            "placement.rollout=colocated, or leave deterministic out",
        ),
        (
            not separate and (placement.rollout_nodes, placement.rollout_devices_per_node) != (1, 1),
            "placement.rollout_nodes and rollout_devices_per_node need placement.rollout=separate",
        ),
        (
            separate and lora is not None and not lora.merge,
            "placement.rollout=separate with lora: verl's checkpoint engines send whole weights; set lora.merge=true",
        ),
        (
            lora is not None and lora.rank > VLLM_LORA_RANKS[-1],
            f"lora.rank={lora.rank if lora else 0}: vLLM serves ranks up to {VLLM_LORA_RANKS[-1]}",
        ),
    ]
    return [text for wrong, text in checks if wrong]
