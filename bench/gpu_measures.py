"""What bench/gpu.py measures: the loss's memory, updates, PRMU's training and serving, rollout against update."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from gpu_engines import (
    config_of,
    fsdp2_engine,
    grpo_loss,
    plain_engine,
    policy,
    sft_loss,
    with_lora,
    zero_engine,
)

from tagpr_rl.backend.forward.logprobs import token_logprobs
from tagpr_rl.plan.shapes import SHAPES, ModelShape, loss_bytes

TINY = ModelShape("tiny", layers=2, hidden=64, heads=4, kv_heads=2, head_dim=32, ffn=128, vocab=512, tied=True)
NAMES = {"tiny": TINY} | {name.removeprefix("Qwen/Qwen3-"): shape for name, shape in SHAPES.items()}
WARMUP, ROUNDS = 2, 5


@dataclass(frozen=True)
class Case:
    """One measurement. `batch` sequences of `length` tokens a micro-batch, `micro` of them per update."""

    what: str
    shape: str
    variant: str
    checkpointing: bool = False
    batch: int = 4
    length: int = 2048
    micro: int = 2


@dataclass(frozen=True)
class Machine:
    """Where and how long: device type, dense bfloat16 peak in TFLOPS (None: unknown), monotonic deadline."""

    device: str
    peak: float | None
    deadline: float


class OutOfTimeError(Exception):
    """The run's minutes are used up."""


class NotMeasuredError(Exception):
    """This machine cannot measure the case; the message says why."""


def timed(work: Callable[[], None], machine: Machine) -> list[float]:
    """Seconds of ROUNDS calls after WARMUP ones. OutOfTimeError when the deadline passes in between."""
    seconds = []
    for index in range(WARMUP + ROUNDS):
        if time.monotonic() > machine.deadline:
            raise OutOfTimeError
        synchronise(machine.device)
        started = time.perf_counter()
        work()
        synchronise(machine.device)
        if index >= WARMUP:
            seconds.append(time.perf_counter() - started)
    return seconds


def synchronise(device: str) -> None:
    """Wait for the device."""
    if device == "cuda":
        torch.cuda.synchronize()


def figures(seconds: list[float], tokens: int, flops: float, peak: float | None) -> dict[str, Any]:
    """Median seconds of a round, its spread, tokens/s and MFU."""
    median = statistics.median(seconds)
    return {
        "seconds": median, "fastest": min(seconds), "slowest": max(seconds), "rounds": len(seconds),
        "tokens_per_s": tokens / median, "tflops": flops / median / 1e12,
        "mfu": flops / median / (peak * 1e12) if peak else None,
    }  # fmt: skip


def update_flops(shape: ModelShape, length: int, *, frozen: bool) -> float:
    """FLOPs of a trained token: three forward passes; frozen weights need no gradient of their own, which leaves two
    of their products."""
    context = length / 2
    return 3 * shape.forward_flops(context) - (2 * shape.multiplied if frozen else 0)


def measure_loss(case: Case, machine: Machine) -> dict[str, Any]:
    """Bytes at the peak of forward and backward pass of `case.length` tokens' loss, beside the plan's formula."""
    shape, device = NAMES[case.shape], machine.device
    head = torch.nn.Linear(shape.hidden, shape.vocab, bias=False, device=device, dtype=torch.bfloat16)
    head.requires_grad_(False)  # so that the peak is the loss's own
    hidden = torch.randn(case.length, shape.hidden, device=device, dtype=torch.bfloat16, requires_grad=True)
    labels = torch.randint(shape.vocab, (case.length,), device=device)
    ones = torch.ones(case.length, device=device)
    before = torch.cuda.memory_allocated() if device == "cuda" else 0

    def work() -> None:
        token_logprobs(head(hidden), labels, ones, entropies=True)[0].mean().backward()

    planned = loss_bytes(case.length, shape.vocab, 2)
    row: dict[str, Any] = {"planned_bytes": planned, "peak_bytes": None} | figures(
        timed(work, machine), case.length, 0.0, None
    )
    if device != "cuda":
        return row | {"status": "time measured; bytes not measured: a CPU counts no peak"}
    peak = torch.cuda.max_memory_allocated() - before
    return row | {"peak_bytes": peak, "of_plan": peak / planned, "bytes_per_logit": peak / case.length / shape.vocab}


