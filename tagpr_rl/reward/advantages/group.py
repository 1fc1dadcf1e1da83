"""Group-relative advantages in plain Python: a response is judged against the others to the same prompt."""

from __future__ import annotations

import math
from collections.abc import Sequence

EQUAL = 1e-9
"""Rewards no further apart than this count as equal: the difference is rounding, and it must not be amplified."""


def group_advantages(rewards: Sequence[float], *, norm_std: bool = True, eps: float = 1e-6) -> list[float]:
    """Advantages `[G]` of one group's rewards `[G]`: `(R_i - mean) / (std + eps)` (GRPO, arXiv 2402.03300).

    `std` is the sample standard deviation (divisor G - 1), as in verl 0.9.1
    `trainer/ppo/core_algos.py:compute_grpo_outcome_advantage`, of which this is the arithmetic. With
    `norm_std=False`, `R_i - mean` (Dr. GRPO, arXiv 2503.20783). Two differences: a group of one has advantage 0
    (there is nothing to compare with), while verl takes mean 0 and std 1 and so returns the reward itself; and a
    group whose rewards are equal but for rounding has advantages of exactly 0.

    Raises:
        ValueError: a reward that is not finite, or eps not above 0.
    """
    if not eps > 0:
        raise ValueError(f"eps must be above 0, got {eps!r}")
    for index, reward in enumerate(rewards):
        if not math.isfinite(reward):
            raise ValueError(f"reward {index} is {reward!r}; rewards must be finite")
    if len(rewards) < 2 or max(rewards) - min(rewards) <= EQUAL:
        return [0.0] * len(rewards)
    mean = math.fsum(rewards) / len(rewards)
    centred = [float(reward - mean) for reward in rewards]
    if not norm_std:
        return centred
    std = math.sqrt(math.fsum(value * value for value in centred) / (len(rewards) - 1))
    return [value / (std + eps) for value in centred]


def batch_advantages(rewards: Sequence[float], groups: Sequence[str], *, norm_std: bool = True) -> list[float]:
    """`group_advantages` of every group of a batch: rewards `[B]` and group names `[B]` -> advantages `[B]`."""
    advantages = [0.0] * len(rewards)
    for members in members_of(groups).values():
        values = group_advantages([rewards[i] for i in members], norm_std=norm_std)
        for i, value in zip(members, values, strict=True):
            advantages[i] = value
    return advantages


def members_of(groups: Sequence[str]) -> dict[str, list[int]]:
    """Group name -> the indices of its members, in order of first appearance."""
    members: dict[str, list[int]] = {}
    for i, group in enumerate(groups):
        members.setdefault(group, []).append(i)
    return members
