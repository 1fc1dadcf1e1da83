"""The Ray session of a run: a private local one, or a connection to an existing cluster."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from tagpr_rl.backend.session.private import close_token_file, private_folder, share_secret
from tagpr_rl.backend.session.room import wait_for_room
from tagpr_rl.backend.session.shell import drop_ray_variables, require_socket_folder
from tagpr_rl.backend.session.supervisor import end_processes, supervised
from tagpr_rl.backend.session.worker_settings import WorkerSettings, to_environment
from tagpr_rl.config import Recipe
from tagpr_rl.config.placement import repeats
from tagpr_rl.deploy.address import require_reachable
from tagpr_rl.deploy.need import need
from tagpr_rl.types import TagprError

_WORKER_HOOK = "tagpr_rl.backend.session.private.prepare_worker"
LOCAL_NODE_ADDRESS = "127.0.0.2"
"""Ray rewrites 127.0.0.1 to the host's address and would listen on it; this loopback address sticks."""
NODE_WAIT_S = 15.0
"""How long a node of an existing cluster may take to join it after the cluster answers."""
OBJECT_STORE_BYTES = 400 << 20
"""Ray's object store in a private cluster: settings and rows alone pass through it."""
LOGICAL_CPUS = 64
"""Ray's CPU count is a scheduling budget, of which a run with many workers gets more (`need`)."""


def worker_settings(recipe: Recipe) -> WorkerSettings:
    """The recipe's platform block as worker processes need it, with a fresh run id."""
    platform = recipe.platform
    return WorkerSettings(
        run_id=uuid.uuid4().hex[:12],
        device=platform.device,
        threads=platform.threads,
        deterministic=repeats(platform, recipe.placement),
        zmq_timeout_s=platform.zmq_timeout_s,
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
    if recipe.platform.vllm_model_runner != "auto":
        variables["VLLM_USE_V2_MODEL_RUNNER"] = {"v1": "0", "v2": "1"}[recipe.platform.vllm_model_runner]
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
        variables = {**verl_environment(), **variables, "VERL_PLATFORM": "nvidia"}
        if settings.deterministic:
            variables["VLLM_BATCH_INVARIANT"] = "1"  # kernels whose rows do not hang on the other rows of a batch
    return variables


def verl_environment() -> dict[str, str]:
    """The variables that verl's own launcher gives the processes of a run on GPUs (verl 0.9.1 main_ppo.py:62).

    verl's function looks at the GPU, so a process of its own asks it: the run's keeps no memory there.
    """
    code = """
import json, os
from verl.trainer.constants_ppo import PPO_RAY_RUNTIME_ENV, get_ppo_ray_runtime_env
shell = {name: os.environ[name] for name in PPO_RAY_RUNTIME_ENV["env_vars"] if name in os.environ}
print(json.dumps({**shell, **get_ppo_ray_runtime_env()["env_vars"]}))
"""
    own = {**os.environ, "VERL_PLATFORM": "nvidia"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=own, check=False)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise TagprError(f"verl cannot be imported: {reason}; install the lock again (`make install-gpu`)")
    variables: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
    return variables


@contextmanager
def ray_session(recipe: Recipe, logs: Path | None = None) -> Iterator[Any]:
    """Start or join Ray for the run; yields the `ray` module; always disconnects.

    Without `platform.ray_address` a private cluster starts behind a token, with as many logical GPUs as
    the recipe has devices; it ends with the session, and after an error leaves its logs in `logs`. With an address,
    TagprError if the cluster cannot be reached, or is smaller than the recipe asks for longer than `cluster.wait_s`;
    a private cluster has this machine's devices and gets no others, so there is nothing to wait for.
    """
    prepare_shell(recipe)
    import ray

    settings = worker_settings(recipe)
    options: dict[str, Any] = {
        "runtime_env": {"env_vars": environment(recipe, settings), "worker_process_setup_hook": _WORKER_HOOK},
        "log_to_driver": False,
        "logging_level": "error",
        "namespace": "tagpr",
    }
    if recipe.platform.ray_address:
        options["address"] = recipe.platform.ray_address
        options["namespace"] = f"tagpr-{uuid.uuid4().hex[:8]}"
    else:
        whole = need(recipe)
        options |= {
            "num_cpus": max(LOGICAL_CPUS, whole.cpus),
            "num_gpus": math.ceil(whole.devices) if recipe.platform.device == "cpu" else None,
            "object_store_memory": OBJECT_STORE_BYTES,
            "include_dashboard": False,
            "_node_ip_address": LOCAL_NODE_ADDRESS,
            "address": "local",
        }
    os.environ.setdefault("RAY_DEDUP_LOGS", "1")
    os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"
    with ExitStack() as stack:
        if recipe.platform.ray_address:
            # In a submitted job, the recipe's variables win over those that the job was submitted with.
            os.environ["RAY_OVERRIDE_JOB_RUNTIME_ENV"] = "1"
            _join(ray, options)
        else:
            options["_temp_dir"] = str(stack.enter_context(private_folder(os.environ, logs)))
            _start(ray, options)
        stack.callback(end_processes, settings.run_id)
        stack.callback(ray.shutdown)
        close_token_file()
        share_secret(settings.run_id)
        wait_for_room(recipe)
        stack.enter_context(supervised(ray, settings.run_id, private=not recipe.platform.ray_address))
        yield ray


def prepare_shell(recipe: Recipe) -> None:
    """Take out of this process's environment what must not reach the run's, with a line for each; see shell.py.

    TagprError if no folder for sockets can be written.
    """
    removed = require_socket_folder(os.environ)
    if not recipe.platform.ray_address:
        removed += drop_ray_variables(os.environ, cpu=recipe.platform.device == "cpu")
    for line in removed:
        print(line, file=sys.stderr, flush=True)


def _start(ray: Any, options: dict[str, Any]) -> None:
    """`ray.init` of a private cluster; TagprError with the remedy if it does not start."""
    try:
        _init(ray, options)
    except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise TagprError(
            f"the run's own Ray cluster does not start: {reason}\n`tagpr doctor` looks for the cause on this machine: "
            "memory, processes of an earlier run, variables of the shell, the folder for temporary files."
        ) from error


def _join(ray: Any, options: dict[str, Any]) -> None:
    """`ray.init` on an existing cluster; TagprError with the remedy if there is none."""
    address = options["address"]
    if address == "auto":
        address = options["address"] = automatic_address()
    require_reachable(address)
    try:
        if "://" not in address and not _node_is_here(address):
            raise ConnectionError("this machine is none of its nodes")
        _init(ray, options)
    except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise TagprError(
            f"platform.ray_address={address}: cannot join that Ray cluster: {reason}\n"
            "The run must start on one of its nodes, with the Ray version and the token of the cluster; "
            "`tagpr cluster submit` starts it there from any machine."
        ) from error


def _init(ray: Any, options: dict[str, Any]) -> None:
    """`ray.init` without its handler of SIGTERM, which aborts the process in C++ (ray/_private/worker.py)."""
    before = signal.getsignal(signal.SIGTERM)
    ray.init(**options)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, before)


