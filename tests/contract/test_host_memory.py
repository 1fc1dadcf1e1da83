"""What the weights of a large model take of the host: two gloo processes load, hand over and save; an engine reloads.

Sizes are measured in the processes' own memory, so that a second copy of the weights anywhere is seen.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

os.environ.setdefault("VERL_PLATFORM", "cpu")
pytestmark = [pytest.mark.stack, pytest.mark.torch, pytest.mark.timeout(300)]
ROOT = Path(__file__).resolve().parents[2]
MIB = 1 << 20


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Qwen3 of 170 MiB in fp32 with an output layer of its own, as the large ones have."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from tagpr_rl.model.tiny import build_tiny

    folder = tmp_path_factory.mktemp("model")
    words = "the quick brown fox jumps over the lazy dog and " + " ".join(f"w{i}" for i in range(70))
    build_tiny(folder, corpus_texts=[words], hidden=64, layers=8, heads=2, ffn=96, seed=3)
    config = AutoConfig.from_pretrained(folder)
    config.update({
        "hidden_size": 512, "intermediate_size": 1536, "num_attention_heads": 8, "num_key_value_heads": 4,
        "head_dim": 128, "vocab_size": 8192, "tie_word_embeddings": False,
    })  # fmt: skip
    torch.manual_seed(1)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


def weight_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def job(model: Path, out: Path, *overrides: str) -> dict[str, Any]:
    """A job of memory_worker with a recipe's own settings of LoRA and of the engine's first weights."""
    from tagpr_rl.backend.trainer.overrides import StagePaths, grpo_overrides
    from tagpr_rl.config import load_recipe

    recipe = load_recipe(ROOT / "recipes/lamp/qwen3_32b.yaml", overrides)
    keys = grpo_overrides(recipe, "guided", StagePaths(model, out, out, out))
    out.mkdir()
    return {
        "model": str(model), "out": str(out),
        "lora_rank": keys.get("actor_rollout_ref.model.lora_rank", 0),
        "load_format": keys["actor_rollout_ref.rollout.load_format"],
        "fsdp_size": recipe.training.fsdp_size or -1, "tcp": recipe.placement.rollout == "separate",
    }  # fmt: skip


@pytest.fixture(scope="module")
def runs(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for each job: what two processes measured, one job after the other."""
    out = tmp_path_factory.mktemp("runs")
    separate = ("placement.rollout=separate", "placement.rollout_devices_per_node=4")
    jobs = [
        job(model, out / "lora", "lora.rank=8"),
        job(model, out / "whole", *separate),
        job(model, out / "hybrid", "training.fsdp_size=1"),
    ]
    (out / "jobs.json").write_text(json.dumps(jobs), encoding="utf-8")
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
        str(ROOT / "tests/support/memory_worker.py"), str(out / "jobs.json"),
    ]  # fmt: skip
    # Freed memory goes back to the system at once, so that a phase is not served from what the one before left.
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "65536"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=240)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    return out


def facts(folder: Path) -> list[dict[str, Any]]:
    """What each process wrote."""
    return [json.loads((folder / f"{rank}.json").read_text(encoding="utf-8")) for rank in range(2)]


def test_a_base_that_is_frozen_is_gathered_by_nobody(model: Path, runs: Path) -> None:
    """With an adapter, the engine reads the base from its folder, and the actor sends the adapter alone."""
    for rank in facts(runs / "lora"):
        sent = set(rank["sent"]) - {"tagpr.checksum"}
        assert len(sent) == 8 * 7 * 2 and all("lora_" in name for name in sent)
        assert rank["peaks"]["hand over"] < weight_bytes(model) / 8


def test_whole_weights_pass_one_by_one(model: Path, runs: Path) -> None:
    """Two processes hold half of the weights each; only a save gathers them, in the first process."""
    whole, largest = weight_bytes(model), 4 * 8192 * 512
    first, second = (rank["peaks"] for rank in facts(runs / "whole"))
    # Loading: a shard and the buffers of a tensor in transit; the first process maps its file.
    assert max(first["load"], second["load"]) < whole / 2 + 6 * largest
    assert max(first["hand over"], second["hand over"]) < 6 * largest < whole
    assert whole * 0.9 < first["save"] < whole + 6 * largest
    assert second["save"] < whole / 2 + 6 * largest


