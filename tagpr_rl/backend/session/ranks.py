"""Training processes of one stage as Ray actors: where they meet, and what torch.distributed reads."""

from __future__ import annotations

import os
import socket
from typing import Any


class Rank:
    """One training process; a base of Ray actor classes."""

    def address(self) -> tuple[str, int]:
        """A free port of this node, for the first process to listen on."""
        import ray

        host = ray.util.get_node_ip_address()
        with socket.socket() as probe:
            probe.bind((host, 0))
            return host, int(probe.getsockname()[1])


def join(rank: int, world: int, first: tuple[str, int], device: str) -> None:
    """Make this process number `rank` of `world` that meet at `first`; returns once all are there."""
    os.environ |= {
        "RANK": str(rank),
        "WORLD_SIZE": str(world),
        "LOCAL_RANK": "0",  # Ray shows each actor its own device only; DeepSpeed insists on the variable
        "LOCAL_WORLD_SIZE": "1",
        "MASTER_ADDR": first[0],
        "MASTER_PORT": str(first[1]),
    }
    import torch.distributed as dist

    dist.init_process_group("gloo" if device == "cpu" else "cpu:gloo,cuda:nccl")


def run_together(workers: list[Any], *arguments: Any) -> list[Any]:
    """`worker.run(rank, world, first, *arguments)` on all, then their end. Returns in order; raises what one raised."""
    import ray

    try:
        first = ray.get(workers[0].address.remote())
        return list(
            ray.get([worker.run.remote(rank, len(workers), first, *arguments) for rank, worker in enumerate(workers)])
        )
    finally:
        for worker in workers:
            ray.kill(worker, no_restart=True)
