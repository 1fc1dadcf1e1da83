"""One step of PRMU's training: the loss of a batch of pairs, its gradient, and the optimizer's update."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from tagpr_rl.prmu.accuracy import own
from tagpr_rl.prmu.inputs import TEXT, TextEncoder, collate
from tagpr_rl.prmu.model import PrmuModel
from tagpr_rl.prmu.training.config import PrmuConfig
from tagpr_rl.prmu.training.sharding import PrmuEngine
from tagpr_rl.prmu.users.vectors import drop_users
from tagpr_rl.types import PairRow


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


def batch_loss(
    model: PrmuModel,
    encoder: TextEncoder,
    pairs: Sequence[PairRow],
    config: PrmuConfig,
    draws: Tensor | None = None,
) -> tuple[PairLoss, Tensor]:
    """Loss of some pairs, and the number of pairs whose chosen response scores higher for the user.

    With `draws`, uniform in [0, 1) and one a pair, some users are hidden from the model: see
    `PrmuConfig.user_dropout`. None hides nobody.
    """
    requests = [request for pair in pairs for request in own(pair)]
    if encoder.user == TEXT and draws is not None:
        anonymous = draws >= config.individual_weight
        requests = [request.generic() if anonymous[i // 2] else request for i, request in enumerate(requests)]
    known = model.table.rows([pair.user_id for pair in pairs])
    batch = collate(encoder, requests, [i // 2 for i in range(len(requests))], known)
    if draws is not None:
        batch.known = drop_users(batch.known, config.user_dropout, draws)
    user, generic = model(batch.to(model.head.weight.device))
    loss = pair_loss(
        user[0::2], user[1::2], generic[0::2], generic[1::2],
        individual_weight=config.individual_weight, centre=config.centre,
    )  # fmt: skip
    return loss, (user[0::2] > user[1::2]).float().sum().detach()


def optimizer_step(
    engine: PrmuEngine,
    encoder: TextEncoder,
    rows: Sequence[PairRow],
    config: PrmuConfig,
    draws: Tensor,
) -> dict[str, float]:
    """One optimizer step on this process's pairs `rows`, with a draw for each of them (`batch_loss`). The returned
    metrics are means over all processes.

    Raises FloatingPointError if the loss or the gradient norm is not finite.
    """
    started = time.perf_counter()
    size = config.micro_batch_size or len(rows)
    sums = torch.zeros(4)
    for i in range(0, len(rows), size):
        part = rows[i : i + size]
        loss, right = batch_loss(engine.model, encoder, part, config, draws[i : i + size])
        share = len(part) / len(rows)
        engine.backward(loss.total * share, last=i + size >= len(rows))
        sums += torch.stack(
            [loss.total.detach() * share, loss.individual * share, loss.generic * share, right / len(rows)]
        ).cpu()
    norm = engine.update()
    dist.all_reduce(sums)
    total, individual, generic, accuracy = (sums / dist.get_world_size()).tolist()
    if not (math.isfinite(total) and math.isfinite(norm)):
        raise FloatingPointError(f"prmu: loss {total}, gradient norm {norm}; lower prmu.lr")
    return {
        "loss": total, "loss/individual": individual, "loss/generic": generic, "accuracy": accuracy,
        "grad_norm": norm, "seconds": time.perf_counter() - started,
    }  # fmt: skip


@torch.no_grad()
def pair_accuracy(model: PrmuModel, encoder: TextEncoder, rows: Sequence[PairRow], config: PrmuConfig) -> float:
    """Share of the pairs whose chosen response scores higher, in [0, 1]: each process computes its share of them.

    All processes run the model equally often, since sharded weights are gathered by all.
    """
    model.eval()
    rank, world = dist.get_rank(), dist.get_world_size()
    size, share = config.micro_batch_size or config.batch_size // world, rows[rank::world]
    right = torch.zeros(1)
    for i in range(0, -(-len(rows) // world), size):
        part = share[i : i + size]
        counted = batch_loss(model, encoder, part or rows[:1], config)[1].cpu()
        right += counted if part else 0.0
    dist.all_reduce(right)
    return float(right) / len(rows)


def build_optimizer(model: torch.nn.Module, config: PrmuConfig) -> torch.optim.Optimizer:
    """AdamW with two learning rates; vectors (norms, e_0, biases) get no weight decay."""
    groups: dict[tuple[float, float], list[Tensor]] = {}
    for name, parameter in model.named_parameters():
        lr = config.lr if name.startswith("backbone.") else config.head_lr
        decay = config.weight_decay if parameter.ndim > 1 else 0.0
        groups.setdefault((lr, decay), []).append(parameter)
    settings = [{"params": p, "lr": lr, "weight_decay": decay} for (lr, decay), p in groups.items()]
    return torch.optim.AdamW(settings, betas=(0.9, 0.98))


def learning_rate_scale(step: int, steps: int, warmup: int) -> float:
    """Factor in (0, 1] for `step` (from 0): linear warm-up, then a cosine that ends at 0.05."""
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    return 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * progress))
