"""What each stage of a recipe needs, and what does not fit the named device."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from tagpr_rl.config import ChainsStage, EvaluateStage, GrpoStage, PrmuStage, Recipe, SftStage
from tagpr_rl.config.placement import prmu_processes, scorer_count
from tagpr_rl.plan.asking import chains_work, evaluation_work, model_shape
from tagpr_rl.plan.engines import engine_parts, rollout_engine
from tagpr_rl.plan.host import other_host, training_host
from tagpr_rl.plan.hours import Times, grpo_time, prmu_time, train_time
from tagpr_rl.plan.memory import (
    GIB,
    RESERVE_GIB,
    Part,
    Phase,
    device_of,
    longest,
    policy_shape,
    prmu_phases,
    prmu_shape,
    scorer_part,
    training_parts,
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
    "gathered gradients": "use a smaller model or a device with more memory: one block must fit whole",
    "activations": "lower training.max_tokens_per_device or the stage's micro_batch_size, or set "
    "training.gradient_checkpointing=true",
    "logits": "lower training.max_tokens_per_device or the stage's micro_batch_size",
    "engine": "lower platform.vllm_gpu_utilization, raise placement.tensor_parallel, or set training.offload_*",
    "teacher": "raise teacher.tensor_parallel, or name a smaller model",
    "labeller": "raise labeller.tensor_parallel, or name a smaller model",
    "prmu": "set placement.prmu=dedicated, or name a smaller prmu `backbone`",
    "prmu weights": "name a smaller `backbone` for the prmu stage",
    "whole prmu": "name a smaller `backbone` for the prmu stage",
    "prmu activations": "lower the prmu stage's micro_batch_size",
}
HOST_REMEDIES = {
    "a tensor": "use nodes with more memory",
    "loading": "use nodes with more memory; only FSDP2 with an output layer of its own loads in one process alone",
    "offloaded weights": "use more nodes, or switch offloading off",
    "offloaded optimizer": "use more nodes, or switch offloading off",
    "reference": "use more nodes, or set kl_coef: 0",
    "sleeping engine": "raise placement.tensor_parallel, or set lora.merge: true",
    "prmu": "lower placement.prmu_serving.scorers or cache_mb, or name a smaller prmu `backbone`",
    "export": "use a smaller model or nodes with more memory: the first one must hold the weights whole in fp32",
}


@dataclass(frozen=True, slots=True)
class StageBudget:
    """Memory and work of one stage."""

    phases: tuple[Phase, ...]
    """Of the fullest device."""
    host: tuple[Phase, ...] = ()
    """Of the fullest node's own memory."""
    seconds: tuple[tuple[str, float, str], ...] = ()
    """(what, seconds in the whole stage, the arithmetic); empty if no device is named."""
    problems: tuple[str, ...] = ()

    @property
    def host_bytes(self) -> float:
        """The most that the stage takes of a node's own memory."""
        return max((phase.bytes for phase in self.host), default=0.0)


def stage_budget(recipe: Recipe, name: str) -> StageBudget | None:
    """Memory, time and problems of a stage that uses devices; None for others, and for models of unknown shape."""
    stage, shape = recipe.stages[name], policy_shape(recipe)
    device = device_of(recipe.budget) if recipe.platform.device == "cuda" else None
    if isinstance(stage, PrmuStage):
        backbone = prmu_shape(recipe, name)
        if backbone is None:
            return None
        phases = prmu_phases(recipe, backbone, stage)
        count = min(recipe.platform.devices_per_node, prmu_processes(recipe.platform, stage))
        rule = f"4 B x {backbone.parameters:,} x {count} process(es)"
        host = other_host(recipe, phases, Part("loading", 4 * backbone.parameters * count, rule))
        return _judged(recipe, name, phases, host, prmu_time(recipe, stage, backbone, device), device, ())
    if isinstance(stage, ChainsStage):
        return _chains(recipe, name, stage, device)
    if shape is None:
        return None
    if isinstance(stage, SftStage):
        phases = (Phase("train", training_parts(recipe, shape, stage)),)
        tokens = stage.steps * stage.batch_size * longest(recipe)
        times = train_time(recipe, shape, tokens, device)
        return _judged(recipe, name, phases, training_host(recipe, stage, shape, phases), times, device, ())
    if isinstance(stage, GrpoStage):
        return _grpo(recipe, name, stage, shape, device)
    if isinstance(stage, EvaluateStage):
        work, workers = evaluation_work(recipe, stage, shape, device), recipe.platform.devices_per_node
        read = Part("a tensor", 4 * shape.largest * workers, f"{workers} x the largest of 4 B x {shape.largest:,}")
        host = other_host(recipe, work.phases, read)
        return _judged(recipe, name, work.phases, host, work.times, device, work.problems)
    return None


