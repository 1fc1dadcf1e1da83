"""FSDP2 checkpoints of another number of processes: each process reads its own rows of every tensor.

verl 0.9.1 reads the file of its own rank and world size alone (fsdp_checkpoint_manager.py:214). Its files are torch
pickles of DTensors, one a process, so that the rows of all of them make a tensor whole. The files are mapped, and a
process copies its own rows out of them; no process holds a whole model.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor, Shard
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset
from verl.utils.checkpoint.fsdp_checkpoint_manager import FSDPCheckpointManager

from tagpr_rl.types import TagprError

_MODEL = re.compile(r"model_world_size_(\d+)_rank_(\d+)\.pt")


class ReshardingCheckpointManager(FSDPCheckpointManager):
    """verl's manager, which also loads what another number of processes saved."""

    def load_checkpoint(
        self, local_path: str | None, hdfs_path: str | None = None, del_local_after_load: bool = False
    ) -> None:
        """Restore weights, optimizer, LR schedule, and random generators if the number of processes is the same.

        TagprError if the checkpoint has not the files of all its processes.
        """
        world = self.world_size if local_path is None else saved_world(Path(local_path))
        if local_path is None or world == self.world_size:
            super().load_checkpoint(local_path, hdfs_path, del_local_after_load)
            return
        folder = Path(local_path)
        own = dict(self.model.state_dict())
        if self.should_load_model:
            self.model.load_state_dict(resharded(_files(folder, "model", world), own))
        if self.should_load_optimizer:
            self.optimizer.load_state_dict(self._optimizer(_files(folder, "optim", world)))
        if self.should_load_extra:  # the schedule is the same on every process
            schedule = _read(folder / f"extra_state_world_size_{world}_rank_0.pt")["lr_scheduler"]
            if schedule is not None and self.lr_scheduler is not None:
                self.lr_scheduler.load_state_dict(schedule)
        dist.barrier()

    def _optimizer(self, saved: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """The optimizer's state of this process. Its tensors are numbered as the weights are."""
        weights = [weight for group in self.optimizer.param_groups for weight in group["params"]]
        state = {}
        for number in saved[0]["state"]:
            rows = [own["state"][number] for own in saved]
            like = {key: weights[number] if isinstance(rows[0][key], DTensor) else rows[0][key] for key in rows[0]}
            state[number] = resharded(rows, like)
        return {**saved[0], "state": state}


def resharded(saved: Sequence[Mapping[str, Any]], like: Mapping[str, Any]) -> dict[str, Any]:
    """`saved`: the tensors of each process by name. The same tensors as this process holds those of `like`."""
    return {
        name: _own_rows([own[name] for own in saved], like[name]) if isinstance(like[name], DTensor) else value
        for name, value in saved[0].items()
    }


def _own_rows(shards: Sequence[DTensor], like: DTensor) -> DTensor:
    """The part of a tensor that this process holds of `like`, out of all processes' `shards` of it."""
    kept = _one_group(shards)
    shape, offset = compute_local_shape_and_global_offset(like.shape, like.device_mesh, like.placements)
    dim = next((place.dim for place in like.placements if isinstance(place, Shard)), 0)
    first, last = offset[dim], offset[dim] + shape[dim]
    rows, at = [], 0
    for local in kept:
        size = local.shape[dim]
        low, high = max(first, at), min(last, at + size)
        if low < high:
            rows.append(local.narrow(dim, low - at, high - low))
        at += size
    whole = torch.cat(rows, dim) if rows else kept[0].narrow(dim, 0, 0)
    local = whole.to(device=like.to_local().device).clone()
    mesh, places = like.device_mesh, like.placements
    return DTensor.from_local(local, mesh, places, run_check=False, shape=like.shape, stride=like.stride())


def _one_group(shards: Sequence[DTensor]) -> list[torch.Tensor]:
    """The local tensors that make one copy: with hybrid sharding the first `fsdp_size` processes hold a whole one."""
    copies = 1
    for size, place in zip(shards[0].device_mesh.shape, shards[0].placements, strict=True):
        copies *= 1 if isinstance(place, Shard) else size
    return [shard._local_tensor for shard in shards[: len(shards) // copies]]


def saved_world(folder: Path) -> int:
    """The number of processes that saved the checkpoint. TagprError if the file of one is missing."""
    names = [match for path in folder.iterdir() if (match := _MODEL.fullmatch(path.name))]
    worlds = {int(match[1]) for match in names}
    if len(worlds) != 1 or len(names) != max(worlds):
        raise TagprError(
            f"{folder}: {len(names)} of {max(worlds, default=0)} processes' weights are there; go on from a checkpoint "
            "that is whole, or delete it to start the stage over"
        )
    return worlds.pop()


def _files(folder: Path, what: str, world: int) -> list[Mapping[str, Any]]:
    return [_read(folder / f"{what}_world_size_{world}_rank_{rank}.pt") for rank in range(world)]


def _read(file: Path) -> Any:
    """A file's values; tensors stay in the file until they are used. The run wrote it, and its hash was compared."""
    return torch.load(file, map_location="cpu", mmap=True, weights_only=False)
