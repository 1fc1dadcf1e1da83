"""Everything to measure on one GPU, with random weights of Qwen3's shapes: memory, tokens/s, MFU, log-probabilities.

Run from the repository: python bench/gpu.py --out DIR [--minutes 12]
Needs PyTorch and transformers; uses peft, DeepSpeed, verl and vLLM if they are installed. No network, no weights.
In order: the loss's memory beside the plan's formula; updates of 16,384 tokens (SFT, RL, LoRA) beside published
figures; vLLM's log-probabilities against the update's; PRMU's training and serving; FSDP2 against ZeRO at 2,048 tokens.
Medians of at least 5 timed rounds after warm-up, every variant in one run. MFU counts 3 forward passes per trained
token (no recomputation; frozen weights save a product) and 1 per scored token, against the device's dense bfloat16
peak. Without a GPU small shapes exercise the same code. What was not measured is listed as such.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import importlib.util
import json
import os
import platform
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from gpu_engines import process_group
from gpu_measures import MEASURES, NAMES, WARMUP, Case, Machine, NotMeasuredError, OutOfTimeError

from tagpr_rl.plan.shapes import DEVICES

ROOT = Path(__file__).resolve().parents[1]
ENGINES = ("plain", "fsdp2", "zero1", "zero2", "zero3")
GPU_NAMES = {
    "H200": "H200-141GB",
    "H100": "H100-80GB",
    "B200": "B200-180GB",
    "L40S": "L40S-48GB",
    "4090": "RTX4090-24GB",
}


LARGE = 3e9
"""Parameters from which a shape is trained with adapters alone."""
_PRIME_RL = "prime-rl, benchmarks/baselines, one H100 80GB, FlashAttention-3, recomputation"
ANCHORS: dict[tuple[str, str], dict[str, Any]] = {
    ("sft", "0.6B"): {"mfu": 0.237, "tokens_per_s": 25_486, "peak_gib": 52.8, "source": _PRIME_RL},
    ("rl", "0.6B"): {"mfu": 0.111, "tokens_per_s": 11_896, "peak_gib": 12.5, "source": _PRIME_RL},
    ("rl lora", "4B"): {"mfu": 0.210, "tokens_per_s": 6_038, "peak_gib": 23.9, "source": _PRIME_RL},
}
"""(what, shape) -> a published figure of the same work: sequences of 16,384 tokens. Its MFU of full training counts
FLOPs as this bench does; with adapters it counts others, so compare tokens/s there."""
FAILURES = (
    RuntimeError, ImportError, ValueError, TypeError, AttributeError, KeyError, OSError, AssertionError,
    subprocess.SubprocessError,
)  # fmt: skip


def cases(shapes: list[str], engines: list[str], *, tiny: bool) -> list[Case]:
    """Everything to measure, the most wanted first; the engines that are compared stand together."""
    batch, length, long = (2, 32, 64) if tiny else (4, 2048, 16_384)
    small = [shape for shape in shapes if NAMES[shape].parameters < LARGE]
    listed = [Case("loss", shapes[0], "bf16", batch=1, length=long, micro=1)]
    for shape in shapes:
        for what in ("sft", "rl") if shape in small else ():
            listed.append(Case(what, shape, "fsdp2", True, 1, long))
        if tiny or shape not in small:
            listed.append(Case("rl lora", shape, "fsdp2", True, 1, long))
    listed += [Case("logprobs", shapes[0], "bf16", batch=2 if tiny else 16, length=16 if tiny else 512, micro=1)]
    for shape in small:
        listed.append(Case("prmu training", shape, "fsdp2", True, 4 if tiny else 32, 64 if tiny else 512, 1))
        for variant in ("fp32", "tf32", "bf16 autocast"):
            listed.append(Case("prmu", shape, variant, batch=8 if tiny else 64, length=32 if tiny else 512, micro=1))
    for shape in small:
        for engine in engines:
            for checkpointing in (True, False) if engine in ("plain", "fsdp2") else (True,):
                listed.append(Case("update", shape, engine, checkpointing, batch, length))
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


def measure(case: Case, machine: Machine) -> dict[str, Any]:
    """One row: the case with its figures and a published one, or why there are none."""
    row: dict[str, Any] = asdict(case) | {"status": "measured", "anchor": ANCHORS.get((case.what, case.shape))}
    cuda = machine.device == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    try:
        row |= MEASURES[case.what](case, machine)
    except OutOfTimeError:
        row["status"] = "not measured: --minutes were used up"
    except NotMeasuredError as reason:
        row["status"] = f"not measured: {reason}"
    except torch.cuda.OutOfMemoryError:
        row["status"] = "does not fit the device's memory"
    except FAILURES as error:  # a variant that fails must not take the others' figures with it
        row["status"] = f"failed: {type(error).__name__}: {str(error).splitlines()[0][:200] if str(error) else ''}"
    if cuda:
        row["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
    gc.collect()
    if cuda:
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
    head = ("what", "shape", "variant", "ckpt", "median s", "tokens/s", "MFU", "GiB", "published", "status")
    lines = [head]
    for row in rows:
        anchor = row["anchor"]
        lines.append(
            (
                row["what"], row["shape"], row["variant"], "on" if row["checkpointing"] else "-",
                _shown(row.get("seconds"), ".4f"), _shown(row.get("tokens_per_s"), ",.0f"),
                _shown(row.get("mfu"), ".3f"), _shown(row.get("peak_gib"), ".1f"),
                f"{anchor['mfu']:.3f}, {anchor['tokens_per_s']:,} tokens/s" if anchor else "-", row["status"],
            )
        )  # fmt: skip
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    return "\n".join("  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)) for line in lines)


def _shown(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def write(path: Path, report: dict[str, Any]) -> None:
    """Write JSON under a temporary name and rename it: an interrupted run leaves the rows it had."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    temporary.replace(path)


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for gpu.json")
    parser.add_argument("--minutes", type=float, default=12.0, help="start nothing more after this time")
    parser.add_argument("--cpu", action="store_true", help="small shapes on the CPU; the default without a GPU")
    parser.add_argument("--shape", nargs="+", choices=sorted(NAMES), help="default: 0.6B 1.7B 4B; tiny on a CPU")
    parser.add_argument("--engines", nargs="+", choices=ENGINES, help="default: all that are installed")
    parser.add_argument("--peak-tflops", type=float, help="dense bfloat16 peak, for a GPU that the table lacks")
    arguments = parser.parse_args(argv)
    arguments.device = "cpu" if arguments.cpu or not torch.cuda.is_available() else "cuda"
    arguments.shape = arguments.shape or (["tiny"] if arguments.device == "cpu" else ["0.6B", "1.7B", "4B"])
    if arguments.device == "cpu" and arguments.shape != ["tiny"]:
        parser.error("no GPU is used, and the shapes but tiny take hours on a CPU; leave --shape out")
    if arguments.engines is None:
        deep = arguments.device == "cuda" and installed("deepspeed") is not None
        arguments.engines = list(ENGINES if deep else ENGINES[:2])
    return arguments