def _chains(recipe: Recipe, name: str, stage: ChainsStage, device: Device | None) -> StageBudget | None:
    """A chains stage with language models in this run; None without."""
    work, workers = chains_work(recipe, stage, device), recipe.platform.devices_per_node
    if not work.phases:
        return None
    shapes = [model_shape(recipe, stage, block) for block in stage.blocks().values()]
    largest = max(shape.largest for shape in shapes if shape is not None)
    read = Part("a tensor", 4 * largest * workers, f"{workers} x the largest of 4 B x {largest:,}")
    host = other_host(recipe, work.phases, read)
    return _judged(recipe, name, work.phases, host, work.times, device, work.problems)


def _grpo(recipe: Recipe, name: str, stage: GrpoStage, shape: ModelShape, device: Device | None) -> StageBudget:
    memory = device.memory_gib * GIB if device else None
    parts = training_parts(recipe, shape, stage)
    engine, fits, wrong = engine_parts(recipe, rollout_engine(recipe, shape), memory)
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
    # With an adapter vLLM keeps the base while it sleeps: only the adapter is sent. A CPU's engine never sleeps.
    sleeps = recipe.lora is not None and not recipe.lora.merge and recipe.platform.device != "cpu"
    host = training_host(recipe, stage, shape, phases, engine[0].bytes if sleeps else 0.0)
    scorer, scorers = scorer_part(recipe, stage), scorer_count(recipe.platform, recipe.placement)
    if scorer is not None and recipe.placement.prmu == "shared":
        per_device = -(-scorers // recipe.platform.devices)  # the fullest device
        shared = len(phases) if recipe.placement.rollout == "colocated" else 1  # rollout devices have none
        beside = [Phase(phase.name, (*phase.parts, *[scorer] * per_device)) for phase in phases[:shared]]
        phases = [*beside, *phases[shared:]]
    elif scorer is not None and recipe.placement.prmu == "dedicated":
        per_device = min(scorers, max(1, int(1 / recipe.placement.prmu_devices)))
        phases.append(Phase("score (PRMU's device)", (scorer,) * per_device))
    times = grpo_time(recipe, stage, shape, device, fits)
    return _judged(recipe, name, tuple(phases), host, times, device, wrong)


def _judged(
    recipe: Recipe, name: str, phases: tuple[Phase, ...], host: tuple[Phase, ...], times: Times,
    device: Device | None, wrong: tuple[str, ...],
) -> StageBudget:  # fmt: skip
    problems = [f"stages.{name}: {text}" for text in wrong]
    for phase in phases if device is not None else ():
        assert device is not None
        room = device.memory_gib - RESERVE_GIB
        if phase.bytes / GIB > room:
            where = f"{recipe.budget.device} with {room:.1f} GiB free ({RESERVE_GIB:g} reserved)"
            problems.append(f"stages.{name}, {phase.name}: {_too_big(phase, where, REMEDIES)}")
    budget = StageBudget(phases, host, times)
    limit = recipe.budget.host_memory_gib
    if limit is not None and budget.host_bytes / GIB > limit:
        problems.append(f"stages.{name}, {host_shortage(budget, f'budget.host_memory_gib={limit:g}')}")
    return replace(budget, problems=tuple(problems))


def host_shortage(budget: StageBudget, where: str) -> str:
    """What does not fit the memory of a node that `where` names, and a remedy."""
    phase = max(budget.host, key=lambda phase: phase.bytes)
    return f"{phase.name} on a node's host: {_too_big(phase, where, {**REMEDIES, **HOST_REMEDIES})}"


def _too_big(phase: Phase, where: str, remedies: Mapping[str, str]) -> str:
    sums: dict[str, float] = {}
    for part in phase.parts:
        who = part.name.partition(" ")[0]
        key = who if who in ("engine", "teacher", "labeller") else part.name
        sums[key] = sums.get(key, 0.0) + part.bytes / GIB
    worst = max(sums, key=lambda key: sums[key])
    return (
        f"{phase.bytes / GIB:.1f} GiB do not fit {where}; the largest part is {worst} with {sums[worst]:.1f} GiB: "
        f"{remedies[worst]}"
    )
