"""The Ray session of a run: a private local one, or a connection to an existing cluster."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tagpr_rl.backend.settings import WorkerSettings, to_environment
from tagpr_rl.config import Recipe

LOCAL_NODE_ADDRESS = "127.0.0.2"
"""Ray rewrites 127.0.0.1 to the host's address and would listen on it; this loopback address sticks."""
LOGICAL_CPUS = 64
"""Ray's CPU count is a scheduling budget; verl's placement group alone asks for 3 per worker."""


def worker_settings(recipe: Recipe) -> WorkerSettings:
    """The recipe's platform block as worker processes need it, with a fresh run id."""
    platform = recipe.platform
    cpu = platform.device == "cpu"
    cuts = platform.cuts
    return WorkerSettings(
        run_id=uuid.uuid4().hex[:12],
        device=platform.device,
        threads=platform.threads,
        zmq_timeout_s=platform.zmq_timeout_s,
        fast_logprobs=cpu and cuts.fast_logprobs,
        single_process_vllm=cpu and cuts.single_process_vllm,
        final_output_only=cpu and cuts.final_output_only,
        replay_poll_seconds=cuts.replay_poll_seconds,
        disable_compile=cpu and cuts.disable_compile,
        direct_agent_loops=cpu and cuts.direct_agent_loops,
        coalesced_puts=cpu and cuts.coalesced_puts,
    )


def environment(recipe: Recipe, settings: WorkerSettings) -> dict[str, str]:
    """Environment variables of every process of the run."""
    variables = {
        **to_environment(settings),
        "TOKENIZERS_PARALLELISM": "false",
        "VLLM_LOGGING_LEVEL": "WARNING",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": os.environ.get("HF_HUB_OFFLINE", "0"),
        "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
        "TRANSFER_QUEUE_ENABLE": "1",
        "PYTHONWARNINGS": "ignore::UserWarning:verl.workers.engine",  # engines that nobody asked for
    }
    if recipe.platform.device == "cpu":
        variables |= {
            "VERL_PLATFORM": "cpu",
            "DS_ACCELERATOR": "cpu",
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": str(recipe.platform.threads),
            "OMP_WAIT_POLICY": "PASSIVE",  # waiting threads must not spin on a core that another process needs
            "MALLOC_MMAP_THRESHOLD_": "1073741824",  # keep big tensors on the heap: no page faults every step
            "MALLOC_TRIM_THRESHOLD_": "1073741824",
            "MALLOC_TOP_PAD_": "67108864",
        }
    else:
        variables["VERL_PLATFORM"] = "nvidia"
    return variables


def total_devices(recipe: Recipe) -> int:
    """Devices of the whole run: the policy's, and those of a separate rollout."""
    own, platform = recipe.placement, recipe.platform
    rollout = own.rollout_nodes * own.rollout_devices_per_node if own.rollout == "separate" else 0
    return platform.nodes * platform.devices_per_node + rollout


@contextmanager
def ray_session(recipe: Recipe) -> Iterator[Any]:
    """Start or join Ray for the run; yields the `ray` module; always disconnects.

    Without `platform.ray_address` a private cluster starts on loopback with as many logical GPUs as
    the recipe has devices; it ends with the session.
    """
    import ray

    variables = environment(recipe, worker_settings(recipe))
    options: dict[str, Any] = {
        "runtime_env": {"env_vars": variables},
        "log_to_driver": False,
        "logging_level": "error",
        "namespace": "tagpr",
    }
    if recipe.platform.ray_address:
        options["address"] = recipe.platform.ray_address
        options["namespace"] = f"tagpr-{uuid.uuid4().hex[:8]}"
    else:
        devices = total_devices(recipe)
        options |= {
            "num_cpus": LOGICAL_CPUS,
            "num_gpus": devices if recipe.platform.device == "cpu" else None,
            "object_store_memory": recipe.platform.object_store_mb << 20,
            "include_dashboard": False,
            "_node_ip_address": LOCAL_NODE_ADDRESS,
        }
    os.environ.setdefault("RAY_DEDUP_LOGS", "1")
    os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"
    ray.init(**options)
    try:
        yield ray
    finally:
        ray.shutdown()


def free_devices() -> float:
    """Devices (Ray's "GPU") that are free now."""
    import ray

    return float(ray.available_resources().get("GPU", 0.0))


def end_actor(actor: Any, devices: float, timeout_s: float = 60.0) -> None:
    """End a stage's driver actor; wait until what it started is gone and `devices` devices are free again.

    The next stage uses the same actor names and devices, and Ray frees both some time after a death.
    """
    import ray

    ray.kill(actor, no_restart=True)
    deadline = time.monotonic() + timeout_s
    while ray.util.list_named_actors() or free_devices() < devices:
        if time.monotonic() > deadline:
            raise RuntimeError(
                f"{timeout_s} s after the end of a stage its actors {ray.util.list_named_actors()} are alive, or "
                f"{free_devices()} devices are free where {devices} were; the run can be started again and goes on"
            )
        time.sleep(0.1)
