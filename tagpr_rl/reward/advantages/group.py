"""Group-relative advantages in plain Python: of one group's rewards, or of a batch's reward components."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

EQUAL = 1e-9
"""Rewards that lie no further apart than this are equal: what is left is rounding, and it must not be amplified."""


def group_advantages(rewards: Sequence[float], *, norm_std: bool = True, eps: float = 1e-6) -> list[float]:
    """Advantages `[G]` of one group's rewards `[G]`: `(R_i - mean) / (std + eps)` (GRPO, arXiv 2402.03300).

    `std` is the sample standard deviation (divisor G - 1), as in verl 0.9.1
    `trainer/ppo/core_algos.py:compute_grpo_outcome_advantage`, of which this is the arithmetic. With
    `norm_std=False`, `R_i - mean` (Dr. GRPO, arXiv 2503.20783). Two differences: a group of one has advantage 0
    (there is nothing to compare with), where verl takes mean 0 and std 1 and so returns the reward itself; and a
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
    found = [0.0] * len(rewards)
    for members in members_of(groups).values():
        values = group_advantages([rewards[i] for i in members], norm_std=norm_std)
        for i, value in zip(members, values, strict=True):
            found[i] = value
    return found


def per_component_advantages(
    components: Mapping[str, Sequence[float]],
    weights: Mapping[str, float],
    groups: Sequence[str],
    *,
    eps: float = 1e-6,
) -> list[float]:
    """Advantages `[B]` with each reward component normalised by itself (GDPO, arXiv 2601.05242).

    Each component `[B]` is normalised within its group (`group_advantages`), the results are weighted and summed,
    and the sums are divided by their standard deviation over the batch. The batch's mean needs no subtraction: every
    group's sums add up to 0. Responses whose sum is 0 to rounding in a whole group (no component differs) count in
    the batch's deviation, as in the paper; the caller leaves out those that take no part.

    Differs from verl 0.9.1's `compute_gdpo_outcome_advantage`, which whitens over tokens, so that long responses
    weigh more in the deviation, and which asserts under the V1 trainers (it is given no components there).

    Raises:
        ValueError: as `group_advantages`.
    """
    sums = [0.0] * len(groups)
    for name, values in components.items():
        if weights[name] == 0:
            continue
        for i, value in enumerate(batch_advantages(values, groups)):
            sums[i] += weights[name] * value
    if len(sums) < 2:
        return [0.0] * len(sums)
    mean = math.fsum(sums) / len(sums)
    std = math.sqrt(math.fsum((value - mean) ** 2 for value in sums) / (len(sums) - 1))
    return [value / (std + eps) for value in sums]


def members_of(groups: Sequence[str]) -> dict[str, list[int]]:
    """Group name -> the indices of its members, in order of first appearance."""
    found: dict[str, list[int]] = {}
    for i, group in enumerate(groups):
        found.setdefault(group, []).append(i)
    return found
