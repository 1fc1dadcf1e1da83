"""PRMU's loss: weighted individual and generic Bradley-Terry, plus a term that centres the scores."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, slots=True)
class PairLoss:
    """Scalars of one batch; `total` carries the gradient."""

    total: Tensor
    individual: Tensor
    """mean of -log sigmoid(s_u(chosen) - s_u(rejected))"""
    generic: Tensor
    """the same with e_0 only"""
    centre: Tensor
    """mean of (s_u(chosen) + s_u(rejected))^2"""


def pair_loss(
    chosen: Tensor,
    rejected: Tensor,
    generic_chosen: Tensor,
    generic_rejected: Tensor,
    *,
    individual_weight: float,
    centre: float,
) -> PairLoss:
    """w * BT(s_u) + (1 - w) * BT(s_0) + c * mean((s_u(chosen) + s_u(rejected))^2); scores are raw, `[n]`.

    The mix is that of P-RLHF (arXiv 2402.05133: individual and user-agnostic terms); the centring term is TRL's
    `center_rewards_coefficient`. Bradley-Terry fixes only differences, so without it scores may drift.
    `individual_weight` w in [0, 1], `centre` c >= 0.
    """
    individual = -F.logsigmoid(chosen - rejected).mean()
    generic = -F.logsigmoid(generic_chosen - generic_rejected).mean()
    centred = (chosen + rejected).square().mean()
    total = individual_weight * individual + (1 - individual_weight) * generic + centre * centred
    return PairLoss(total, individual.detach(), generic.detach(), centred.detach())
