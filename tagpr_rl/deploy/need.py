"""What a run needs of a cluster, what a given cluster lacks, and the command that starts the run there."""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tagpr_rl.config import Recipe
from tagpr_rl.config.placement import scorer_count
from tagpr_rl.types import TagprError

ROOT = Path(__file__).resolve().parents[2]
"""The checkout: what a job's working directory is a copy of."""

CPUS_PER_DEVICE = 3
"""verl reserves this many per device in its placement group (single_controller/ray/base.py, max_colocate_count)."""
CPUS_PER_RUN = 12
"""GRPO driver 1, TransferQueue controller 1 and up to 8 storage units, 2 for actors that are being placed."""


@dataclass(frozen=True, slots=True)
class Need:
    """What a run asks of Ray. Devices are Ray's "GPU", logical ones on the CPU; CPUs are a scheduling budget."""

    parts: tuple[float, ...]
    """Devices that must lie on one node, for each such group, largest first."""
    cpus: int
    """In all."""

    @property
    def devices(self) -> float:
        """Devices of all nodes."""
        return sum(self.parts)


@dataclass(frozen=True, slots=True)
class NodeSize:
    """One node of a cluster, as Ray counts it."""

    address: str
    devices: float
    cpus: float


def need(recipe: Recipe) -> Need:
    """What the recipe's platform and placement blocks ask of a Ray cluster."""
    platform, placement = recipe.platform, recipe.placement
    parts: list[float] = [platform.devices_per_node] * platform.nodes
    if placement.rollout == "separate":
        parts += [placement.rollout_devices_per_node] * placement.rollout_nodes
    if placement.prmu == "dedicated":
        parts += [placement.prmu_devices] * scorer_count(recipe.platform, placement)
    return Need(tuple(sorted(parts, reverse=True)), sum(map(_part_cpus, parts)) + CPUS_PER_RUN)


def _part_cpus(devices: float) -> int:
    return CPUS_PER_DEVICE * math.ceil(devices)


def node_devices(recipe: Recipe) -> int:
    """Devices of each node of a rendered cluster."""
    return recipe.cluster.devices_per_node or math.ceil(need(recipe).parts[0])


def node_count(recipe: Recipe) -> int:
    """Nodes of a rendered cluster: as few as the run's parts fit on."""
    size, parts = node_devices(recipe), need(recipe).parts
    nodes = [NodeSize(str(number), size, math.inf) for number in range(len(parts))]
    return len(set(_placement(parts, nodes).values()))


def node_cpus(recipe: Recipe) -> int:
    """CPUs that each node announces to Ray: the cluster then meets `need` wherever Ray places the rest."""
    return _part_cpus(node_devices(recipe)) + CPUS_PER_RUN


def node_cores(recipe: Recipe) -> int:
    """Cores of a node to ask a scheduler for. On the CPU they are the workers' threads; Ray's count is logical."""
    if recipe.cluster.cpus is not None:
        return recipe.cluster.cpus
    if recipe.platform.device == "cpu":
        return recipe.platform.threads * node_devices(recipe)
    return node_cpus(recipe)


def _placement(parts: Sequence[float], nodes: Sequence[NodeSize]) -> dict[int, int]:
    """Number of a part -> number of its node: first fit, largest part first. A part that fits nowhere is left out."""
    room = [(node.devices, node.cpus) for node in nodes]  # two of Ray's nodes may have one address
    places = {}
    for number, part in enumerate(parts):
        for place, (devices, cpus) in enumerate(room):
            if devices >= part and cpus >= _part_cpus(part):
                room[place] = (devices - part, cpus - _part_cpus(part))
                places[number] = place
                break
    return places


def shortages(run: Need, nodes: Sequence[NodeSize], free_devices: float, free_cpus: float) -> tuple[str, ...]:
    """What a cluster of `nodes` lacks for a run, one line each; empty if the run fits.

    `free_*` are what no other job holds now; they are compared only if the cluster as a whole is large enough.
    """
    places = _placement(run.parts, nodes)
    homeless = [part for number, part in enumerate(run.parts) if number not in places]
    cpus, devices = sum(node.cpus for node in nodes), sum(node.devices for node in nodes)
    lines = []
    if homeless:
        part, part_cpus = homeless[0], _part_cpus(homeless[0])
        if len(nodes) < len(run.parts):
            lines.append(f"nodes: {len(run.parts)} asked, {len(nodes)} alive")
        for place, node in enumerate(nodes):
            if place in places.values():
                continue
            if node.devices < part:
                lines.append(f"devices of node {node.address}: {part:g} asked, {node.devices:g} there")
            if node.cpus < part_cpus:
                lines.append(f"CPUs of node {node.address}: {part_cpus} asked, {node.cpus:g} there")
    if devices < run.devices:
        lines.append(f"devices in all: {run.devices:g} asked, {devices:g} there")
    if cpus < run.cpus:
        lines.append(f"CPUs in all: {run.cpus} asked, {cpus:g} there")
    if homeless and not lines:
        lines.append(f"a node with room for {homeless[0]:g} devices side by side")
    large_enough = not lines
    if large_enough and free_devices < run.devices:
        lines.append(f"free devices: {run.devices:g} asked, {free_devices:g} of {devices:g} are free")
    if large_enough and free_cpus < run.cpus:
        lines.append(f"free CPUs: {run.cpus} asked, {free_cpus:g} of {cpus:g} are free")
    return tuple(lines)


def storage(recipe: Recipe) -> str | None:
    """Absolute folder for runs on the cluster: `cluster.storage`, or `out` if that is absolute; else None."""
    if recipe.cluster.storage is not None:
        return recipe.cluster.storage
    return str(recipe.out) if recipe.out.is_absolute() else None


def submission_problems(recipe: Recipe, recipe_path: Path, *, in_place: bool = False) -> list[str]:
    """Why the recipe cannot be started by another machine as it stands, one line each.

    `in_place`: the job runs in this very checkout (Slurm), not in a copy that ends with the job.
    """
    lines = []
    if storage(recipe) is None and not in_place:
        lines.append("cluster.storage: not set; name the folder for runs that all nodes share, an absolute path")
    if not (ROOT / "launch.py").is_file():
        lines.append(f"{ROOT}: no checkout of the repository, whose files the job gets; run tagpr from one")
    elif not recipe_path.resolve().is_relative_to(ROOT):
        lines.append(f"{recipe_path}: not in this checkout, whose files the job gets; put it into recipes/")
    return lines


def run_command(
    recipe: Recipe, recipe_path: Path, overrides: Sequence[str], address: str | None, *, in_place: bool = False
) -> list[str]:
    """`python launch.py run ...` as it runs in the checkout, or a copy of it, on the cluster.

    `address` is the Ray address there (None = a private local Ray). The order matters: later overrides win.
    Raises TagprError with what `submission_problems` lists.
    """
    problems = submission_problems(recipe, recipe_path, in_place=in_place)
    if problems:
        raise TagprError("\n  ".join([f"recipe {recipe_path} cannot be submitted:", *problems]))
    relative = recipe_path.resolve().relative_to(ROOT)
    command = ["python", "launch.py", "run", relative.as_posix(), *overrides]
    if storage(recipe) is not None:
        command.append(f"out={storage(recipe)}")
    return command if address is None else [*command, f"platform.ray_address={address}"]


def shell(command: Sequence[str]) -> str:
    """The command as one line of shell."""
    return shlex.join(command)
