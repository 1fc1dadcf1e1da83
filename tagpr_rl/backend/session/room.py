"""Room for a run in its Ray cluster. Ray itself waits for ever for devices that are missing or that others hold."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from tagpr_rl.config import Recipe
from tagpr_rl.deploy.need import NodeSize, need, shortages
from tagpr_rl.types import TagprError

PRIVATE_S = 5.0
"""Seconds until Ray counts what a cluster of this machine alone has."""
RESERVE_S = 20.0
"""Seconds that a stage waits for devices which were free when it began."""
GIVE_WAY_LOOKS, PENDING_LOOKS = 2, 4
"""Looks (every `parts.LOOK_S` seconds) at a placement group that waits, until its run ends: if an older run's waits
as well, and else. Of two runs that each hold half of a cluster one so goes on."""
_JOB_HEX = 8
"""A placement group's id ends with that of its job (src/ray/common/id.h, PlacementGroupID::Of)."""


def wait_for_room(recipe: Recipe) -> None:
    """Wait until the cluster has, free, what the recipe asks.

    TagprError with all that is missing, after `cluster.wait_s` seconds, or soon if the cluster is the run's own.
    """
    address, wait_s = recipe.platform.ray_address, recipe.cluster.wait_s
    deadline = time.monotonic() + (wait_s if address else PRIVATE_S)
    reported: tuple[str, ...] = ()
    while missing := _missing(recipe):
        if time.monotonic() >= deadline:
            raise TagprError(_refusal(recipe, missing))
        if address and missing != reported:
            print(f"waiting for the Ray cluster: {'; '.join(missing)}", file=sys.stderr, flush=True)
            reported = missing
        time.sleep(min(1.0, max(0.0, deadline - time.monotonic())))


def _refusal(recipe: Recipe, missing: Iterable[str]) -> str:
    platform, lines = recipe.platform, "\n  ".join(missing)
    if platform.ray_address:
        return (
            f"the Ray cluster at {platform.ray_address} is too small for this run (waited {recipe.cluster.wait_s:g} s):"
            f"\n  {lines}\nAdd nodes, end other jobs, or ask for fewer devices (platform, placement) "
            "(cluster.wait_s = how long to wait)."
        )
    return (
        f"this machine is too small for this run (platform.nodes={platform.nodes}, "
        f"platform.devices_per_node={platform.devices_per_node}, and what placement adds):\n  {lines}\n"
        "Without platform.ray_address a run has this machine alone: name a Ray cluster there, make one with "
        "`tagpr cluster render`, or ask for fewer devices (platform, placement)."
    )


def _missing(recipe: Recipe) -> tuple[str, ...]:
    import ray

    nodes = [
        NodeSize(node["NodeManagerAddress"], node["Resources"].get("GPU", 0.0), node["Resources"].get("CPU", 0.0))
        for node in ray.nodes()
        if node["Alive"]
    ]
    free = ray.available_resources()
    return shortages(need(recipe), nodes, free.get("GPU", 0.0), free.get("CPU", 0.0))


def free_devices() -> float:
    """Devices (Ray's "GPU") that are free now."""
    import ray

    return float(ray.available_resources().get("GPU", 0.0))


@contextmanager
def reserved(nodes: int, devices_per_node: int, wait_s: float = RESERVE_S) -> Iterator[Any]:
    """A placement group with a bundle of devices and as many CPUs for each node, all of them or none.

    TagprError after `wait_s` seconds without room for it.
    """
    import ray
    from ray.util.placement_group import placement_group

    group = placement_group([{"GPU": devices_per_node, "CPU": devices_per_node}] * nodes, strategy="PACK")
    try:
        if not group.wait(wait_s):
            raise TagprError(_no_room([[devices_per_node] * nodes], wait_s))
        yield group
    finally:
        ray.util.remove_placement_group(group)


def _no_room(groups: Sequence[Sequence[float]], waited_s: float) -> str:
    """`groups`: the devices of each bundle of the placement groups that wait."""
    import ray

    devices = ray.cluster_resources().get("GPU", 0.0)
    asked = " and ".join(" + ".join(f"{size:g}" for size in sizes) for sizes in groups)
    return (
        f"no room in the Ray cluster: {asked} devices are asked, and {free_devices():g} of {devices:g} are free after "
        f"{waited_s:.0f} s; other runs hold the rest. End them, add nodes, or ask for fewer devices; `tagpr resume` "
        "goes on from the last checkpoint"
    )


class PendingGroups:
    """Judges looks at the cluster's placement groups: verl waits for its own without a limit
    (single_controller/ray/base.py:160)."""

    def __init__(self, job: str) -> None:
        """`job`: this job's id in hex."""
        self._job = job
        self._looks: Counter[str] = Counter()

    def judge(self, table: Mapping[str, Mapping[str, Any]], look_s: float) -> None:
        """TagprError if a group of this job has waited for too long. `table`: ray.util.placement_group_table()."""
        pending = [key for key, group in table.items() if group["state"] == "PENDING"]
        own = [key for key in pending if key[-_JOB_HEX:] == self._job]
        self._looks = Counter({key: self._looks[key] + 1 for key in own})
        older = any(_job_number(key) < _job_number(self._job) for key in pending)
        limit = GIVE_WAY_LOOKS if older else PENDING_LOOKS
        if any(count > limit for count in self._looks.values()):
            sizes = [[bundle.get("GPU", 0.0) for bundle in table[key]["bundles"].values()] for key in own]
            raise TagprError(_no_room(sizes, limit * look_s))


def _job_number(key: str) -> int:
    return int.from_bytes(bytes.fromhex(key[-_JOB_HEX:]), "little")  # Ray counts jobs from 1


def end_actor(actor: Any, devices: float | None, timeout_s: float = 60.0) -> None:
    """End a stage's driver actor; wait until what it started is gone.

    The next stage uses the same actor names and devices, and Ray frees both some time after a death. `devices`: as many
    were free before; None = others use the cluster, too, and may have taken some meanwhile.
    """
    import ray

    ray.kill(actor, no_restart=True)
    job, deadline = ray.get_runtime_context().get_job_id(), time.monotonic() + timeout_s
    while True:
        table = ray.util.placement_group_table()
        groups = [key for key, group in table.items() if key[-_JOB_HEX:] == job and group["state"] != "REMOVED"]
        names = ray.util.list_named_actors()
        if not names and not groups and (devices is None or free_devices() >= devices):
            return
        if time.monotonic() > deadline:
            raise RuntimeError(
                f"{timeout_s} s after the end of a stage its actors {names} are alive, it holds {len(groups)} "
                f"placement groups, or {free_devices()} devices are free where {devices} were; the run can be started "
                "again and goes on"
            )
        time.sleep(0.1)
