"""PRMU's training engine on ZeRO (prmu.training.sharding.PrmuEngine), in fp32 as with FSDP2."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tagpr_rl.backend.deepspeed.zero import ZeroSettings, import_deepspeed, master_weights, zero_config
from tagpr_rl.types import TagprError

_TAG = "native"


class ZeroPrmuEngine:
    """ZeRO 1, 2 or 3 around a PrmuModel."""

    def __init__(
        self,
        settings: ZeroSettings,
        model: Any,
        optimizer: Callable[[torch.nn.Module], torch.optim.Optimizer],
        grad_clip: float,
        device: torch.device,
    ) -> None:
        deepspeed = import_deepspeed(device.type)
        deepspeed.init_distributed(dist_init_required=False, verbose=False)
        hidden = int(model.backbone.config.hidden_size)
        config = zero_config(settings, bf16=False, clip=grad_clip, hidden=hidden, device=device.type)
        self.optimizer = optimizer(model)
        self.model, _, _, _ = deepspeed.initialize(model=model, optimizer=self.optimizer, config=config)

    def backward(self, loss: torch.Tensor, last: bool) -> None:
        """Add the gradients of a micro-batch; `last` completes the update's."""
        self.model.set_gradient_accumulation_boundary(last)
        self.model.backward(loss)

    def update(self) -> float:
        """Clip and update; returns the norm before clipping (infinite: the update was skipped)."""
        self.model.step()
        return float(self.model.get_global_grad_norm())

    def full_state(self) -> dict[str, torch.Tensor]:
        """The whole fp32 weights, on every process's CPU."""
        return dict(master_weights(self.model.module))

    def save(self, folder: Path) -> None:
        """Write weights and optimizer in DeepSpeed's own form."""
        self.model.save_checkpoint(str(folder), tag=_TAG, save_latest=False)

    def load(self, folder: Path) -> None:
        """Read what `save` wrote, with the same number of processes."""
        path, _ = self.model.load_checkpoint(str(folder), tag=_TAG)
        if path is None:
            raise TagprError(f"{folder}: DeepSpeed finds no checkpoint there; delete {folder.parent} to go without it")
