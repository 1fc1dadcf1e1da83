"""The settings of PRMU's training."""

from __future__ import annotations

from dataclasses import dataclass

from tagpr_rl.prmu.inputs import PROFILES, ROWS, Limits
from tagpr_rl.prmu.model import PrmuModelConfig


@dataclass(frozen=True, slots=True)
class PrmuConfig:
    """Settings of one training run. The defaults were measured on the embedded world with a tiny backbone."""

    steps: int = 450
    batch_size: int = 8
    """Pairs per step, over all processes."""
    micro_batch_size: int = 0
    """Pairs per forward pass of one process; 0 = its whole share."""
    lr: float = 2e-3
    """Learning rate of the backbone. A large backbone needs about 1e-5."""
    head_lr: float = 3e-3
    """Learning rate of all weights that PRMU adds to the backbone."""
    warmup: int = 20
    weight_decay: float = 0.01
    grad_clip: float = 1.0
    individual_weight: float = 0.8
    centre: float = 0.01
    user: str = PROFILES
    """Source of the user vector: see `PrmuModelConfig.user`."""
    identity: bool = True
    """Give each training user a vector o_u. For user "attention" only: "identity" always has one, the others never."""
    user_dropout: float = 0.5
    """Probability that a training pair's user counts as unknown (no o_u), in [0, 1]. With user "text" there is no o_u;
    there a share of 1 - individual_weight of the pairs is trained without the profile."""
    heads: int = 4
    window: int = 6
    max_tokens: int = 1024
    max_items: int = 16
    max_item_tokens: int = 128
    dtype: str = "float32"
    """Number format of the backbone's forward pass: see `PrmuModelConfig.dtype`."""
    recompute: bool = False
    """Compute the inner states of every block again in the backward pass instead of keeping them."""
    unseen_fraction: float = 0.15
    """Share of the users held out, in (0, 1), if no validation pairs are given."""
    seen_fraction: float = 0.1
    """Share of the other users' records held out, in [0, 1)."""
    eval_every: int = 0
    """Steps between measurements of the accuracy on at most 256 pairs of unseen users; 0 = only at the end."""
    patience: int = 0
    """Stop after this many measurements without a better accuracy, and keep the best weights; 0 = never."""
    device: str = "auto"
    """"auto", "cpu" or "cuda"."""
    seed: int = 0

    def model(self) -> PrmuModelConfig:
        """The settings that the model itself needs."""
        limits = Limits(self.max_tokens, self.max_items, self.max_item_tokens)
        return PrmuModelConfig(self.user, self.heads, self.window, limits, self.dtype)

    @property
    def has_table(self) -> bool:
        """Whether training users get a vector o_u."""
        return self.user == ROWS or (self.user == PROFILES and self.identity)