def measure_update(case: Case, machine: Machine) -> dict[str, Any]:
    """Forward, backward and AdamW of an update: SFT on every token, otherwise GRPO on the second half of each row."""
    shape, device = NAMES[case.shape], machine.device
    lora = case.what == "rl lora"
    if lora and not _importable("peft"):
        raise NotMeasuredError("peft is not installed")
    low = case.variant == "plain" or case.variant.startswith("zero")
    model = policy(shape, device, torch.bfloat16 if low else torch.float32, case.checkpointing)
    if lora:
        model = with_lora(model)
    generator = torch.Generator(device).manual_seed(1)
    ids = torch.randint(shape.vocab, (case.batch, case.length), device=device, generator=generator)
    old = torch.full((case.batch, case.length // 2), -11.9, device=device)
    advantages = torch.linspace(-1, 1, case.batch, device=device)

    def loss_of(current: Any) -> torch.Tensor:
        return sft_loss(current, ids) if case.what == "sft" else grpo_loss(current, ids, old, advantages)

    if case.variant == "plain":
        update = plain_engine(model)
    elif case.variant == "fsdp2":
        update = fsdp2_engine(model, device)
    else:
        update = zero_engine(model, int(case.variant[-1]))
    seconds = timed(lambda: update(loss_of, case.micro), machine)
    tokens = case.batch * case.length * case.micro
    return figures(seconds, tokens, tokens * update_flops(shape, case.length, frozen=lora), machine.peak)


def measure_prmu_training(case: Case, machine: Machine) -> dict[str, Any]:
    """Optimizer steps of `case.batch` pairs by PRMU's own FSDP2 engine, with recomputation and bfloat16 compute."""
    from transformers import Qwen3Model

    from tagpr_rl.prmu.inputs import TextEncoder
    from tagpr_rl.prmu.model import PrmuModel
    from tagpr_rl.prmu.training.config import PrmuConfig
    from tagpr_rl.prmu.training.sharding import Fsdp2Engine
    from tagpr_rl.prmu.training.step import build_optimizer, optimizer_step
    from tagpr_rl.prmu.users.vectors import UserTable
    from tagpr_rl.types import PairRow

    shape, device = NAMES[case.shape], machine.device
    config = PrmuConfig(micro_batch_size=max(1, case.batch // 4), identity=False, dtype="bfloat16", recompute=True)
    settings = config.model()
    with torch.device(device):
        model = PrmuModel(Qwen3Model(config_of(shape)), settings, UserTable()).train()
    model.recompute()
    engine = Fsdp2Engine(model, lambda sharded: build_optimizer(sharded, config), 1.0, torch.device(device))
    encoder = TextEncoder(Letters(shape.vocab), settings.limits)
    text, items = "a" * (case.length - 40), tuple(f"{index}{'b' * min(60, case.length)}" for index in range(8))
    rows = [
        PairRow(f"r{i}", "LaMP_4", f"u{i}", "", "c" * 32, items, f"{text}x{i:04d}", f"{text}y{i:04d}", "wrong_answer")
        for i in range(case.batch)
    ]
    draws = torch.rand(case.batch, generator=torch.Generator().manual_seed(1))
    seconds = timed(lambda: _ignored(optimizer_step(engine, encoder, rows, config, draws)), machine)
    tokens = 2 * case.batch * (case.length + len(items) * 61)  # about: the responses, and each one's profile
    flops = 3 * tokens * (shape.forward_flops(case.length / 2) - 2 * shape.embedding)  # no output layer
    return figures(seconds, tokens, flops, machine.peak) | {"pairs_per_s": case.batch / statistics.median(seconds)}


def measure_prmu_serving(case: Case, machine: Machine) -> dict[str, Any]:
    """`case.batch` responses of a group scored by tagpr_rl.prmu's scorer; profile items are in its cache."""
    from transformers import Qwen3Model

    from tagpr_rl.prmu.inputs import Limits, TextEncoder
    from tagpr_rl.prmu.model import PrmuModel, PrmuModelConfig
    from tagpr_rl.prmu.serving.requests import ScoreRequest
    from tagpr_rl.prmu.serving.score import Scorer
    from tagpr_rl.prmu.users.vectors import UserTable

    shape, device = NAMES[case.shape], machine.device
    with torch.device(device):
        model = PrmuModel(Qwen3Model(config_of(shape)), PrmuModelConfig(limits=Limits()), UserTable()).eval()
    scorer = Scorer.of(model, TextEncoder(Letters(shape.vocab), Limits()), device)
    text, item = "a" * (case.length - 34), "b" * min(64, case.length)
    profile = tuple(f"{index}{item}" for index in range(8))
    requests = [
        ScoreRequest("", profile, "c" * 32, f"{text}{index:04d}"[-case.length + 34 :]) for index in range(case.batch)
    ]
    tokens = sum(scorer.length(request) for request in requests)

    def work() -> None:
        with torch.autocast(device, torch.bfloat16, enabled=case.variant == "bf16 autocast"):
            scores = scorer.score(requests)
        assert len(scores) == len(requests)

    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if case.variant == "tf32" else "highest")
    try:
        seconds = timed(work, machine)
    finally:
        torch.set_float32_matmul_precision(precision)
    flops = tokens * (shape.forward_flops(case.length / 2) - 2 * shape.embedding)  # no output layer
    return figures(seconds, tokens, flops, machine.peak) | {"responses_per_s": case.batch / statistics.median(seconds)}


def measure_logprobs(case: Case, machine: Machine) -> dict[str, Any]:
    """Rollout against update: see bench/gpu_logprobs.py, which runs in a process of its own."""
    if not _importable("vllm"):
        raise NotMeasuredError("vLLM is not installed")
    left = machine.deadline - time.monotonic()
    if left <= 0:
        raise OutOfTimeError
    script = Path(__file__).with_name("gpu_logprobs.py")
    words = [sys.executable, str(script), case.shape, machine.device, str(case.batch), str(case.length)]
    group = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    own = {key: value for key, value in os.environ.items() if key not in group}
    done = subprocess.run(words, capture_output=True, text=True, env=own, timeout=max(60.0, left))
    if done.returncode:
        raise RuntimeError((done.stderr.strip().splitlines() or ["no output"])[-1])
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


MEASURES: dict[str, Callable[[Case, Machine], dict[str, Any]]] = {
    "loss": measure_loss,
    "sft": measure_update,
    "rl": measure_update,
    "rl lora": measure_update,
    "update": measure_update,
    "logprobs": measure_logprobs,
    "prmu training": measure_prmu_training,
    "prmu": measure_prmu_serving,
}


class Letters:
    """A tokenizer of one token per letter: the bench needs token counts, not language."""

    eos_token_id = 0

    def __init__(self, vocab: int) -> None:
        self.vocab = vocab

    def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
        return {"input_ids": [1 + ord(letter) % (self.vocab - 1) for letter in text]}


def _importable(package: str) -> bool:
    from importlib.util import find_spec

    return find_spec(package) is not None


def _ignored(_: object) -> None:
    """Drops a result where a callback returns none."""
