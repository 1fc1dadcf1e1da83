"""Advantages from `reward.update` in the place of verl's, written token by token for the actor's loss.

verl's own arithmetic runs in float32, where rounding in a group of nearly equal rewards is divided by a deviation of
nearly 0; it knows no credit per step; and its GDPO asserts under the V1 trainers (core_algos.py:362 is handed no
reward components there). Everything else of verl's `_compute_advantage` (KL in the reward, rollout correction) stays.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from tagpr_rl.reward.advantages.step import ResponseParts
from tagpr_rl.reward.update import AdvantageRules, Credit


def rules_from(settings: Mapping[str, Any]) -> AdvantageRules:
    """The stage's rules from verl's config (verl_config._reward_keys)."""
    return AdvantageRules(**{str(key): value for key, value in settings.items()})


def token_advantages(credit: Credit, parts: ResponseParts | None, mask: torch.Tensor) -> torch.Tensor:
    """Advantage of each token of a response, float32 `[T]`; 0 where its mask `[T]` is 0."""
    found = torch.full(mask.shape, credit.advantage, dtype=torch.float32)
    if parts is not None and credit.steps:
        for step, value in zip(parts.steps, credit.steps, strict=True):
            found[step.start : step.end] += value
    return found * mask.to(torch.float32)


def nested(rows: Sequence[torch.Tensor]) -> torch.Tensor:
    """Rows of different lengths as the nested tensor that TransferQueue stores."""
    return torch.nested.as_nested_tensor(list(rows), layout=torch.jagged)


def credit_columns(
    advantages: torch.Tensor, credit: Credit | None, parts: ResponseParts | None, update: int
) -> dict[str, Any]:
    """Columns of a rollout line that say what the update made of a response.

    Read back from the trained tensor `advantages` `[T]`: a response's last token belongs to its answer, so what it
    has is the response's own advantage, and what a step's first token has besides is the step's. `update` is the
    step's update that the response was in; advantages are those of one update.
    """
    whole = float(advantages[-1]) if len(advantages) else 0.0
    found: dict[str, Any] = {"advantage": whole}
    if update:
        found["update"] = update
    if parts is not None and credit is not None and credit.steps:
        found["step_credit"] = [
            {"step": i, "tag": step.tag, "advantage": float(advantages[step.start]) - whole}
            for i, step in enumerate(parts.steps)
            if step.start < step.end
        ]
    if credit is not None and credit.why:
        found |= {"masked": True, "why": credit.why}
    return found
