"""One process of tests/contract/test_host_memory.py: what loading, handing over and saving weights hold in memory.

Run by torchrun with a JSON file of jobs: `model` (a folder), `lora_rank`, `load_format`, `fsdp_size`, `tcp` (send the
weights to a rollout on another device, too), `out` (a folder). For each, each process writes `<out>/<rank>.json`: bytes
of its own memory at the peak of each phase, above those at its start.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

os.environ |= {"VERL_PLATFORM": "cpu", "TOKENIZERS_PARALLELISM": "false"}

import torch
import torch.distributed as dist
from safetensors import safe_open
from verl.trainer.config import CheckpointConfig
from verl.workers.config import FSDPEngineConfig, FSDPOptimizerConfig, HFModelConfig
from verl.workers.engine import EngineRegistry
from verl.workers.engine_workers import ActorRolloutRefWorker

EVERY_S = 0.002


def own_bytes() -> int:
    """Memory that this process has for itself: without mapped files, which all processes share."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return sum(int(line.split()[1]) << 10 for line in lines if line.startswith(("RssAnon", "RssShmem")))


@contextmanager
def peak(peaks: dict[str, int], name: str) -> Iterator[None]:
    """Record the largest growth of `own_bytes` within the block."""
    gc.collect()
    dist.barrier()
    start, largest, end = own_bytes(), [0], threading.Event()

    def watch() -> None:
        while not end.wait(EVERY_S):
            largest[0] = max(largest[0], own_bytes() - start)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield
    finally:
        end.set()
        watcher.join()
    peaks[name] = largest[0]


class Receiver:
    """Stands where verl's ServerAdapter sends to: takes each tensor, and keeps names and sizes."""

    sleep_level = 1

    def __init__(self) -> None:
        self.bytes: dict[str, int] = {}

    async def update_weights(self, weights: Any, **_: Any) -> None:
        """Drain the weights, as every rank must."""
        for name, tensor in weights:
            self.bytes[name] = tensor.numel() * tensor.element_size()


def engine_of(job: dict[str, Any]) -> Any:
    compute = {"param_dtype": "fp32", "reduce_dtype": "fp32", "buffer_dtype": "fp32"}
    return EngineRegistry.new(
        model_type="language_model",
        backend="fsdp2",
        model_config=HFModelConfig(
            path=job["model"],
            external_lib=["tagpr_rl.backend.trainer.worker_hooks"],
            enable_gradient_checkpointing=False,
            use_remove_padding=False,
            override_config={"attn_implementation": "sdpa"},
            lora_rank=job["lora_rank"],
            lora_alpha=2 * job["lora_rank"],
            target_modules="all-linear",
        ),
        engine_config=FSDPEngineConfig(
            strategy="fsdp2", use_torch_compile=False, mixed_precision=compute, use_dynamic_bsz=False,
            use_remove_padding=False, micro_batch_size_per_gpu=1, fsdp_size=job["fsdp_size"],
        ),
        optimizer_config=FSDPOptimizerConfig(lr=1e-3, total_training_steps=1),
        checkpoint_config=CheckpointConfig(save_contents=["model", "hf_model"], load_contents=["model"]),
    )  # fmt: skip


def worker_of(engine: Any, load_format: str) -> Any:
    """What verl's worker (engine_workers.py:562-690) has when it hands weights over."""
    rollout = SimpleNamespace(
        name="vllm", free_cache_engine=False, checkpoint_engine=SimpleNamespace(backend="naive"),
        get={"name": "vllm"}.get,
    )  # fmt: skip
    return SimpleNamespace(
        config=SimpleNamespace(rollout=rollout),
        rollout=Receiver(),
        actor=SimpleNamespace(engine=engine),
        layered_summon=False,
        peft_merge=False,
        base_sync_done="dummy" not in load_format,
    )


def over_tcp(engine: Any, model: str) -> dict[str, bool]:
    """Send the weights as verl's worker does with `placement.rollout: separate`; the second process has the receiver.

    Name -> whether the tensor arrived as it stands in the model's file (the receiver alone).
    """
    from tagpr_rl.backend.forward.checksum import CHECKSUM
    from tagpr_rl.backend.rollout import tcp_weights

    tcp_weights.ray = SimpleNamespace(util=SimpleNamespace(get_node_ip_address=lambda: "127.0.0.1"))
    first = dist.get_rank() == 0
    sender, receiver = tcp_weights.TcpWeights(1 << 20, is_master=first), tcp_weights.TcpWeights(1 << 20)
    mine = [sender.prepare(), {} if first else receiver.prepare()]
    gathered: list[Any] = [None, None]
    dist.all_gather_object(gathered, mine)
    metadata = [gathered[0][0], gathered[1][0], gathered[1][1]]
    actors, _ = tcp_weights.TcpWeights.build_topology(2, 1, metadata)
    sender.init_process_group(receivers=actors["receivers"][dist.get_rank()])
    arrived: dict[str, bool] = {}

    async def collect() -> None:
        with safe_open(Path(model) / "model.safetensors", "pt") as file:
            async for name, tensor in receiver.receive_weights():
                if name != CHECKSUM:
                    arrived[name] = torch.equal(tensor, file.get_tensor(name))

    # In a thread of its own: the second process also takes part in gathering each tensor.
    thread = threading.Thread(target=lambda: asyncio.run(collect()))
    if not first:
        thread.start()
    asyncio.run(sender.send_weights(engine.get_per_tensor_param()[0]))
    if not first:
        thread.join()
    dist.barrier()  # as verl: sockets are closed when all have received
    for each in (sender, receiver):
        each.finalize()
    return arrived


def run(job: dict[str, Any]) -> None:
    """Load, hand over, save; nothing of it stays in memory."""
    peaks: dict[str, int] = {}
    engine = engine_of(job)
    with peak(peaks, "load"):
        engine.initialize()
    worker = worker_of(engine, job["load_format"])
    with peak(peaks, "hand over"):
        asyncio.run(ActorRolloutRefWorker.update_weights(worker))
    out = Path(job["out"])
    with peak(peaks, "save"):
        engine.save_checkpoint(str(out / "checkpoint"), global_step=1)
    arrived: dict[str, bool] = {}
    if job["tcp"]:
        with peak(peaks, "tcp"):
            arrived = over_tcp(engine, job["model"])
    facts = {"peaks": peaks, "sent": worker.rollout.bytes, "arrived": arrived}
    (out / f"{dist.get_rank()}.json").write_text(json.dumps(facts), encoding="utf-8")
    dist.barrier()


def main() -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    for job in json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")):
        run(job)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
