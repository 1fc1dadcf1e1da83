"""This machine against the recipe: devices, packages, folders to write, disk and memory."""

from __future__ import annotations

import importlib.util
import math
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from tagpr_rl.config import ChainsStage, EvaluateStage, GrpoStage, SftStage, TrainingStage
from tagpr_rl.config.kinds import KINDS
from tagpr_rl.config.placement import scorer_count
from tagpr_rl.config.platform import attention
from tagpr_rl.deploy.need import need, node_devices
from tagpr_rl.plan.host import disk_bytes as planned_disk
from tagpr_rl.plan.memory import GIB
from tagpr_rl.plan.show import stage_budgets
from tagpr_rl.plan.stages import host_shortage
from tagpr_rl.preflight.finding import Finding, PlannedRun
from tagpr_rl.types import TagprError

SMI_SECONDS = 10.0


def device_count(environment: Mapping[str, str]) -> int:
    """NVIDIA devices that a process of this machine may use; without torch."""
    there = sum(path.name[6:].isdigit() for path in Path("/dev").glob("nvidia*")) or _listed_devices()
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return there
    chosen = []
    for part in (part.strip() for part in visible.split(",")):
        if not part or part.startswith("-"):
            break  # CUDA ignores what follows
        chosen.append(part)
    return min(there, len(chosen))


def _listed_devices() -> int:
    """Devices that nvidia-smi lists: some systems (WSL) have no device files."""
    if shutil.which("nvidia-smi") is None:
        return 0
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=SMI_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return 0
    return sum(line.startswith("GPU ") for line in listed.stdout.splitlines())


def runs_here(plan: PlannedRun) -> bool:
    """Whether the run that is planned on this machine is likely to start on it: its devices are here, or it joins a Ray
    cluster from here."""
    platform = plan.recipe.platform
    return platform.ray_address is not None or platform.device == "cpu" or device_count(plan.environment) > 0


def devices(plan: PlannedRun) -> Iterator[Finding]:
    """Devices of policy, rollout and PRMU against this machine and against the nodes of the `cluster` block."""
    recipe, placement = plan.recipe, plan.recipe.placement
    run, size = need(recipe), node_devices(recipe)
    if recipe.cluster.devices_per_node is not None and run.parts[0] > size:
        yield Finding(
            "cluster.devices_per_node",
            size,
            f"{run.parts[0]:g} devices must lie on one node",
            "raise it, or use more nodes",
        )
    dedicated = placement.prmu == "dedicated"
    if dedicated and not any(stage.uses_prmu for _, stage in plan.stages(GrpoStage)) and plan.todo:
        yield Finding(
            "placement.prmu", "dedicated", "no stage scores with PRMU, so its devices stay idle", "use shared", True
        )
    if not _uses_ray(plan) or recipe.platform.ray_address is not None:
        return
    if recipe.platform.device == "cpu":
        cores = os.cpu_count() or 1
        if recipe.platform.threads > 4 * cores:
            yield Finding(
                "platform.threads", recipe.platform.threads, f"this machine has {cores} cores", f"use {cores}", True
            )
        if run.devices > 8 * cores:
            yield Finding(
                "platform.devices_per_node",
                recipe.platform.devices_per_node,
                f"{run.devices:g} processes (policy, rollout, PRMU) for the {cores} cores of this machine",
                "use fewer",
                on_machine=True,
            )
        return
    there = device_count(plan.environment)
    if there == 0:
        yield Finding(
            "platform.device",
            "cuda",
            "this machine has no CUDA device, or CUDA_VISIBLE_DEVICES hides it",
            "run it on one that has, or use a recipe with platform.device=cpu",
            on_machine=True,
        )
    elif run.devices > there:
        parts = [f"policy {recipe.platform.devices}"]
        if placement.rollout == "separate":
            parts.append(f"rollout {placement.rollout_nodes * placement.rollout_devices_per_node}")
        if dedicated:
            parts.append(f"PRMU {placement.prmu_devices * scorer_count(recipe.platform, placement):g}")
        yield Finding(
            "platform",
            None,
            f"{run.devices:g} devices are asked ({', '.join(parts)}), and this machine has {there}",
            "ask for fewer, or name a cluster with platform.ray_address",
            on_machine=True,
        )


def _uses_ray(plan: PlannedRun) -> bool:
    return any(KINDS[plan.recipe.stages[name].kind].uses_ray for name in plan.todo)


