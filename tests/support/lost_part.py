"""A run's Ray session in which a stage waits for a part that `stop`, `kill`, `ask`, `head` or `memory` takes away.

Prints the error and how many processes are left. `group`: a stage has ended and removed its placement group, which is
no error in the next one.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

from tagpr_rl.backend.session import parts, supervisor
from tagpr_rl.backend.session.ray_session import ray_session
from tagpr_rl.config import load_recipe


def run_out_of_memory() -> None:
    """Ray's own monitor ends a worker, as its limit is already passed."""
    os.environ |= {"RAY_memory_usage_threshold": "0.01", "RAY_memory_monitor_refresh_ms": "100"}
    import ray

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error")
    task = ray.remote(max_retries=0)(lambda: time.sleep(3600)).remote()
    try:
        supervisor.result(task)
    except supervisor.LostPartError as error:
        print(error)
    ray.shutdown()
    print("left: 0")


def end_a_stage(ray: Any) -> None:
    """A placement group with an actor is removed, and the next stage waits for longer than a death takes to be told."""
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    class Worker:
        def ready(self) -> int:
            return os.getpid()

    group = ray.util.placement_group([{"CPU": 1}])
    place = PlacementGroupSchedulingStrategy(group)
    worker = ray.remote(num_cpus=1, scheduling_strategy=place)(Worker).remote()
    ray.get(worker.ready.remote())
    ray.util.remove_placement_group(group)
    seconds = (parts.DEAD_LOOKS + 6) * supervisor.LOOK_S
    print("answer:", supervisor.result(ray.remote(num_cpus=0)(lambda: time.sleep(seconds) or 1).remote()))


def main(fault: str) -> None:
    supervisor.LOOK_S = 0.3
    before = {part.pid for part in parts.look("", "no run", above=os.getpid())}
    began = time.monotonic()
    try:
        with ray_session(load_recipe(Path("recipes/smoke.yaml"), [])) as ray:
            if fault == "group":
                end_a_stage(ray)
                return

            @ray.remote(num_cpus=0)
            class Silent:
                def pid(self) -> int:
                    return os.getpid()

                def wait(self) -> None:
                    print("the part's own last line", flush=True)
                    time.sleep(3600)

            silent = Silent.remote()
            pid = ray.get(silent.pid.remote())

            @ray.remote(num_cpus=0)
            def stage(part: object) -> None:
                answer = part.wait.remote()  # type: ignore[attr-defined]
                if fault == "ask":
                    ray.get(answer)
                time.sleep(3600)  # verl's driver waits for an agent's answer and not for its actor

            task = stage.remote(silent)
            supervisor.is_done(task, 2)
            if fault == "head":
                servers = [part for part in parts.look("", "no run", above=os.getpid()) if "gcs_server" in part.title]
                pid = servers[0].pid
            os.kill(pid, signal.SIGKILL if fault in ("kill", "ask") else signal.SIGSTOP)
            began = time.monotonic()
            supervisor.result(task)
    except supervisor.LostPartError as error:
        print(error)
    threading.Event().wait(0.5)
    left = {part.pid for part in parts.look("", "no run", above=os.getpid())} - before
    print(f"left: {len(left)} after {time.monotonic() - began:.1f} s")


if __name__ == "__main__":
    run_out_of_memory() if sys.argv[1] == "memory" else main(sys.argv[1])
