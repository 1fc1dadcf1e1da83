"""Advantages from `reward.update` in place of verl's, written token by token for the actor's loss.

verl's own arithmetic runs in float32, where rounding in a group of nearly equal rewards is divided by a deviation of
nearly 0. It knows no credit per step, and its GDPO asserts under the V1 trainers (core_algos.py:362 gets no reward
components there). Everything else of verl's `_compute_advantage` (KL in the reward, rollout correction) stays.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from tagpr_rl.reward.components import Term
from tagpr_rl.reward.response import ResponseParts
from tagpr_rl.reward.update import AdvantageRules, Credit


@dataclass(frozen=True, slots=True)
class TokenCredit:
    """What an update made of one response."""

    credit: Credit
    parts: ResponseParts | None
    """Its steps with their tokens; None unless credit is per step."""
    update: int
    """Number of the update within the step; advantages are those of one update."""


def terms_from(settings: Any) -> tuple[Term, ...]:
    """The terms of the stage's reward from verl's config (`reward.reward_kwargs`, see overrides.py)."""
    return tuple(
        Term(str(term["name"]), float(term["weight"]), str(term["fn"]), bool(term["gate"])) for term in settings.terms
    )


def rules_from(settings: Any) -> AdvantageRules:
    """The stage's rules from verl's config (`reward.reward_kwargs`)."""
    own = {str(key): value for key, value in settings.advantage.items()}
    return AdvantageRules(**own, terms=terms_from(settings))


def token_advantages(credit: Credit, parts: ResponseParts | None, mask: torch.Tensor) -> torch.Tensor:
    """Advantage of each token of a response, float32 `[T]`; 0 if its mask `[T]` is 0."""
    advantages = torch.full(mask.shape, credit.advantage, dtype=torch.float32)
    if parts is not None and credit.steps:
        for step, value in zip(parts.steps, credit.steps, strict=True):
            advantages[step.start : step.end] += value
    return advantages * mask.to(torch.float32)


def nested(rows: Sequence[torch.Tensor]) -> torch.Tensor:
    """Rows of different lengths as the nested tensor that TransferQueue stores."""
    return torch.nested.as_nested_tensor(list(rows), layout=torch.jagged)


def credit_columns(advantages: torch.Tensor, given: TokenCredit | None) -> dict[str, Any]:
    """Columns of a rollout line that say what the update made of a response.

    Read back from the trained tensor `advantages` `[T]`: a response's last token belongs to its answer, so its value
    is the response's own advantage. The difference of a step's first token to it is the step's.
    """
    whole = float(advantages[-1]) if len(advantages) else 0.0
    columns: dict[str, Any] = {"advantage": whole}
    if given is None:
        return columns
    if given.update:
        columns["update"] = given.update
    if given.parts is not None and given.credit.steps:
        columns["step_credit"] = [
            {"step": i, "tag": step.tag, "advantage": float(advantages[step.start]) - whole}
            for i, step in enumerate(given.parts.steps)
            if step.start < step.end
        ]
    if given.credit.why:
        columns |= {"masked": True, "why": given.credit.why}
    return columns
