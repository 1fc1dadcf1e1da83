"""Training PRMU: a plain torch loop on FSDP2 (or an engine passed in), on one process or under torchrun."""

from __future__ import annotations

import json
import math
import random
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.distributed as dist
from rich.console import Console
from rich.progress import track
from torch import Tensor

from tagpr_rl.files import write_json
from tagpr_rl.prmu.accuracy import evaluate, own, score_statistics
from tagpr_rl.prmu.inputs import PROFILES, ROWS, TEXT, Limits, TextEncoder, collate
from tagpr_rl.prmu.model import PrmuModel, PrmuModelConfig, new_model, write_config
from tagpr_rl.prmu.serving.score import Scorer
from tagpr_rl.prmu.training.checkpoints import Checkpoints, Progress, restore, save, trim
from tagpr_rl.prmu.training.loss import PairLoss, pair_loss
from tagpr_rl.prmu.training.pairs import PairRow, PairSplit, check_leakage, check_pair, split_by_user, users_of
from tagpr_rl.prmu.training.sharding import Fsdp2Engine, MakeEngine, PrmuEngine
from tagpr_rl.prmu.users.vectors import UserTable, drop_users
from tagpr_rl.types import TagprError


@dataclass(frozen=True, slots=True)
class PrmuConfig:
    """Settings of one training run. All defaults are ours, measured on the embedded world with a tiny backbone."""

    steps: int = 450
    batch_size: int = 8
    """Pairs per step, over all processes."""
    micro_batch_size: int = 0
    """Pairs per forward pass of one process; 0 = its whole share."""
    lr: float = 2e-3
    """Of the backbone. A large backbone wants 1e-5 or so."""
    head_lr: float = 3e-3
    """Of everything PRMU adds."""
    warmup: int = 20
    weight_decay: float = 0.01
    grad_clip: float = 1.0
    individual_weight: float = 0.8
    centre: float = 0.01
    user: str = PROFILES
    """Where the user is looked for: model.PrmuModelConfig.user."""
    identity: bool = True
    """Give users of the training set an o_u (user "attention"; "identity" always does, the others never)."""
    user_dropout: float = 0.5
    """Probability that a training pair's user counts as unknown (no o_u). With user "text" a share of
    1 - individual_weight of the pairs is shown without the profile instead."""
    interaction: str = "token"
    heads: int = 4
    window: int = 6
    max_tokens: int = 1024
    max_items: int = 16
    max_item_tokens: int = 128
    unseen_fraction: float = 0.15
    """Users held out, when no validation pairs are given."""
    seen_fraction: float = 0.1
    """Records of the other users held out."""
    eval_every: int = 0
    """Steps between accuracies on (at most 256) pairs of unseen users; 0 = only at the end."""
    patience: int = 0
    """Stop after this many evaluations without a better accuracy and keep the best weights; 0 = never."""
    device: str = "auto"
    """"auto", "cpu" or "cuda"."""
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "lr", "head_lr", "grad_clip"):
            if not getattr(self, name) > 0:
                raise TagprError(f"prmu.{name} is {getattr(self, name)!r}; it must be above 0")
        for name in ("individual_weight", "user_dropout"):
            if not 0 <= getattr(self, name) <= 1:
                raise TagprError(f"prmu.{name} is {getattr(self, name)!r}; it must be in [0, 1]")
        for name in ("micro_batch_size", "warmup", "weight_decay", "centre", "eval_every", "patience"):
            if getattr(self, name) < 0:
                raise TagprError(f"prmu.{name} is {getattr(self, name)!r}; it must not be negative")
        if self.patience and not self.eval_every:
            raise TagprError("prmu.patience needs prmu.eval_every above 0")
        if self.device not in ("auto", "cpu", "cuda"):
            raise TagprError(f"prmu.device is {self.device!r}; use auto, cpu or cuda")

    def model(self) -> PrmuModelConfig:
        """The model's part of these settings."""
        limits = Limits(self.max_tokens, self.max_items, self.max_item_tokens)
        return PrmuModelConfig(self.user, self.interaction, self.heads, self.window, limits)

    @property
    def has_table(self) -> bool:
        """Whether training users get an o_u."""
        return self.user == ROWS or (self.user == PROFILES and self.identity)


