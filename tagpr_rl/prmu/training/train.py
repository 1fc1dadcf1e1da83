"""Training of PRMU: a torch loop over one engine (FSDP2 by default), in one process or under torchrun."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist
from rich.console import Console
from rich.progress import track

from tagpr_rl.files import write_json
from tagpr_rl.prmu.accuracy import RawScore, evaluate, remembered, score_statistics
from tagpr_rl.prmu.inputs import TextEncoder
from tagpr_rl.prmu.model import new_model, write_config
from tagpr_rl.prmu.serving.requests import ScoreRequest
from tagpr_rl.prmu.serving.score import Scorer
from tagpr_rl.prmu.training.checkpoints import Checkpoints, Progress, restore, save
from tagpr_rl.prmu.training.config import PrmuConfig
from tagpr_rl.prmu.training.preferences import PairSplit, check_leakage, check_pair, split_by_user, users_of
from tagpr_rl.prmu.training.sharding import Fsdp2Engine, MakeEngine, PrmuEngine
from tagpr_rl.prmu.training.step import build_optimizer, learning_rate_scale, optimizer_step, pair_accuracy
from tagpr_rl.prmu.users.vectors import UserTable
from tagpr_rl.run import metrics
from tagpr_rl.types import PairRow, TagprError

EVALUATION_TOKENS = 8_192
"""Padded tokens of an evaluation's batch: the optimizer's states are still in memory."""


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
    """Train on `pairs`, write the model and metrics.jsonl to `out`, and return the metrics of `evaluate`.

    Args:
        on_step: called with each row of metrics.jsonl, on the first process.
        validation: pairs of unseen users. None = some of the users of `pairs` are held out.
        checkpoints: training resumes from the newest one; metrics.jsonl and `on_step` then continue at its step.

    Under torchrun every process calls this function with the same arguments, and the first one writes.

    Raises:
        TagprError: a pair is invalid, a user is in `pairs` and in `validation`, or a setting is impossible.
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
        if config.recompute:
            model.recompute()
        engine = make_engine(model, lambda sharded: build_optimizer(sharded, config), config.grad_clip, device)
        if dist.get_rank() == 0:
            out.mkdir(parents=True, exist_ok=True)
        started = time.perf_counter()
        progress = _fit(engine, encoder, split, config, out / "metrics.jsonl", on_step, checkpoints)
        seconds = time.perf_counter() - started
        state = progress.best if progress.best is not None else engine.full_state()
        if dist.get_rank() == 0:
            model.save_pretrained(out, encoder.tokenizer, state)
        dist.barrier()
        results = _evaluate_saved(out, split, config, str(device))
        results |= {"steps": float(progress.step), "train_seconds": seconds}
        results |= {"train/pairs": float(len(split.train)), "train/dropped": float(split.dropped)}
        if dist.get_rank() == 0:
            write_json(out / "metrics.json", results)
    return results


def _split(pairs: Sequence[PairRow], validation: Sequence[PairRow] | None, config: PrmuConfig) -> PairSplit:
    if validation is None:
        unseen, seen = config.unseen_fraction, config.seen_fraction
        return split_by_user(pairs, unseen_fraction=unseen, seen_fraction=seen, seed=config.seed)
    if not pairs or not validation:
        raise TagprError(f"prmu: {len(pairs)} training, {len(validation)} validation pairs; both are needed")
    check_leakage(pairs, validation)
    return PairSplit(tuple(pairs), (), tuple(validation), 0)


def _evaluate_saved(out: Path, split: PairSplit, config: PrmuConfig, device: str) -> dict[str, float]:
    """Evaluate the saved model, and store the mean and deviation of its scores on the held-out pairs. Every process
    scores a share of the requests."""
    scorer = Scorer(out, device, max_padded_tokens=EVALUATION_TOKENS)
    raw = remembered(_shared(scorer.raw))
    mean, std = score_statistics(raw, (*split.seen, *split.unseen))
    if dist.get_rank() == 0:
        write_config(out, replace(scorer.model.config, score_mean=mean, score_std=std))
    figures = evaluate(raw, split.seen, split.unseen, seed=config.seed)
    return figures | {"score_mean": mean, "score_std": std}


