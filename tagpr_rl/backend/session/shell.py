"""The shell's environment at the start of a run's own Ray cluster: what would win over it without a word.

Loads nothing heavy: `tagpr doctor` asks before Ray is imported.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, MutableMapping
from pathlib import Path

from tagpr_rl.types import TagprError

SOCKET_BYTES = 107
"""Longest path of a Unix socket on Linux (sun_path without its last zero)."""
PREFIX = "tagpr-"
"""How the folder of a run's own Ray cluster begins."""
BELOW = len("/tagpr-abcdefgh/ray/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store.1")
"""What a run and Ray put below the folder for temporary files. Sockets of vLLM and of multiprocessing are shorter."""
OTHER_CLUSTER = (
    "RAY_ADDRESS", "RAY_NAMESPACE", "RAY_JOB_CONFIG_JSON_ENV_VAR", "RAY_RUNTIME_ENV_HOOK", "RAY_OVERRIDE_RESOURCES",
    "RAY_OVERRIDE_JOB_RUNTIME_ENV", "RAY_REDIS_ADDRESS", "RAY_CLIENT_MODE",
    "RAY_ENABLE_AUTO_CONNECT", "RAY_LOCAL_MODE", "RAY_RAYLET_PID", "RAY_NODE_ID", "RAY_JOB_ID", "RAY_WORKER_NICENESS",
)  # fmt: skip
"""Variables that belong to another Ray cluster: its address, its resources, its login."""


def unfit_for_sockets(folder: str) -> str:
    """Why sockets cannot lie below a folder for temporary files; "" if they can."""
    if len(os.fsencode(folder)) + BELOW > SOCKET_BYTES:
        return f"its {len(os.fsencode(folder))} bytes are too long for sockets, {SOCKET_BYTES - BELOW} are the most"
    if not os.path.isabs(folder):
        return "it is no absolute path"
    if not os.path.isdir(folder):
        return "there is no such folder"
    try:
        with tempfile.TemporaryFile(dir=folder):  # permissions alone do not tell of a read-only or a full disk
            return ""
    except OSError as error:
        return f"it is not writable ({error.strerror})"


def unfit_folders(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables for temporary files in which no sockets can lie -> why."""
    named = {name: environment[name] for name in ("RAY_TMPDIR", "TMPDIR") if name in environment}
    return {name: why for name, folder in named.items() if (why := unfit_for_sockets(folder))}


def short_folder(candidates: tuple[str, ...] = ("/tmp", "/var/tmp", "/dev/shm")) -> str:
    """A folder of this user for sockets and temporary files. TagprError if there is none."""
    for candidate in candidates:
        path = Path(candidate) / f"tagpr-{os.getuid()}"
        try:
            path.mkdir(mode=0o700, exist_ok=True)
        except OSError:
            continue
        if not unfit_for_sockets(str(path)) and path.stat().st_uid == os.getuid() and not path.is_symlink():
            return str(path)
    raise TagprError(
        f"no folder for the sockets of the run's processes: {', '.join(candidates)} are not writable; set TMPDIR to a "
        f"writable folder whose path has at most {SOCKET_BYTES - BELOW} bytes"
    )


def require_socket_folder(environment: MutableMapping[str, str]) -> list[str]:
    """Make TMPDIR and RAY_TMPDIR fit for sockets; a line for each that did not. TagprError if no folder does."""
    unfit = unfit_folders(environment)
    if not unfit and not unfit_for_sockets(tempfile.gettempdir()):
        return []
    folder = short_folder()
    lines = [f"{name}={environment[name]}: {why}; this run uses {folder}" for name, why in unfit.items()]
    environment.pop("RAY_TMPDIR", None)
    environment["TMPDIR"] = folder
    tempfile.tempdir = None  # it is read from the environment once
    return lines or [f"{tempfile.gettempdir()}: this run uses {folder} for temporary files"]


def drop_ray_variables(environment: MutableMapping[str, str], *, cpu: bool) -> list[str]:
    """Remove the variables of another cluster, and on the `cpu` those that hide GPUs; a line for each.

    A CPU run counts its devices as Ray's GPUs, and Ray refuses more of them than CUDA_VISIBLE_DEVICES has.
    """
    hiding = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES") if cpu else ()
    dropped = [name for name in (*OTHER_CLUSTER, *hiding) if name in environment]
    values = {name: environment.pop(name) for name in dropped}
    return [
        f"{name} of the shell is not used: this run starts a Ray cluster of its own"
        + (" (platform.ray_address joins one)" if name == "RAY_ADDRESS" else "")
        for name in dropped
        if values[name] not in ("", "0") and name not in hiding  # importing Ray sets RAY_CLIENT_MODE=0 itself
    ]