def packages(plan: PlannedRun) -> Iterator[Finding]:
    """Packages that the recipe's settings need and that are not installed here."""
    recipe = plan.recipe
    trains = any(True for _ in plan.stages(TrainingStage))
    rolls = any(isinstance(recipe.stages[name], GrpoStage | EvaluateStage) for name in plan.todo)
    strategies = {stage.strategy for _, stage in plan.stages(TrainingStage)}
    cuda = recipe.platform.device == "cuda"
    policy = any(isinstance(recipe.stages[name], SftStage | GrpoStage) for name in plan.todo)
    wanted = {
        "torch": (trains or rolls, "every stage that trains"),
        "ray": (trains or rolls, "every stage that trains"),
        "verl": (policy, "sft and grpo stages"),
        "vllm": (rolls, "rollouts and evaluation"),
        "deepspeed": ("deepspeed" in strategies, "strategy=deepspeed"),
        "peft": (recipe.lora is not None and policy, "lora"),
        "flash_attn": (
            policy and attention(recipe.platform, recipe.training) == "flash_attention_2",
            "training.attention=flash_attention_2 (packed_sdpa needs none)",
        ),
        "cupy": (cuda and recipe.placement.rollout == "separate", "placement.rollout=separate (verl's nccl engine)"),
        "wandb": (recipe.log.wandb != "disabled", f"log.wandb={recipe.log.wandb} (disabled needs none)"),
        "tensorboard": (recipe.log.tensorboard, "log.tensorboard=true"),
    }
    for name, (needed, what) in wanted.items():
        if needed and importlib.util.find_spec(name) is None:
            yield Finding(
                "", None, f"the package {name} is not installed; it is needed for {what}", "install it", on_machine=True
            )


def folders(plan: PlannedRun) -> Iterator[Finding]:
    """Folders that the run writes to."""
    recipe = plan.recipe
    wanted = {"out": plan.folder.root}
    if recipe.data.retrieval.cache is not None:
        wanted["data.retrieval.cache"] = recipe.data.retrieval.cache
    for name, stage in plan.stages(ChainsStage):
        if stage.answers is not None:
            wanted[f"stages.{name}.answers"] = stage.answers.parent
    if recipe.mirror is not None and recipe.mirror.startswith("file://"):
        wanted["mirror"] = Path(recipe.mirror.removeprefix("file://"))
    for name, stage in plan.stages(ChainsStage):
        if stage.answers is not None and stage.answers.is_dir():
            yield Finding(f"stages.{name}.answers", stage.answers, "a folder, not a file", "name a file in it")
    for key, folder in wanted.items():
        if wrong := unwritable(folder):
            yield Finding(key, folder, wrong, f"choose another folder with {key}=<folder>", on_machine=True)


def nearest_folder(path: Path) -> Path:
    """The path itself or its nearest parent that exists."""
    path = path.absolute()
    while not (path.exists() or path.is_symlink()) and path != path.parent:
        path = path.parent
    return path


def unwritable(folder: Path) -> str:
    """Why files cannot be written below the folder, which need not exist; "" if they can. Leaves nothing there."""
    try:
        there = nearest_folder(folder)
        if not there.is_dir():
            return f"{there} is a file or a broken link, not a folder"
        with tempfile.TemporaryFile(dir=there):
            return ""
    except OSError as error:
        return f"cannot be written ({error.strerror})"


def disk_bytes(plan: PlannedRun) -> float:
    """Most bytes below `out` at one time, of stages whose model is known and that are still to do."""
    try:
        return planned_disk(plan.recipe, plan.todo)
    except TagprError:  # the model's own check names it
        return 0


def size_text(count: float) -> str:
    """A number of bytes in GiB, or in MiB below one."""
    return f"{count / GIB:.1f} GiB" if count >= GIB else f"{count / (1 << 20):.0f} MiB"


def disk(plan: PlannedRun) -> Iterator[Finding]:
    """Checkpoints, weights and rollouts against the free space of `out`."""
    needed = disk_bytes(plan)
    try:
        free = shutil.disk_usage(nearest_folder(plan.folder.root)).free
    except OSError:
        return  # `folders` says so
    if needed > free:
        yield Finding(
            "out",
            plan.folder.root,
            f"checkpoints, weights and rollouts take up to {size_text(needed)}, and {size_text(free)} are free",
            "free some, choose another folder, or lower keep_checkpoints",
            on_machine=True,
        )


