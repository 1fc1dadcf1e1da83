"""Policy update and PRMU serving on one GPU, with random weights of Qwen3's shapes: tokens/s and MFU.

Run from the repository: python bench/gpu.py --out DIR [--minutes 8]
Needs PyTorch and transformers; DeepSpeed, verl and vLLM are used where they are installed. No network, no weights.
Medians of at least 5 timed rounds after warm-up, every variant in one run. MFU counts 3 forward passes per trained
token (no recomputation) and 1 per scored token, against the device's dense bfloat16 peak.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import importlib.util
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from gpu_engines import config_of, fsdp2_engine, grpo_loss, plain_engine, policy, process_group, zero_engine

from tagpr_rl.plan.shapes import DEVICES, SHAPES, ModelShape

ROOT = Path(__file__).resolve().parents[1]
TINY = ModelShape("tiny", layers=2, hidden=64, heads=4, kv_heads=2, head_dim=16, ffn=128, vocab=512, tied=True)
NAMES = {"tiny": TINY} | {name.removeprefix("Qwen/Qwen3-"): shape for name, shape in SHAPES.items()}
ENGINES = ("plain", "fsdp2", "zero1", "zero2", "zero3")
WARMUP, ROUNDS = 2, 5
GPU_NAMES = {
    "H200": "H200-141GB",
    "H100": "H100-80GB",
    "B200": "B200-180GB",
    "L40S": "L40S-48GB",
    "4090": "RTX4090-24GB",
}


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


FAILURES = (RuntimeError, ImportError, ValueError, TypeError, AttributeError, KeyError, OSError, AssertionError)


class OutOfTimeError(Exception):
    """The run's minutes are used up."""


def cases(shapes: list[str], engines: list[str], *, tiny: bool) -> list[Case]:
    """Everything to measure, the cheap shapes first; within a shape the variants that are compared stand together."""
    batch, length = (2, 32) if tiny else (4, 2048)
    listed = []
    for shape in shapes:
        for engine in engines:
            for checkpointing in (True, False) if engine in ("plain", "fsdp2") else (True,):
                listed.append(Case("update", shape, engine, checkpointing, batch, length))
        for variant in ("fp32", "tf32", "bf16 autocast"):
            listed.append(Case("prmu", shape, variant, batch=8 if tiny else 64, length=32 if tiny else 512, micro=1))
    return listed


def peak_tflops(name: str, override: float | None) -> float | None:
    """Dense bfloat16 peak of a GPU by a part of its name; None when unknown."""
    if override is not None:
        return override
    known = next((key for part, key in GPU_NAMES.items() if part in name), None)
    return DEVICES[known].bf16_tflops if known else None


