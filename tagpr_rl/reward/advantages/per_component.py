"""Advantages with each term of the reward normalised by itself (GDPO)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from tagpr_rl.reward.advantages.group import batch_advantages
from tagpr_rl.reward.components import Term


def per_component_advantages(
    rows: Sequence[Mapping[str, float]], terms: Sequence[Term], groups: Sequence[str], *, eps: float = 1e-6
) -> list[float]:
    """Advantages `[B]` with each term of the reward normalised by itself (GDPO, arXiv 2601.05242).

    Each term's value `[B]` is normalised within its group (`group_advantages`), the results are weighted and summed,
    and the sums are divided by their standard deviation over the batch. The batch's mean needs no subtraction: every
    group's sums add up to 0. A group in which no term differs counts in the batch's deviation, as in the paper; the
    caller leaves out responses that take no part.

    Differs from verl 0.9.1's `compute_gdpo_outcome_advantage`, which whitens over tokens, so that long responses
    weigh more in the deviation, and which asserts under the V1 trainers (it is given no components there).

    Args:
        rows: reward rows, one per response.
        terms: the stage's terms; those of weight 0 are left out.

    Raises:
        ValueError: as `group_advantages`.
    """
    sums = [0.0] * len(groups)
    for term in terms:
        if term.weight == 0:
            continue
        for i, value in enumerate(batch_advantages([term.value(row) for row in rows], groups)):
            sums[i] += term.weight * value
    if len(sums) < 2:
        return [0.0] * len(sums)
    mean = math.fsum(sums) / len(sums)
    std = math.sqrt(math.fsum((value - mean) ** 2 for value in sums) / (len(sums) - 1))
    return [value / (std + eps) for value in sums]
