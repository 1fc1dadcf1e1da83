"""The `placement` block: what runs beside the devices of the policy, and what cannot be combined with what."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field

from tagpr_rl.config.base import Closed, Count
from tagpr_rl.config.grpo import GrpoStage
from tagpr_rl.config.model import VLLM_LORA_RANKS, LoraBlock
from tagpr_rl.config.platform import PlatformBlock, TrainingBlock, attention
from tagpr_rl.config.stage import StageBase, TrainingStage


class PrmuServing(Closed):
    """The actors that score responses with PRMU while a GRPO stage trains."""

    scorers: Count = 1
    """Actors, each with the whole model. A user's responses go to the same one while it is well."""
    batch_tokens: Count | None = None
    """Padded tokens of a forward pass, profile included. None: 2,048 on the CPU, whose caches hold no more, and 16,384
    on a GPU."""
    max_waiting: Count = 16_384
    """Responses that may wait in an actor's queue; more are turned away and asked again."""
    cache_mb: Annotated[float, Field(ge=0.0)] = 512.0
    """Of encoded profile items in each actor, where the model is (MiB); the last used ones are kept."""
    health_s: Annotated[float, Field(gt=0.0)] = 15.0
    """An actor that does not say within this that it is well is restarted."""
    restarts: Annotated[int, Field(ge=0)] = 3
    """Of each actor in a stage, after crashes and freezes."""


class PlacementBlock(Closed):
    """What runs beside the policy's devices (`platform.nodes` x `platform.devices_per_node`)."""

    rollout: Literal["colocated", "separate"] = "colocated"
    """colocated: vLLM on the policy's devices, in turns (verl's hybrid engine, synchronous trainer).
    separate: vLLM on devices of its own while the policy trains (verl's separate_async trainer; the responses of a
    step then come from weights that are up to `warmup_batches` steps older)."""
    rollout_nodes: Count = 1
    """Nodes of rollout devices (separate only)."""
    rollout_devices_per_node: Count = 1
    """Rollout devices on each (separate only)."""
    tensor_parallel: Count = 1
    """Devices of one vLLM engine, in rollouts and in evaluation."""
    warmup_batches: Annotated[float, Field(gt=0.0)] = 1.0
    """Batches generated ahead (separate only); 1 = one step off-policy."""
    prmu: Literal["cpu", "shared", "dedicated"] = "cpu"
    """cpu: the scorer has no accelerator. shared: on one of the policy's devices. dedicated: on its own."""
    prmu_devices: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """Share of a device that each dedicated scorer reserves (Ray's num_gpus)."""
    prmu_serving: PrmuServing = PrmuServing()


def scorer_tokens(placement: PlacementBlock) -> int:
    """Padded tokens of one forward pass of PRMU's scorer."""
    return placement.prmu_serving.batch_tokens or (2048 if placement.prmu == "cpu" else 16_384)


def placement_mistakes(
    platform: PlatformBlock,
    placement: PlacementBlock,
    training: TrainingBlock,
    lora: LoraBlock | None,
    stages: Mapping[str, StageBase],
    longest: int,
) -> list[str]:
    """Combinations of settings that cannot work, each with its remedy. `longest` is the longest sequence in tokens."""
    cpu, world = platform.device == "cpu", platform.nodes * platform.devices_per_node
    found = _rollout_mistakes(platform, placement, lora)
    if cpu and placement.prmu != "cpu":
        found.append(f"placement.prmu={placement.prmu} needs an accelerator; with platform.device=cpu use cpu")
    if cpu and attention(platform, training) != "sdpa":
        found.append("training.attention=flash_attention_2 needs a GPU; with platform.device=cpu use auto or sdpa")
    if training.sequence_parallel > 1 and attention(platform, training) != "flash_attention_2":
        found.append(
            f"training.sequence_parallel={training.sequence_parallel} needs training.attention=flash_attention_2 "
            "(verl patches that one alone); use 1 or install flash-attn on a GPU"
        )
    if world % training.sequence_parallel:
        found.append(f"training.sequence_parallel={training.sequence_parallel} does not divide the {world} devices")
    if training.fsdp_size is not None and world % training.fsdp_size:
        found.append(f"training.fsdp_size={training.fsdp_size} does not divide the {world} devices")
    if cpu and (training.offload_params or training.offload_optimizer):
        found.append("training.offload_*: there is nothing to offload to with platform.device=cpu; leave it false")
    budget = training.max_tokens_per_device
    if budget is not None and budget * training.sequence_parallel < longest:
        found.append(
            f"training.max_tokens_per_device={budget} is below the longest sequence of {longest} tokens; raise it"
        )
    defaults, keys = TrainingBlock(), ("fsdp_size", "offload_optimizer", "offload_params", "sequence_parallel")
    sharding = [key for key in keys if getattr(training, key) != getattr(defaults, key)]
    for name, stage in stages.items():
        if isinstance(stage, TrainingStage) and stage.strategy == "deepspeed":
            if lora is not None:
                found.append(f"stages.{name}.strategy=deepspeed does not train LoRA; use fsdp2")
            for key in sharding:
                found.append(
                    f"training.{key} is FSDP2's; stages.{name} has strategy=deepspeed, whose settings are its "
                    "deepspeed block"
                )
        if placement.rollout == "separate" and isinstance(stage, GrpoStage) and not stage.reuse_rollout_logprobs:
            found.append(
                f"stages.{name}.reuse_rollout_logprobs=false: with placement.rollout=separate the old "
                "log-probabilities are those of the weights that wrote the response; set it true"
            )
    return found


def _rollout_mistakes(platform: PlatformBlock, placement: PlacementBlock, lora: LoraBlock | None) -> list[str]:
    found = []
    tensor = placement.tensor_parallel
    separate = placement.rollout == "separate"
    per_node = placement.rollout_devices_per_node if separate else platform.devices_per_node
    if per_node % tensor:
        where = "placement.rollout_devices_per_node" if separate else "platform.devices_per_node"
        found.append(
            f"placement.tensor_parallel={tensor} does not divide {where}={per_node}; an engine stays in its node"
        )
    if platform.device == "cpu" and tensor > 1:
        found.append(f"placement.tensor_parallel={tensor} needs GPUs; with platform.device=cpu use 1")
    if not separate and (placement.rollout_nodes, placement.rollout_devices_per_node) != (1, 1):
        found.append("placement.rollout_nodes and rollout_devices_per_node need placement.rollout=separate")
    if separate and lora is not None and not lora.merge:
        found.append(
            "placement.rollout=separate with lora: verl's checkpoint engines send whole weights; set lora.merge=true"
        )
    if lora is not None and lora.rank > VLLM_LORA_RANKS[-1]:
        found.append(f"lora.rank={lora.rank}: vLLM serves ranks up to {VLLM_LORA_RANKS[-1]}")
    return found