def test_the_shards_of_two_processes_become_the_weights_that_were_loaded(model: Path, runs: Path) -> None:
    from safetensors.torch import load_file

    base = load_file(model / "model.safetensors")
    saved = load_file(runs / "whole/checkpoint/huggingface/model.safetensors")
    assert set(saved) == set(base) and all(saved[name].equal(base[name]) for name in base)
    assert len(list((runs / "whole/checkpoint").glob("model_world_size_2_rank_*.pt"))) == 2


def test_shards_travel_over_tcp_one_tensor_at_a_time(model: Path, runs: Path) -> None:
    """From two processes that hold half of each tensor to a rollout worker beside the second one."""
    first, second = facts(runs / "whole")
    arrived, largest = second["arrived"], 4 * 8192 * 512
    assert first["arrived"] == {} and len(arrived) == 2 + 1 + 8 * 11 and all(arrived.values())
    assert max(first["peaks"]["tcp"], second["peaks"]["tcp"]) < 6 * largest < weight_bytes(model)


def test_a_checkpoint_has_the_size_that_the_plan_says(model: Path, runs: Path) -> None:
    """With hybrid sharding each group writes all weights; no step was made, so there are no moments yet."""
    count = weight_bytes(model) / 4
    for name, groups in (("whole", 1), ("hybrid", 2)):
        shards = sum(file.stat().st_size for file in (runs / name / "checkpoint").glob("model_world_size_2_rank_*.pt"))
        export = (runs / name / "checkpoint/huggingface/model.safetensors").stat().st_size
        assert shards == pytest.approx(4 * count * groups, rel=0.01) and export == pytest.approx(4 * count, rel=0.01)


RELOAD = """
import json, sys, torch
from types import SimpleNamespace
from tagpr_rl.backend.rollout.vllm_worker import TagprWorkerExtension

class Model(torch.nn.Module):
    def load_weights(self, weights):
        self.seen = {name: [tensor.numel(), float(tensor.mean())] for name, tensor in weights}

def status(key):
    line = next(line for line in open("/proc/self/status") if line.startswith(key))
    return int(line.split()[1]) << 10

worker = object.__new__(TagprWorkerExtension)
worker.device, model = torch.device("cpu"), Model()
config = SimpleNamespace(model_config=SimpleNamespace(quantization=None, dtype=torch.float32))
worker.model_runner = SimpleNamespace(model=model, vllm_config=config)
open("/proc/self/clear_refs", "w").write("5")  # forget the peak
start = status("VmRSS")
count = worker.load_folder(sys.argv[1])
peak = status("VmHWM") - start
from verl.workers.rollout.vllm_rollout.vllm_async_server import vLLMHttpServer
level = {merged: vLLMHttpServer._resolve_sleep_level(SimpleNamespace(config=None, lora_as_adapter=not merged))
         for merged in (False, True)}
print(json.dumps({"count": count, "peak": peak, "seen": model.seen, "level": [level[False], level[True]]}))
"""


def test_an_engine_that_changes_folders_holds_one_tensor_at_a_time(tmp_path: Path) -> None:
    """Mapped files count here: each worker of a tensor-parallel engine reads the whole folder."""
    import torch
    from safetensors.torch import save_file

    size = 4 * MIB
    for file in range(2):
        tensors = {f"w{file}{n}": torch.full((size,), float(10 * file + n)) for n in range(4)}
        save_file(tensors, tmp_path / f"model-{file}.safetensors")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", RELOAD, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=200)
    assert done.returncode == 0, done.stderr[-3000:]
    actual = SimpleNamespace(**json.loads(done.stdout.splitlines()[-1]))
    assert actual.count == 8 and actual.seen["w12"] == [size, 12.0]
    assert 4 * size <= actual.peak < 2 * 4 * size  # of 8 x 16 MiB
    # A base that the engine read from its folder outlives its sleep (level 1); weights that are sent again need not.
    assert actual.level == [1, 2]