def environment(device: str) -> dict[str, Any]:
    """What the figures depend on: GPU, driver, versions."""
    import transformers

    facts: dict[str, Any] = {
        "python": platform.python_version(), "torch": torch.__version__, "cuda": torch.version.cuda,
        "transformers": transformers.__version__, "device": device, "machine": platform.machine(),
        "cpus": os.cpu_count(), "installed": {name: installed(name) for name in ("deepspeed", "vllm", "verl", "ray")},
        "commit": command("git", "-C", str(ROOT), "rev-parse", "HEAD"),
    }  # fmt: skip
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        facts |= {
            "gpu": properties.name, "memory_gib": round(properties.total_memory / 2**30, 1),
            "driver": command("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
            "clocks": command("nvidia-smi", "--query-gpu=clocks.sm,clocks.max.sm,power.limit", "--format=csv,noheader"),
        }  # fmt: skip
    return facts


def installed(package: str) -> str | None:
    """The package's version; None when it is not installed."""
    from importlib import metadata

    if importlib.util.find_spec(package) is None:
        return None
    with contextlib.suppress(metadata.PackageNotFoundError):
        return metadata.version(package)
    return "unknown"


def command(*words: str) -> str:
    """A command's output; "" when it cannot run."""
    try:
        return subprocess.run(words, capture_output=True, text=True, check=True, timeout=30).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def timed(work: Callable[[], None], device: str, deadline: float) -> list[float]:
    """Seconds of ROUNDS calls after WARMUP ones. OutOfTimeError when the deadline passes in between."""
    seconds = []
    for index in range(WARMUP + ROUNDS):
        if time.monotonic() > deadline:
            raise OutOfTimeError
        synchronise(device)
        started = time.perf_counter()
        work()
        synchronise(device)
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


def measure_update(case: Case, device: str, peak: float | None, deadline: float) -> dict[str, Any]:
    """Forward, backward and AdamW of a GRPO update."""
    shape = NAMES[case.shape]
    dtype = torch.bfloat16 if case.variant == "plain" or case.variant.startswith("zero") else torch.float32
    model = policy(shape, device, dtype, case.checkpointing)
    generator = torch.Generator(device).manual_seed(1)
    ids = torch.randint(shape.vocab, (case.batch, case.length), device=device, generator=generator)
    old = torch.full((case.batch, case.length // 2), -11.9, device=device)
    advantages = torch.linspace(-1, 1, case.batch, device=device)

    def loss_of(current: Any) -> torch.Tensor:
        return grpo_loss(current, ids, old, advantages)

    if case.variant == "plain":
        update = plain_engine(model)
    elif case.variant == "fsdp2":
        update = fsdp2_engine(model, device)
    else:
        update = zero_engine(model, int(case.variant[-1]))
    seconds = timed(lambda: update(loss_of, case.micro), device, deadline)
    tokens = case.batch * case.length * case.micro
    return figures(seconds, tokens, 3 * tokens * shape.forward_flops(case.length / 2), peak)


def measure_prmu(case: Case, device: str, peak: float | None, deadline: float) -> dict[str, Any]:
    """`case.batch` responses of a group scored by tagpr_rl.prmu's scorer; profile items are in its cache."""
    from transformers import Qwen3Model

    from tagpr_rl.prmu.inputs import Limits, TextEncoder
    from tagpr_rl.prmu.model import PrmuModel, PrmuModelConfig
    from tagpr_rl.prmu.serving.requests import ScoreRequest
    from tagpr_rl.prmu.serving.score import Scorer
    from tagpr_rl.prmu.users.vectors import UserTable

    shape = NAMES[case.shape]
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
        seconds = timed(work, device, deadline)
    finally:
        torch.set_float32_matmul_precision(precision)
    flops = tokens * (shape.forward_flops(case.length / 2) - 2 * shape.embedding)  # no output layer
    return figures(seconds, tokens, flops, peak) | {"responses_per_s": case.batch / statistics.median(seconds)}


class Letters:
    """A tokenizer of one token per letter: the bench needs token counts, not language."""

    eos_token_id = 0

    def __init__(self, vocab: int) -> None:
        self.vocab = vocab

    def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
        return {"input_ids": [1 + ord(letter) % (self.vocab - 1) for letter in text]}


def measure(case: Case, device: str, peak: float | None, deadline: float) -> dict[str, Any]:
    """One row: the case with its figures, or why there are none."""
    row: dict[str, Any] = asdict(case) | {"status": "measured"}
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    try:
        row |= (measure_update if case.what == "update" else measure_prmu)(case, device, peak, deadline)
    except OutOfTimeError:
        row["status"] = "left out: --minutes were used up"
    except torch.cuda.OutOfMemoryError:
        row["status"] = "does not fit the device's memory"
    except FAILURES as error:  # a variant that fails must not take the others' figures with it
        row["status"] = f"failed: {type(error).__name__}: {str(error).splitlines()[0][:200] if str(error) else ''}"
    if device == "cuda":
        row["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
    return row


def plugin_is_inert() -> dict[str, Any]:
    """Whether verl, if it is installed, resolves its own platform on CUDA, and the CPU platform patches nothing."""
    if installed("verl") is None:
        return {"status": "left out: verl is not installed"}
    code = (
        "import importlib.metadata as m; version = m.version\n"
        "import verl, json\nfrom verl.plugin.platform import get_platform\n"
        "print(json.dumps([get_platform().device_name, m.version is version]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=300,
        env={key: value for key, value in os.environ.items() if key != "VERL_PLATFORM"},
    )  # fmt: skip
    if done.returncode:
        return {"status": f"failed: {done.stderr.strip().splitlines()[-1][:200]}"}
    name, unpatched = json.loads(done.stdout.splitlines()[-1])
    return {"status": "measured", "platform": name, "unpatched": unpatched, "inert": name == "cuda" and unpatched}


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as text."""
    head = ("what", "shape", "variant", "ckpt", "median s", "tokens/s", "TFLOPS", "MFU", "GiB", "status")
    lines = [head]
    for row in rows:
        done = row["status"] == "measured"
        mfu, peak = row.get("mfu"), row.get("peak_gib")
        lines.append(
            (
                row["what"], row["shape"], row["variant"], "on" if row["checkpointing"] else "-",
                f"{row['seconds']:.4f}" if done else "-", f"{row['tokens_per_s']:,.0f}" if done else "-",
                f"{row['tflops']:.2f}" if done else "-", f"{mfu:.3f}" if mfu else "-", f"{peak:.1f}" if peak else "-",
                row["status"],
            )
        )  # fmt: skip
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    return "\n".join("  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)) for line in lines)


def write(path: Path, report: dict[str, Any]) -> None:
    """Write JSON under a temporary name and rename it: an interrupted run leaves the rows it had."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    temporary.replace(path)


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for gpu.json")
    parser.add_argument("--minutes", type=float, default=8.0, help="start nothing more after this time")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--shape", nargs="+", choices=sorted(NAMES), default=["0.6B", "1.7B", "8B"])
    parser.add_argument("--engines", nargs="+", choices=ENGINES, help="default: all that are installed")
    parser.add_argument("--peak-tflops", type=float, help="dense bfloat16 peak, for a GPU that the table lacks")
    arguments = parser.parse_args(argv)
    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error("no usable GPU here; --device cpu --shape tiny runs on any machine")
    if arguments.device == "cpu" and arguments.shape != ["tiny"]:
        parser.error("--device cpu is for --shape tiny: the other shapes take hours there")
    if arguments.engines is None:
        deep = arguments.device == "cuda" and installed("deepspeed") is not None
        arguments.engines = list(ENGINES if deep else ENGINES[:2])
    return arguments


def main(argv: list[str] | None = None) -> int:
    """Measure, write gpu.json after each row, print the table. Returns 0 when every row was measured or fits not."""
    arguments = parse(argv)
    arguments.out.mkdir(parents=True, exist_ok=True)
    device, deadline = arguments.device, time.monotonic() + 60 * arguments.minutes
    facts = environment(device)
    peak = peak_tflops(facts.get("gpu", ""), arguments.peak_tflops)
    report: dict[str, Any] = {
        "environment": facts, "peak_bf16_tflops": peak, "warmup": WARMUP, "command": sys.argv[1:], "rows": [],
    }  # fmt: skip
    if device == "cuda":
        report["plugin"] = plugin_is_inert()
    with process_group(device):
        for case in cases(arguments.shape, arguments.engines, tiny=arguments.shape == ["tiny"]):
            row = measure(case, device, peak, deadline)
            report["rows"].append(row)
            print(f"{row['what']} {row['shape']} {row['variant']}: {row['status']}", file=sys.stderr, flush=True)
            write(arguments.out / "gpu.json", report)
    print(table(report["rows"]))
    return 1 if any(row["status"].startswith("failed") for row in report["rows"]) else 0


if __name__ == "__main__":
    sys.exit(main())
