"""What worker processes must know, carried in environment variables (set once, read anywhere).

Imports nothing heavy: every Ray worker reads this before verl or vllm is imported.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass

_VARIABLE = "TAGPR_WORKER_SETTINGS"


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """Settings of one run, the same in all of its processes."""

    run_id: str = "local"
    """Unique per run on a host; names sockets, so that two runs never share one."""
    device: str = "cpu"
    threads: int = 2
    deterministic: bool = False
    """Whether the run repeats to the bit (config.platform.repeats)."""
    zmq_timeout_s: int = 120


def to_environment(settings: WorkerSettings) -> dict[str, str]:
    """The environment variables that carry `settings` to every process of the run."""
    return {_VARIABLE: json.dumps(asdict(settings), sort_keys=True)}


def from_environment() -> WorkerSettings:
    """Settings of this process; the defaults if the variable is not set, as in a process that this project did not
    start."""
    text = os.environ.get(_VARIABLE)
    return WorkerSettings(**json.loads(text)) if text else WorkerSettings()
