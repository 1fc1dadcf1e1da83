"""How PRMU's weights are sharded and updated: FSDP2 here; other engines are passed in."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from tagpr_rl.prmu.model import PrmuModel


class PrmuEngine(Protocol):
    """A sharded model with its optimizer. Every process calls every method."""

    model: Any
    """Called like PrmuModel."""
    optimizer: torch.optim.Optimizer
    """Its parameter groups' learning rates are the ones in force."""

    def backward(self, loss: Tensor, last: bool) -> None:
        """Add the gradients of a micro-batch; `last` completes the update's."""

    def update(self) -> float:
        """Clip, update, and forget the gradients; returns the norm before clipping. A norm that is not finite
        updates nothing."""

    def full_state(self) -> dict[str, Tensor]:
        """The whole weights on the CPU of the first process (others may get an empty dict)."""

    def save(self, folder: Path) -> None:
        """Write weights and optimizer, as they are sharded, to a new folder."""

    def load(self, folder: Path) -> None:
        """Read what `save` wrote in the same run."""


MakeEngine = Callable[[PrmuModel, Callable[[torch.nn.Module], torch.optim.Optimizer], float, torch.device], PrmuEngine]
"""(model, builder of the optimizer, largest gradient norm, device) -> engine."""


class Fsdp2Engine:
    """FSDP2 over all processes: each of the backbone's blocks, then the rest."""

    def __init__(
        self,
        model: PrmuModel,
        optimizer: Callable[[torch.nn.Module], torch.optim.Optimizer],
        grad_clip: float,
        device: torch.device,
    ) -> None:
        self.model: Any = model.to(device)
        self.grad_clip = grad_clip
        mesh = init_device_mesh(device.type, (dist.get_world_size(),))
        blocks = set(getattr(model.backbone, "_no_split_modules", None) or ())
        for module in model.backbone.modules():
            if type(module).__name__ in blocks:
                fully_shard(module, mesh=mesh)
        fully_shard(model, mesh=mesh)
        self.optimizer = optimizer(model)  # of the sharded weights

    def backward(self, loss: Tensor, last: bool) -> None:
        """See PrmuEngine."""
        # Set before backward: FSDP2 reads it when gradients arrive.
        self.model.set_requires_gradient_sync(last)
        loss.backward()

    def update(self) -> float:
        """See PrmuEngine."""
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.grad_clip)
        whole: Tensor = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
        if torch.isfinite(whole):
            self.optimizer.step()
        self.optimizer.zero_grad()
        return float(whole)

    def full_state(self) -> dict[str, Tensor]:
        """See PrmuEngine."""
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        state: dict[str, Any] = get_model_state_dict(self.model, options=options)
        return {name: tensor.clone() for name, tensor in state.items()}

    def save(self, folder: Path) -> None:
        """See PrmuEngine; another number of processes may load it."""
        weights, optimizer = get_state_dict(self.model, self.optimizer)
        dcp.save({"weights": weights, "optimizer": optimizer}, checkpoint_id=folder)

    def load(self, folder: Path) -> None:
        """See PrmuEngine."""
        weights, optimizer = get_state_dict(self.model, self.optimizer)
        state: dict[str, Any] = {"weights": weights, "optimizer": optimizer}
        dcp.load(state, checkpoint_id=folder)
        set_state_dict(
            self.model, self.optimizer, model_state_dict=state["weights"], optim_state_dict=state["optimizer"]
        )