def train_prmu(
    pairs: Sequence[PairRow],
    *,
    backbone: Path,
    out: Path,
    config: PrmuConfig,
    on_step: Callable[[dict[str, float]], None] | None = None,
    validation: Sequence[PairRow] | None = None,
    make_engine: MakeEngine = Fsdp2Engine,
    checkpoints: Checkpoints | None = None,
) -> dict[str, float]:
    """Train on `pairs`, write the model and metrics.jsonl to `out`, and return `evaluate`'s figures.

    Without `validation` some of the pairs' users are held out. With it, a user in both is a TagprError, and
    all of `validation` counts as unseen. Under torchrun every process calls this with the same arguments; the
    first one writes. With `checkpoints` it goes on from the newest one, and the rows of `on_step` go on with it.
    """
    for row in (*pairs, *(validation or ())):
        check_pair(row, "prmu training")
    split = _split(pairs, validation, config)
    torch.manual_seed(config.seed)
    table = UserTable(sorted(users_of(split.train))) if config.has_table else UserTable()
    with _process_group(config) as device:
        if config.batch_size % dist.get_world_size():
            raise TagprError(
                f"prmu.batch_size is {config.batch_size}; use a multiple of the {dist.get_world_size()} processes"
            )
        model, encoder = new_model(backbone, config.model(), table)
        engine = make_engine(model, lambda sharded: _optimizer(sharded, config), config.grad_clip, device)
        if _rank() == 0:
            out.mkdir(parents=True, exist_ok=True)
        started = time.perf_counter()
        progress = _fit(engine, encoder, split, config, out / "metrics.jsonl", on_step, checkpoints)
        seconds = time.perf_counter() - started
        state = progress.best or engine.full_state()
        results: list[dict[str, float]] = [{}]
        if _rank() == 0:
            model.save_pretrained(out, encoder.tokenizer, state)
            results[0] = _finish(out, split, config, str(device))
            results[0] |= {"steps": float(progress.step), "train_seconds": seconds}
            results[0] |= {"train/pairs": float(len(split.train)), "train/dropped": float(split.dropped)}
            write_json(out / "metrics.json", results[0])
        dist.broadcast_object_list(results, src=0)
    return results[0]


def _split(pairs: Sequence[PairRow], validation: Sequence[PairRow] | None, config: PrmuConfig) -> PairSplit:
    if validation is None:
        unseen, seen = config.unseen_fraction, config.seen_fraction
        return split_by_user(pairs, unseen_fraction=unseen, seen_fraction=seen, seed=config.seed)
    if not pairs or not validation:
        raise TagprError(f"prmu: {len(pairs)} training, {len(validation)} validation pairs; both are needed")
    check_leakage(pairs, validation)
    return PairSplit(tuple(pairs), (), tuple(validation), 0)


def _finish(out: Path, split: PairSplit, config: PrmuConfig, device: str) -> dict[str, float]:
    """Measure the model as saved, and fix its score statistics on the held-out pairs."""
    scorer = Scorer(out, device)
    mean, std = score_statistics(scorer.raw, (*split.seen, *split.unseen))
    fixed = replace(scorer.model.config, score_mean=mean, score_std=std)
    write_config(out, fixed)
    metrics = evaluate(scorer.raw, split.seen, split.unseen, seed=config.seed)
    return metrics | {"score_mean": mean, "score_std": std}


# --- the loop ---------------------------------------------------------------------------------------------


def learning_rate_scale(step: int, steps: int, warmup: int) -> float:
    """Factor in (0, 1] for `step` (from 0): linear warm-up, then a cosine that ends at 0.05."""
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    return 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * progress))


def batches(n: int, size: int, steps: int, seed: int) -> Iterator[list[int]]:
    """`steps` lists of `size` indices below `n`: shuffled passes over the data, joined end to end."""
    rng = random.Random(seed)
    order: list[int] = []
    for _ in range(steps):
        while len(order) < size:
            order += rng.sample(range(n), n)
        yield order[:size]
        order = order[size:]