def main(argv: list[str] | None = None) -> int:
    """Measure, write gpu.json after each row, print the table. Returns 0 when every row was measured or fits not."""
    arguments = parse(argv)
    arguments.out.mkdir(parents=True, exist_ok=True)
    device = arguments.device
    facts = environment(device)
    peak = peak_tflops(facts.get("gpu", ""), arguments.peak_tflops)
    machine = Machine(device, peak, time.monotonic() + 60 * arguments.minutes)
    report: dict[str, Any] = {
        "environment": facts, "peak_bf16_tflops": peak, "warmup": WARMUP, "command": sys.argv[1:],
        "weights": "random, of the shape's sizes", "not_measured": [], "rows": [],
    }  # fmt: skip
    if device == "cuda":
        report["plugin"] = plugin_is_inert()
    with process_group(device):
        for case in cases(arguments.shape, arguments.engines, tiny=arguments.shape == ["tiny"]):
            row = measure(case, machine)
            report["rows"].append(row)
            if "not measured" in row["status"]:
                report["not_measured"].append(f"{case.what} {case.shape} {case.variant}: {row['status']}")
            print(f"{row['what']} {row['shape']} {row['variant']}: {row['status']}", file=sys.stderr, flush=True)
            write(arguments.out / "gpu.json", report)
    print(table(report["rows"]))
    return 1 if any(row["status"].startswith("failed") for row in report["rows"]) else 0


if __name__ == "__main__":
    sys.exit(main())
