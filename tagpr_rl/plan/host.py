"""What a stage takes of a node's host memory, and of the disk of `out`, by part, each with its formula."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from tagpr_rl.config import ChainsStage, GrpoStage, PrmuStage, Recipe, TrainingStage, stage_limits
from tagpr_rl.config.placement import scorer_count
from tagpr_rl.plan.memory import (
    Part,
    Phase,
    compute_bytes,
    policy_shape,
    prmu_shape,
    scorer_part,
    zero_optimizer_bytes,
)  # fmt: skip
from tagpr_rl.plan.shapes import ModelShape, shape_of

LINE_BYTES, TOKEN_BYTES = 1024, 5
"""Of a saved response: the figures beside its text, and a token's text with JSON's escapes (an assumption)."""
SAVED_TOKEN_BYTES = 8
"""A token's id and log-probability in a file of `save_tokens`."""


@dataclass(frozen=True, slots=True)
class StageDisk:
    """What a stage leaves below `out`."""

    parts: tuple[Part, ...]
    writing: float = 0.0
    """Bytes beside them while a checkpoint is written, or until the stage's checkpoints go."""

    @property
    def bytes(self) -> float:
        """Sum of the parts."""
        return sum(part.bytes for part in self.parts)


def training_host(
    recipe: Recipe, stage: TrainingStage, shape: ModelShape, phases: Sequence[Phase], asleep: float = 0.0
) -> tuple[Phase, ...]:
    """Phases of the fullest node of an SFT or GRPO stage, the first one. `phases`: of one of its devices, which lie in
    host memory themselves if they are CPU processes. `asleep`: bytes that a device's sleeping engine keeps there."""
    total, share = shape.parameters, node_share(recipe)
    copies = 1
    if stage.strategy == "deepspeed" or shape.tied:
        # verl builds all but a group's first process on the meta device, unless the embeddings are tied
        # (fsdp/transformer_impl.py:265); DeepSpeed wants real weights everywhere.
        copies = recipe.platform.devices_per_node
    load = Part("loading", 4 * total * copies, f"4 B x {total:,} x {copies} process(es); an fp32 file is mapped")
    held = list(_offloaded(recipe, stage, shape))
    if isinstance(stage, GrpoStage) and stage.kl_coef > 0 and recipe.lora is None:
        # With LoRA the reference is the policy without its adapter; else verl keeps it on the host (CPUOffloadPolicy).
        held.append(Part("reference", 4 * total * share, f"4 B x {total:,} x {share:g} (a node's share)"))
    first = [part for part in held if part.name == "reference"]
    count = recipe.platform.devices_per_node
    engine = [Part("sleeping engine", asleep * count, f"{count} x its weights on a device (sleep level 1)")]
    engine = engine if asleep else []
    scorer = scorer_part(recipe, stage) if isinstance(stage, GrpoStage) and recipe.placement.prmu == "cpu" else None
    if scorer is not None:  # Ray may put all of them on one node
        scorers = scorer_count(recipe.platform, recipe.placement)
        held.append(Part("prmu", scorer.bytes * scorers, f"{scorers} x ({scorer.formula})"))
    busy = [
        Phase(phase.name, (*_processes(recipe, phase), *held, *(engine if phase.name == "train" else ())))
        for phase in phases
    ]
    states = tuple(part for part in phases[0].parts if part.name in ("weights", "optimizer", "lora"))
    kept = [*_processes(recipe, Phase("save", states)), *held, *engine]
    if stage.strategy == "fsdp2":  # verl puts offloaded weights back on the device to save them
        kept = [part for part in kept if part.name != "offloaded weights"]
    export = Part("export", 4 * total, f"4 B x {total:,}, whole, in the first process")
    return (Phase("load", (*first, load)), *busy, Phase("save", (*kept, export)))


def node_share(recipe: Recipe) -> float:
    """The share of the sharded weights on a node: with hybrid sharding a node may hold all, or several copies."""
    return recipe.platform.devices_per_node / (recipe.training.fsdp_size or recipe.platform.devices)


def other_host(recipe: Recipe, phases: Sequence[Phase], read: Part) -> tuple[Phase, ...]:
    """Phases of a stage that reads weights and trains no policy. `read`: what lies in memory while they are read."""
    return (Phase("load", (read,)), *(Phase(phase.name, _processes(recipe, phase)) for phase in phases))


def _processes(recipe: Recipe, phase: Phase) -> tuple[Part, ...]:
    """A phase's parts on all devices of a node, if these are CPU processes."""
    if recipe.platform.device != "cpu":
        return ()
    count = recipe.platform.devices_per_node
    return tuple(Part(part.name, part.bytes * count, f"{count} x ({part.formula})") for part in phase.parts)