def automatic_address() -> str:
    """What Ray takes "auto" for: RAY_ADDRESS, or the cluster started last on this machine, which may be gone."""
    from ray._private.services import canonicalize_bootstrap_address  # the public call would join, or wait for ever

    address = canonicalize_bootstrap_address("auto")
    if address is None:
        raise TagprError(
            "platform.ray_address=auto: no Ray cluster was started on this machine; name the head's host:port there or "
            "in RAY_ADDRESS, or leave platform.ray_address out for a private cluster"
        )
    return str(address)


def _node_is_here(address: str) -> bool:
    """Whether a node of the cluster has one of this machine's addresses; elsewhere `ray.init` aborts the process."""
    import psutil
    from ray._raylet import GcsClient  # type: ignore[attr-defined]  # no public call lists nodes without joining

    own = {entry.address for entries in psutil.net_if_addrs().values() for entry in entries}
    client, deadline = GcsClient(address=address), time.monotonic() + NODE_WAIT_S
    while True:
        # All of 127.0.0.0/8 is this machine. 0 = ALIVE (ray/protobuf gcs.proto, GcsNodeInfo.GcsNodeState).
        alive = [node for node in client.get_all_node_info(timeout=30).values() if node.state == 0]
        if any(node.node_manager_address in own or node.node_manager_address.startswith("127.") for node in alive):
            return True
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.5)  # a cluster answers before its own node has joined it
