"""Group-relative advantages of one prompt's responses, in plain Python: what the trainer computes."""

from __future__ import annotations

import math
from collections.abc import Sequence


def group_advantages(rewards: Sequence[float], *, norm_std: bool = True, eps: float = 1e-6) -> list[float]:
    """Advantages `[G]` of one group's rewards `[G]`: `(R_i - mean) / (std + eps)`.

    `std` is the sample standard deviation (divisor G - 1), as in verl 0.9.1
    `trainer/ppo/core_algos.py:compute_grpo_outcome_advantage`, of which this is the arithmetic. With
    `norm_std=False`, `R_i - mean` (Dr. GRPO). One difference: a group of one has advantage 0 (there is
    nothing to compare with), where verl takes mean 0 and std 1 and so returns the reward itself.

    Raises:
        ValueError: a reward that is not finite, or eps not above 0.
    """
    if not eps > 0:
        raise ValueError(f"eps must be above 0, got {eps!r}")
    for index, reward in enumerate(rewards):
        if not math.isfinite(reward):
            raise ValueError(f"reward {index} is {reward!r}; rewards must be finite")
    if len(rewards) < 2:
        return [0.0] * len(rewards)
    mean = math.fsum(rewards) / len(rewards)
    centred = [float(reward - mean) for reward in rewards]
    if not norm_std:
        return centred
    std = math.sqrt(math.fsum(value * value for value in centred) / (len(rewards) - 1))
    return [value / (std + eps) for value in centred]
