"""Weights over TCP arrive as they left, in order, at every receiver; a stranger's message is passed over."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from typing import Any

import pytest

pytestmark = [pytest.mark.stack, pytest.mark.torch]


async def collect(engine: Any) -> list[tuple[str, Any]]:
    return [item async for item in engine.receive_weights()]


def test_weights_arrive(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray
    import torch
    import zmq

    from tagpr_rl.backend.rollout.tcp_weights import TcpWeights

    monkeypatch.setattr(ray.util, "get_node_ip_address", lambda: "127.0.0.1")
    sender, idle = TcpWeights(1 << 20, is_master=True), TcpWeights(1 << 20)
    receivers = [TcpWeights(1 << 20) for _ in range(2)]
    everyone = [sender, idle, *receivers]
    metadata = [engine.prepare() for engine in everyone]
    actors, rollouts = TcpWeights.build_topology(2, 2, metadata)
    assert [len(item) for item in (*actors["receivers"], *rollouts["receivers"])] == [2, 0, 0, 0]
    for engine, peers in zip(everyone, [*actors["receivers"], *rollouts["receivers"]], strict=True):
        engine.init_process_group(receivers=peers)
    stranger = zmq.Context.instance().socket(zmq.PUSH)
    stranger.connect(metadata[2]["address"])
    forged = {"name": "a", "dtype": "float32", "shape": [1], "token": "guess"}
    stranger.send_multipart([json.dumps(forged).encode(), b"\0\0\0\0"])
    weights = {
        "a": torch.randn(3, 5).t(), "b": torch.arange(4, dtype=torch.bfloat16), "scalar": torch.tensor(2.5),
    }  # fmt: skip

    async def both() -> list[Any]:
        sent = [sender.send_weights(iter(weights.items())), idle.send_weights(iter(weights.items()))]
        return await asyncio.gather(*sent, *(collect(engine) for engine in receivers))

    _, _, *received = asyncio.run(both())
    for actual in received:
        assert [name for name, _ in actual] == list(weights)
        for name, tensor in actual:
            assert tensor.dtype == weights[name].dtype and torch.equal(tensor, weights[name])
    stranger.close(linger=0)
    for engine in everyone:
        engine.finalize()
        engine.finalize()


def test_the_module_that_a_receiver_imports_brings_the_engine_and_the_run_s_sockets() -> None:
    """verl's weight receiver imports `custom_backend_module` alone, then looks both of these up by name."""
    code = (
        "import tagpr_rl.backend.trainer.worker_hooks\n"
        "from verl.checkpoint_engine.base import CheckpointEngineRegistry as engines\n"
        "from verl.workers.rollout.base import get_rollout_class\n"
        "print('tagpr_tcp' in engines._registry, get_rollout_class('vllm', 'async').__name__)"
    )
    environment = os.environ | {"VERL_PLATFORM": "cpu"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert done.stdout.splitlines()[-1:] == ["True TagprServerAdapter"], done.stderr[-2000:]