def batch_loss(
    model: PrmuModel,
    encoder: TextEncoder,
    pairs: Sequence[PairRow],
    config: PrmuConfig,
    generator: torch.Generator | None = None,
) -> tuple[PairLoss, Tensor]:
    """Loss of some pairs, and how many are ordered rightly (for the user). Drops users when training."""
    requests = [request for pair in pairs for request in own(pair)]
    if encoder.user == TEXT and model.training:
        bare = torch.rand(len(pairs), generator=generator) >= config.individual_weight
        requests = [request.generic() if bare[i // 2] else request for i, request in enumerate(requests)]
    known = model.table.rows([pair.user_id for pair in pairs])
    batch = collate(encoder, requests, [i // 2 for i in range(len(requests))], known)
    if model.training:
        batch.known = drop_users(batch.known, config.user_dropout, generator)
    user, generic = model(batch.to(model.head.weight.device))
    loss = pair_loss(
        user[0::2], user[1::2], generic[0::2], generic[1::2],
        individual_weight=config.individual_weight, centre=config.centre,
    )  # fmt: skip
    return loss, (user[0::2] > user[1::2]).float().sum().detach()


def _fit(
    engine: PrmuEngine,
    encoder: TextEncoder,
    split: PairSplit,
    config: PrmuConfig,
    log: Path,
    on_step: Callable[[dict[str, float]], None] | None,
    checkpoints: Checkpoints | None,
) -> Progress:
    """Run the steps that are left; return how many ran, and the best weights when early stopping is on."""
    model = engine.model
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        engine.optimizer, lambda step: learning_rate_scale(step, config.steps, config.warmup)
    )
    generator = torch.Generator().manual_seed(config.seed + 1000 * _rank())
    progress = restore(checkpoints, engine, scheduler, generator) if checkpoints is not None else Progress()
    order = batches(len(split.train), config.batch_size, config.steps, config.seed)
    if _rank() == 0:
        trim(log, progress.step)
    for step, indices in enumerate(_shown(order, config.steps), start=1):
        if step <= progress.step or _stops(progress, config):
            continue
        model.train()
        rows = [split.train[i] for i in indices[_rank() :: dist.get_world_size()]]
        row = {"step": float(step), "lr": float(scheduler.get_last_lr()[0])}
        row |= _step(engine, encoder, rows, config, generator)
        scheduler.step()
        if config.eval_every and (step % config.eval_every == 0 or step == config.steps):
            row["unseen/accuracy"] = _accuracy(model, encoder, split.unseen[:256], config)
            if config.patience:
                progress.measured(row["unseen/accuracy"], engine)
        progress.step = step
        if _rank() == 0:
            with log.open("a", encoding="utf-8") as handle:
                handle.write(json.dumps(row) + "\n")
            if on_step is not None:
                on_step(row)
        if checkpoints is not None and step % checkpoints.every == 0 and step < config.steps:
            save(checkpoints, progress, engine, scheduler, generator)
    return progress


def _stops(progress: Progress, config: PrmuConfig) -> bool:
    return bool(config.patience) and progress.waited >= config.patience


def _shown(order: Iterator[list[int]], steps: int) -> Iterable[list[int]]:
    """`order` with a progress bar, on the first process's terminal only."""
    console = Console(stderr=True)
    shown = console.is_terminal and _rank() == 0
    return track(order, description="prmu", total=steps, console=console, disable=not shown, transient=True)


def _step(
    engine: PrmuEngine,
    encoder: TextEncoder,
    rows: Sequence[PairRow],
    config: PrmuConfig,
    generator: torch.Generator,
) -> dict[str, float]:
    """One optimizer step on this process's pairs. Returned figures are means over all processes."""
    started = time.perf_counter()
    size = config.micro_batch_size or len(rows)
    parts = [rows[i : i + size] for i in range(0, len(rows), size)]
    sums = torch.zeros(4)
    for i, part in enumerate(parts):
        loss, right = batch_loss(engine.model, encoder, part, config, generator)
        share = len(part) / len(rows)
        engine.backward(loss.total * share, last=i == len(parts) - 1)
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
def _accuracy(model: PrmuModel, encoder: TextEncoder, rows: Sequence[PairRow], config: PrmuConfig) -> float:
    """Share of pairs ordered rightly for their user. Every process computes it on all rows."""
    model.eval()
    size = config.micro_batch_size or config.batch_size
    parts = [rows[i : i + size] for i in range(0, len(rows), size)]
    return sum(float(batch_loss(model, encoder, part, config)[1]) for part in parts) / len(rows)


def _optimizer(model: torch.nn.Module, config: PrmuConfig) -> torch.optim.Optimizer:
    """AdamW with two learning rates; vectors (norms, e_0, biases) get no weight decay."""
    groups: dict[tuple[float, float], list[Tensor]] = {}
    for name, parameter in model.named_parameters():
        lr = config.lr if name.startswith("backbone.") else config.head_lr
        decay = config.weight_decay if parameter.ndim > 1 else 0.0
        groups.setdefault((lr, decay), []).append(parameter)
    settings = [{"params": p, "lr": lr, "weight_decay": decay} for (lr, decay), p in groups.items()]
    return torch.optim.AdamW(settings, betas=(0.9, 0.98))


# --- processes -------------------------------------------------------------------------------------------


def _rank() -> int:
    return dist.get_rank()


@contextmanager
def _process_group(config: PrmuConfig) -> Iterator[torch.device]:
    """This process's device, in a process group: the one that is there, torchrun's, or one of size 1 (no port)."""
    cuda = torch.cuda.is_available() if config.device == "auto" else config.device == "cuda"
    if cuda and not torch.cuda.is_available():
        raise TagprError("prmu.device is 'cuda', but this machine has no usable GPU; use auto or cpu")
    backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
    mine = not dist.is_initialized()
    if mine and dist.is_torchelastic_launched():
        dist.init_process_group(backend)
    elif mine:
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    try:
        if cuda:
            torch.cuda.set_device(dist.get_rank() % torch.cuda.device_count())
        yield torch.device("cuda", torch.cuda.current_device()) if cuda else torch.device("cpu")
    finally:
        if mine:
            dist.destroy_process_group()
