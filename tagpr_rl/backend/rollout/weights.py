"""Weight transfer from actor to rollout: per-run sockets, time-outs, and proof of what arrived.

Subclasses of verl 0.9.1's vllm_rollout.ServerAdapter and bucketed_weight_transfer classes. The actor side is put in
place here and by `worker_hooks`, the rollout side by `vllm_worker`.
"""

from __future__ import annotations

import os
import tempfile
from typing import Any

import zmq
from verl.workers.rollout.vllm_rollout import bucketed_weight_transfer as transfer
from verl.workers.rollout.vllm_rollout import vllm_rollout

from tagpr_rl.backend.rollout.arrival import require
from tagpr_rl.backend.session.worker_settings import from_environment


def socket_address(replica_rank: int, local_rank: int) -> str:
    """The ZMQ address over which weights travel from actor to rollout, unique per run.

    verl names it after the Ray job id (vllm_rollout.py:136), which repeats on every fresh cluster,
    so that two runs on one host would share a socket and hang.
    """
    name = f"tagpr-{from_environment().run_id}-replica-{replica_rank}-rank-{local_rank}.sock"
    return f"ipc://{os.path.join(tempfile.gettempdir(), name)}"


def _with_timeouts(socket: Any) -> None:
    milliseconds = from_environment().zmq_timeout_s * 1000
    socket.setsockopt(zmq.RCVTIMEO, milliseconds)
    socket.setsockopt(zmq.SNDTIMEO, milliseconds)
    socket.setsockopt(zmq.LINGER, 0)


class TimedWeightSender(transfer.BucketedWeightSender):
    """A sender that raises zmq.Again instead of waiting for ever for a receiver that died."""

    def _init_socket(self) -> None:
        super()._init_socket()
        _with_timeouts(self.socket)


vllm_rollout.BucketedWeightSender = TimedWeightSender  # ServerAdapter builds its senders by this name


class TimedWeightReceiver(transfer.BucketedWeightReceiver):
    """A receiver that raises zmq.Again instead of waiting for ever for a sender that died."""

    def _init_socket(self) -> None:
        super()._init_socket()
        _with_timeouts(self.socket)


class TagprServerAdapter(vllm_rollout.ServerAdapter):
    """Actor side of the weight transfer, over the per-run socket."""

    def __init__(self, config: Any, model_config: Any, device_mesh: Any, replica_rank: int = -1) -> None:
        super().__init__(config, model_config, device_mesh, replica_rank)
        local_rank = self.rollout_rank % int(os.environ["RAY_LOCAL_WORLD_SIZE"])
        self.zmq_handle = socket_address(self.replica_rank, local_rank)

    async def update_weights(self, weights: Any, global_steps: int | None = None, **kwargs: Any) -> None:
        """verl's hand-over; TagprError if the server then holds other weights than the policy sent."""
        await super().update_weights(weights, global_steps=global_steps, **kwargs)
        if self._has_server:
            for proof in await self.server_handle.weights_proof.remote():
                require(proof, global_steps)