def _offloaded(recipe: Recipe, stage: TrainingStage, shape: ModelShape) -> tuple[Part, ...]:
    """Offloaded weights and optimizer states on one node."""
    training, share, total = recipe.training, node_share(recipe), shape.parameters
    weights, states, trained = 4 * training.offload_params, 8 * training.offload_optimizer, total
    if stage.strategy == "deepspeed":
        zero = stage.zero()
        weights = compute_bytes(recipe) * zero.offload_params
        states = zero_optimizer_bytes(recipe) * zero.offload_optimizer
    elif recipe.lora is not None:
        trained = shape.lora_parameters(recipe.lora.rank, recipe.lora.target_modules)
    parts = (
        Part("offloaded weights", weights * total * share, f"{weights} B x {total:,} x {share:g} (a node's share)"),
        Part("offloaded optimizer", states * trained * share, f"{states} B x {trained:,} x {share:g} (a node's share)"),
    )
    return tuple(part for part in parts if part.bytes)


def stage_disks(recipe: Recipe, names: Collection[str]) -> dict[str, StageDisk]:
    """Stage -> its disk, of the training stages among `names` whose model is known. TagprError as `policy_shape`."""
    disks = {name: _stage_disk(recipe, name) for name in recipe.stages if name in names}
    return {name: disk for name, disk in disks.items() if disk is not None}


def downloads(recipe: Recipe) -> tuple[Part, ...]:
    """Weights that the run fetches from the hub into its cache, each model once: bfloat16 files of models whose size is
    known. A folder is fetched from nowhere. TagprError as `shape_of`."""
    names = [str(recipe.model.path)] if recipe.model.path is not None else []
    for stage in recipe.stages.values():
        if isinstance(stage, PrmuStage) and stage.backbone is not None:
            names.append(stage.backbone)
        if isinstance(stage, ChainsStage):
            names += [str(block.model) for block in stage.blocks().values() if block.kind == "vllm"]
    shapes = {name: shape_of(name) for name in names if not Path(name).is_dir()}
    return tuple(
        Part(name, 2 * shape.parameters, f"2 B x {shape.parameters:,}")
        for name, shape in shapes.items()
        if shape is not None
    )


def disk_bytes(recipe: Recipe, names: Collection[str]) -> float:
    """Most bytes that the stages `names` have below `out` at one time."""
    disks = stage_disks(recipe, names).values()
    return sum(disk.bytes for disk in disks) + max((disk.writing for disk in disks), default=0.0)


def _stage_disk(recipe: Recipe, name: str) -> StageDisk | None:
    stage = recipe.stages[name]
    if not isinstance(stage, TrainingStage):
        return None
    shape = prmu_shape(recipe, name) if isinstance(stage, PrmuStage) else policy_shape(recipe)
    if shape is None:
        return None
    total = shape.parameters
    published = Part("weights", 4 * total, f"4 B x {total:,}")
    if isinstance(stage, PrmuStage):  # weights and two Adam moments; the checkpoints go with the stage
        saves = -(-stage.steps // stage.save_every) if stage.save_every else 0
        return StageDisk((published,), 12 * total * min(stage.keep_checkpoints + 1, saves))
    saves = -(-stage.steps // stage.save_every) if stage.save_every else 1
    kept = min(stage.keep_checkpoints, saves)
    each, rule = checkpoint_bytes(recipe, stage, shape)
    parts = [published, Part("checkpoints", kept * each, f"{kept} x ({rule})")]
    if isinstance(stage, GrpoStage):
        parts.append(_rollouts(recipe, stage))
    return StageDisk(tuple(parts), each * (min(kept + 1, saves) - kept))


def checkpoint_bytes(recipe: Recipe, stage: TrainingStage, shape: ModelShape) -> tuple[float, str]:
    """(bytes of one checkpoint of an SFT or GRPO stage, the rule): weights, Adam's moments, and an fp32 export.

    FSDP2 writes a file for every process. With hybrid sharding each group of `fsdp_size` holds, and writes, all.
    """
    total, world = shape.parameters, recipe.platform.devices
    if stage.strategy == "deepspeed":
        width = compute_bytes(recipe) if stage.zero().zero_stage < 3 else 0  # ZeRO 3 has them in the optimizer's file
        return (width + 12 + 4) * total, f"({width} weights + 12 fp32 weights and moments + 4 export) B x {total:,}"
    copies = world // (recipe.training.fsdp_size or world)
    if recipe.lora is None:
        return (12 * copies + 4) * total, f"(12 x {copies} + 4 export) B x {total:,}"
    adapters = shape.lora_parameters(recipe.lora.rank, recipe.lora.target_modules)
    each = 4 * total * (copies + 1) + adapters * (12 * copies + 4)
    return each, f"4 B x {total:,} x ({copies} + 1 export), 12 B x {adapters:,} x {copies} + 4 B of adapters"


def _rollouts(recipe: Recipe, stage: GrpoStage) -> Part:
    """The saved responses with their prompts, as long as the limits allow."""
    prompt, response = stage_limits(recipe, stage)
    responses = stage.prompts_per_step * stage.group_size
    each = LINE_BYTES + TOKEN_BYTES * (prompt + response) + SAVED_TOKEN_BYTES * response * stage.save_tokens
    count = stage.steps * min(responses, stage.log.keep_responses or responses)
    return Part("rollouts", count * each, f"{count:,} responses x {each:,} B, at most")
