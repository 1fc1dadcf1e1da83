"""The state of a training run: early stopping, and step checkpoints from which a killed run resumes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor

from tagpr_rl.files import write_json
from tagpr_rl.prmu.training.sharding import PrmuEngine

_STATE, _BEST, _RANDOM, _WEIGHTS = "progress.json", "best.safetensors", "random.safetensors", "engine"


class Checkpoints(Protocol):
    """The storage of step checkpoints. Only the first process calls it; all processes see the same folders."""

    every: int
    """Steps between checkpoints."""

    def saving(self, step: int) -> AbstractContextManager[Path]:
        """A folder to write into. The checkpoint exists once the block has ended without an error."""

    def newest(self) -> Path | None:
        """The folder of the checkpoint to resume from; None = start from step 0."""


@dataclass(slots=True)
class Progress:
    """The state of training besides weights, optimizer and random generators."""

    step: int = 0
    """Number of finished steps."""
    best_accuracy: float = -1.0
    waited: int = 0
    """Number of evaluations since the best one."""
    best: dict[str, Tensor] | None = None
    """Weights at the best evaluation, on the first process, and maybe nothing on the others; None before the first
    evaluation, on all of them."""

    def add(self, accuracy: float, engine: PrmuEngine) -> None:
        """Record one evaluation, and keep the weights if it is the best so far. Every process calls this."""
        self.waited += 1
        if accuracy > self.best_accuracy:
            self.best, self.best_accuracy, self.waited = engine.full_state(), accuracy, 0


def save(
    checkpoints: Checkpoints, progress: Progress, engine: PrmuEngine, scheduler: Any, generator: torch.Generator
) -> None:
    """Write a step checkpoint. Every process calls it."""
    with _same_folder(checkpoints, progress.step) as folder:
        engine.save(folder / _WEIGHTS)
        if dist.get_rank() == 0:
            save_file({"users": generator.get_state(), "torch": torch.get_rng_state()}, folder / _RANDOM)
            if progress.best:
                save_file({name: tensor.contiguous() for name, tensor in progress.best.items()}, folder / _BEST)
            schedule = {key: value for key, value in scheduler.state_dict().items() if key != "lr_lambdas"}
            state = {"step": progress.step, "best_accuracy": progress.best_accuracy, "waited": progress.waited}
            write_json(folder / _STATE, {**state, "schedule": schedule})


def restore(checkpoints: Checkpoints, engine: PrmuEngine, scheduler: Any, generator: torch.Generator) -> Progress:
    """Load the newest checkpoint into engine, schedule and generators; a new Progress if there is no checkpoint."""
    box = [str(checkpoints.newest() or "") if dist.get_rank() == 0 else ""]
    dist.broadcast_object_list(box, src=0)
    if not box[0]:
        return Progress()
    folder = Path(box[0])
    engine.load(folder / _WEIGHTS)
    raw = json.loads((folder / _STATE).read_text(encoding="utf-8"))
    scheduler.load_state_dict({**scheduler.state_dict(), **raw["schedule"]})
    for group, lr in zip(engine.optimizer.param_groups, scheduler.get_last_lr(), strict=True):
        group["lr"] = lr
    generators = load_file(folder / _RANDOM)  # equal in all processes
    generator.set_state(generators["users"])
    torch.set_rng_state(generators["torch"])
    best: dict[str, Tensor] | None = None
    if (folder / _BEST).is_file():
        best = load_file(folder / _BEST) if dist.get_rank() == 0 else {}
    return Progress(raw["step"], raw["best_accuracy"], raw["waited"], best)


@contextmanager
def _same_folder(checkpoints: Checkpoints, step: int) -> Iterator[Path]:
    """The first process's checkpoint folder, on every process. The checkpoint exists once all of them have written."""
    if dist.get_rank() != 0:
        box = [""]
        dist.broadcast_object_list(box, src=0)
        yield Path(box[0])
        dist.barrier()
        return
    with checkpoints.saving(step) as folder:
        dist.broadcast_object_list([str(folder)], src=0)
        yield folder
        dist.barrier()
