"""What each stage of a recipe needs, and what does not fit the named device."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tagpr_rl.config import EvaluateStage, GrpoStage, PrmuStage, Recipe, SftStage, TrainingStage
from tagpr_rl.plan.hours import Times, grpo_time, prmu_time, train_time
from tagpr_rl.plan.memory import (
    GIB,
    RESERVE_GIB,
    Phase,
    compute_bytes,
    device_of,
    engine_parts,
    longest,
    micro_tokens,
    policy_shape,
    prmu_shape,
    prmu_training_parts,
    scorer_part,
    training_parts,
    zero_optimizer_bytes,
)  # fmt: skip
from tagpr_rl.plan.shapes import Device, ModelShape

REMEDIES = {
    "weights": "use more devices (platform.nodes, platform.devices_per_node), training.offload_params=true (or the "
    "stage's deepspeed block has it), or deepspeed.zero_stage=3",
    "gradients": "use more devices, deepspeed.zero_stage >= 2, or a `lora:` block",
    "optimizer": "use more devices, training.offload_optimizer=true (or the stage's deepspeed block has it), or "
    "a `lora:` block",
    "lora": "lower lora.rank",
    "gathered": "use a smaller model or a device with more memory: one block must fit whole",
    "activations": "lower training.max_tokens_per_device or the stage's micro_batch_size, or set "
    "training.gradient_checkpointing=true",
    "logits": "lower training.max_tokens_per_device or the stage's micro_batch_size",
    "engine": "lower platform.vllm_gpu_utilization, raise placement.tensor_parallel, or set training.offload_*",
    "prmu": "set placement.prmu=dedicated, or name a smaller prmu `backbone`",
    "prmu weights": "name a smaller `backbone` for the prmu stage",
    "prmu activations": "lower the prmu stage's micro_batch_size",
}


@dataclass(frozen=True, slots=True)
class StageBudget:
    """Memory and work of one stage."""

    phases: tuple[Phase, ...]
    host_bytes: float = 0.0
    """Of one node: offloaded states, the reference and a PRMU on the CPU."""
    seconds: tuple[tuple[str, float, str], ...] = ()
    """(what, seconds in the whole stage, the arithmetic); empty if no device is named."""
    problems: tuple[str, ...] = ()


def stage_budget(recipe: Recipe, name: str) -> StageBudget | None:
    """Memory, time and problems of a stage that uses devices; None for others, and for models of unknown shape."""
    stage, shape = recipe.stages[name], policy_shape(recipe)
    device = device_of(recipe.budget) if recipe.platform.device == "cuda" else None
    if isinstance(stage, PrmuStage):
        backbone = prmu_shape(recipe, name)
        if backbone is None:
            return None
        phases: tuple[Phase, ...] = (Phase("train", prmu_training_parts(backbone, stage)),)
        return _judged(recipe, name, phases, 0.0, prmu_time(recipe, stage, backbone, device), device, ())
    if shape is None:
        return None
    if isinstance(stage, SftStage):
        phases = (Phase("train", training_parts(recipe, shape, micro_tokens(recipe, stage), stage)),)
        tokens = stage.steps * stage.batch_size * longest(recipe)
        times = train_time(recipe, shape, tokens, device)
        return _judged(recipe, name, phases, _offloaded(recipe, shape, stage), times, device, ())
    if isinstance(stage, GrpoStage):
        return _grpo(recipe, name, stage, shape, device)
    if isinstance(stage, EvaluateStage):
        memory = device.memory_gib * GIB if device else None
        engine, _, wrong = engine_parts(recipe, shape, memory)
        return _judged(recipe, name, (Phase("generate", tuple(engine)),), 0.0, (), device, wrong)
    return None


def _grpo(recipe: Recipe, name: str, stage: GrpoStage, shape: ModelShape, device: Device | None) -> StageBudget:
    memory = device.memory_gib * GIB if device else None
    parts = training_parts(recipe, shape, micro_tokens(recipe, stage), stage)
    engine, fits, wrong = engine_parts(recipe, shape, memory)
    bucket, largest = recipe.platform.weight_bucket_mb, 4 * shape.largest
    if recipe.platform.device == "cpu" and largest > bucket << 20:
        wrong = (
            *wrong,
            f"platform.weight_bucket_mb={bucket} does not hold the largest tensor of {largest >> 20} MiB; raise it",
        )
    training = recipe.training
    phases = [Phase("train", parts)]
    if recipe.placement.rollout == "colocated":
        # While vLLM generates, the policy keeps what is not offloaded; its gradients and activations are gone.
        away = {"weights"} if training.offload_params else set()
        away |= {"optimizer"} if training.offload_optimizer else set()
        kept = tuple(part for part in parts if part.name in {"weights", "optimizer", "lora"} - away)
        phases.append(Phase("generate", (*kept, *engine)))
    else:
        phases.append(Phase("generate (rollout devices)", tuple(engine)))
    host = _offloaded(recipe, shape, stage)
    if recipe.lora is not None and not recipe.lora.merge and recipe.placement.rollout == "colocated":
        # vLLM keeps the base weights while it sleeps, in host memory (verl's sleep level 1): only the adapter is sent.
        host += engine[0].bytes * recipe.platform.devices_per_node
    scorer = scorer_part(recipe, stage)
    if stage.kl_coef > 0 and recipe.lora is None:  # with LoRA the reference is the policy without its adapter
        host += 4 * shape.parameters / recipe.platform.nodes  # verl keeps it in host memory (CPUOffloadPolicy)
    scorers = recipe.placement.prmu_serving.scorers
    if scorer is not None and recipe.placement.prmu == "shared":
        per_device = -(-scorers // recipe.platform.devices)  # the fullest device
        phases = [Phase(phase.name, (*phase.parts, *[scorer] * per_device)) for phase in phases]
    elif scorer is not None and recipe.placement.prmu == "dedicated":
        per_device = min(scorers, max(1, int(1 / recipe.placement.prmu_devices)))
        phases.append(Phase("score (PRMU's device)", (scorer,) * per_device))
    elif scorer is not None:
        host += scorer.bytes * scorers  # Ray may put all of them on one node
    times = grpo_time(recipe, stage, shape, device, fits)
    return _judged(recipe, name, tuple(phases), host, times, device, wrong)


def _offloaded(recipe: Recipe, shape: ModelShape, stage: TrainingStage) -> float:
    """Host bytes of a node that offloaded states take."""
    training, nodes = recipe.training, recipe.platform.nodes
    if stage.strategy == "deepspeed":
        zero, width = stage.zero(), compute_bytes(recipe)
        per_weight = width * zero.offload_params + zero_optimizer_bytes(recipe) * zero.offload_optimizer
        return per_weight * shape.parameters / nodes
    trained = shape.parameters
    if recipe.lora is not None:
        trained = shape.lora_parameters(recipe.lora.rank, recipe.lora.target_modules)
    weights, states = 4.0 * shape.parameters * training.offload_params, 8.0 * trained * training.offload_optimizer
    return (weights + states) / nodes


def _judged(
    recipe: Recipe, name: str, phases: tuple[Phase, ...], host: float, times: Times, device: Device | None,
    wrong: tuple[str, ...],
) -> StageBudget:  # fmt: skip
    problems = [f"stages.{name}: {text}" for text in wrong]
    for phase in phases if device is not None else ():
        assert device is not None
        room = device.memory_gib - RESERVE_GIB
        if phase.bytes / GIB > room:
            sums: dict[str, float] = {}
            for part in phase.parts:
                key = "engine" if part.name.startswith("engine") else part.name
                sums[key] = sums.get(key, 0.0) + part.bytes / GIB
            problems.append(f"stages.{name}, {phase.name}: {_too_big(phase, room, recipe.budget.device, sums)}")
    limit = recipe.budget.host_memory_gib
    if limit is not None and host / GIB > limit:
        problems.append(
            f"stages.{name}: {host / GIB:.0f} GiB of host memory on a node, budget.host_memory_gib={limit:g}; "
            "use more nodes or switch training.offload_* off"
        )
    return StageBudget(phases, host, times, tuple(problems))


def _too_big(phase: Phase, room: float, device: str | None, sums: Mapping[str, float]) -> str:
    worst = max(sums, key=lambda key: sums[key])
    return (
        f"{phase.bytes / GIB:.1f} GiB do not fit {device} with {room:.1f} GiB free "
        f"({RESERVE_GIB:g} reserved); the largest part is {worst} with {sums[worst]:.1f} GiB: {REMEDIES[worst]}"
    )