def memory(plan: PlannedRun) -> Iterator[Finding]:
    """A run's processes, scorers and caches against this machine's memory."""
    recipe, serving = plan.recipe, plan.recipe.placement.prmu_serving
    if recipe.platform.ray_address is not None or not _uses_ray(plan):
        return
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if recipe.platform.device == "cpu":
        yield from _processes(plan, total)
    else:
        yield from _host(plan, total, f"this machine of {total / GIB:.0f} GiB", on_machine=True)
    if not any(stage.uses_prmu for _, stage in plan.stages(GrpoStage)):
        return
    scorers = scorer_count(recipe.platform, recipe.placement)
    caches = scorers * serving.cache_mb * (1 << 20)
    if recipe.placement.prmu == "cpu" and math.isfinite(caches) and caches > total:
        yield Finding(
            "placement.prmu_serving.cache_mb",
            f"{serving.cache_mb:g}",
            f"{scorers} scorers may fill {caches / GIB:.0f} GiB, and this machine has {total / GIB:.0f}",
            "lower it",
            on_machine=True,
        )
    if recipe.platform.device == "cpu" and recipe.platform.vllm_memory_mb << 20 > total:
        yield Finding(
            "platform.vllm_memory_mb",
            recipe.platform.vllm_memory_mb,
            f"this machine has {total / GIB:.0f} GiB",
            "lower it",
            on_machine=True,
        )


def _host(plan: PlannedRun, limit: float, where: str, *, on_machine: bool) -> Iterator[Finding]:
    """The stage that takes the most of a node's own memory against `limit` bytes, which `where` names."""
    try:
        budgets = {name: budget for name, budget in stage_budgets(plan.recipe).items() if name in plan.todo}
    except TagprError:  # batches_and_memory names it
        return
    name = max(budgets, key=lambda name: budgets[name].host_bytes, default="")
    if name and budgets[name].host_bytes > limit:
        yield Finding("", None, f"stages.{name}, {host_shortage(budgets[name], where)}", on_machine=on_machine)


def _processes(plan: PlannedRun, total: int) -> Iterator[Finding]:
    """The largest stage of a CPU run against the machine's memory. Weights and states that do not fit are a mistake;
    what inputs take beside them is counted at its limit, and a warning."""
    try:
        budgets = stage_budgets(plan.recipe)
    except TagprError:  # batches_and_memory names it
        return
    by_input = ("activations", "logits", "prmu activations")
    phases = [
        (sum(part.bytes for part in phase.parts if part.name not in by_input), phase.bytes, name)
        for name, budget in budgets.items()
        if name in plan.todo
        for phase in budget.phases
    ]
    count = plan.recipe.platform.devices
    states, _, first = max(phases, default=(0.0, 0.0, ""))
    _, needed, name = max(phases, key=lambda phase: phase[1], default=(0.0, 0.0, ""))
    if states * count > total:
        needed, name = states, first
    needed *= count
    if needed > total:
        yield Finding(
            f"stages.{name}",
            None,
            f"its processes take about {needed / GIB:.0f} GiB, and this machine has {total / GIB:.0f}",
            "use a smaller model, shorter sequences or fewer processes",
            warning=states * count <= total,
            on_machine=True,
        )


def cluster(plan: PlannedRun) -> Iterator[Finding]:
    """The nodes that the `cluster` block asks for against what the run takes."""
    block, platform = plan.recipe.cluster, plan.recipe.platform
    if "memory_gb" in block.model_fields_set:  # the default is nobody's node
        yield from _host(plan, block.memory_gb * GIB, f"cluster.memory_gb={block.memory_gb}", on_machine=False)
    if platform.device == "cpu" and block.shm_gb << 10 < platform.weight_bucket_mb:
        yield Finding(
            "cluster.shm_gb",
            block.shm_gb,
            f"the weight transfer alone takes platform.weight_bucket_mb={platform.weight_bucket_mb} of /dev/shm",
            "raise it",
        )
    try:
        budgets = stage_budgets(plan.recipe)
    except TagprError:
        return
    hours = sum(seconds for name in budgets if name in plan.todo for _, seconds, _ in budgets[name].seconds) / 3600
    if hours > block.time_limit_h * (1 + block.retries):
        yield Finding(
            "cluster.time_limit_h",
            block.time_limit_h,
            f"the stages take about {hours:.0f} hours, and a job starts {1 + block.retries} times",
            "raise it, or save checkpoints and raise cluster.retries",
            warning=True,
        )