def _shared(raw: RawScore) -> RawScore:
    """`raw` with its work shared out: every process asks for the same requests, and gets all their scores."""
    rank, world = dist.get_rank(), dist.get_world_size()

    def scores(requests: Sequence[ScoreRequest]) -> list[float]:
        shares: list[list[float]] = [[] for _ in range(world)]
        dist.all_gather_object(shares, raw(requests[rank::world]))
        return [shares[i % world][i // world] for i in range(len(requests))]

    return scores


def batches(n: int, size: int, steps: int, seed: int) -> Iterator[list[int]]:
    """`steps` lists of `size` indices below `n`: shuffled passes over the data, joined end to end."""
    rng = random.Random(seed)
    order: list[int] = []
    for _ in range(steps):
        while len(order) < size:
            order += rng.sample(range(n), n)
        yield order[:size]
        order = order[size:]


def _fit(
    engine: PrmuEngine,
    encoder: TextEncoder,
    split: PairSplit,
    config: PrmuConfig,
    log: Path,
    on_step: Callable[[dict[str, float]], None] | None,
    checkpoints: Checkpoints | None,
) -> Progress:
    """Run the remaining steps. The result has the last step, and the best weights if early stopping is on."""
    model = engine.model
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        engine.optimizer, lambda step: learning_rate_scale(step, config.steps, config.warmup)
    )
    generator = torch.Generator().manual_seed(config.seed)
    rank, world = dist.get_rank(), dist.get_world_size()
    progress = restore(checkpoints, engine, scheduler, generator) if checkpoints is not None else Progress()
    order = batches(len(split.train), config.batch_size, config.steps, config.seed)
    if dist.get_rank() == 0:
        metrics.trim(log, progress.step)
    for step, indices in enumerate(_progress_bar(order, config.steps), start=1):
        if step <= progress.step or (config.patience and progress.waited >= config.patience):
            continue
        model.train()
        draws = torch.rand(len(indices), generator=generator)  # of the whole batch, so that any number of processes
        rows = [split.train[i] for i in indices[rank::world]]  # trains alike
        row = {"step": float(step), "lr": float(scheduler.get_last_lr()[0])}
        row |= optimizer_step(engine, encoder, rows, config, draws[rank::world])
        scheduler.step()
        if config.eval_every and (step % config.eval_every == 0 or step == config.steps):
            row["unseen/accuracy"] = pair_accuracy(model, encoder, split.unseen[:256], config)
            if config.patience:
                progress.add(row["unseen/accuracy"], engine)
        progress.step = step
        if dist.get_rank() == 0:
            metrics.append(log, row)
            if on_step is not None:
                on_step(row)
        if checkpoints is not None and step % checkpoints.every == 0 and step < config.steps:
            save(checkpoints, progress, engine, scheduler, generator)
    return progress


def _progress_bar(order: Iterator[list[int]], steps: int) -> Iterable[list[int]]:
    """`order` with a progress bar, drawn on the first process and on a terminal only."""
    console = Console(stderr=True)
    disable = not console.is_terminal or dist.get_rank() != 0
    return track(order, description="prmu", total=steps, console=console, disable=disable, transient=True)


@contextmanager
def _process_group(config: PrmuConfig) -> Iterator[torch.device]:
    """This process's device. A process group exists meanwhile: the current one, torchrun's, or one of size 1.

    The group of size 1 needs no network port.
    """
    cuda = torch.cuda.is_available() if config.device == "auto" else config.device == "cuda"
    if cuda and not torch.cuda.is_available():
        raise TagprError("prmu.device is 'cuda', but this machine has no usable GPU; use auto or cpu")
    backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
    new_group = not dist.is_initialized()
    if new_group and dist.is_torchelastic_launched():
        dist.init_process_group(backend)
    elif new_group:
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    try:
        if cuda:
            torch.cuda.set_device(dist.get_rank() % torch.cuda.device_count())
        yield torch.device("cuda", torch.cuda.current_device()) if cuda else torch.device("cpu")
    finally:
        if new_group:
            dist.destroy_process_group()
