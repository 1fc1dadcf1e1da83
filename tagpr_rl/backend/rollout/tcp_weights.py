"""verl checkpoint engine "tagpr_tcp": weights from the policy to rollout servers on other devices or nodes, over TCP.

For the CPU platform: verl's own engines (nccl, nixl, ...) need accelerators. `trainer.worker_hooks`
imports this module; the interface is verl 0.9.1 checkpoint_engine/base.py.
Rank 0 of the policy sends; every rollout worker listens on its node's address in the Ray cluster. Tensors travel
as raw bytes behind a JSON header that carries a token of the transfer, so no stranger's message is read as weights.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import AsyncGenerator, Generator
from typing import Any

import ray
import torch
import zmq
from verl.checkpoint_engine.base import CheckpointEngine, CheckpointEngineRegistry

from tagpr_rl.backend.session.worker_settings import from_environment

_END = ""


@CheckpointEngineRegistry.register("tagpr_tcp")
class TcpWeights(CheckpointEngine):
    """One PUSH socket per receiver; a slow receiver blocks the sender, a dead one ends it with zmq.Again."""

    def __init__(self, bucket_size: int, is_master: bool = False) -> None:
        self.is_master, self._token = is_master, ""
        self._sockets: list[Any] = []

    def prepare(self) -> dict[str, str]:
        """The address of this process, and the token that its sender must show; Ray carries both."""
        self.finalize()  # a transfer that failed left its sockets
        if self.is_master:
            return {}
        host = ray.util.get_node_ip_address()
        socket = self._socket(zmq.PULL)
        port = socket.bind_to_random_port(f"tcp://{host}")
        self._token = secrets.token_hex(16)
        return {"address": f"tcp://{host}:{port}", "token": self._token}

    @classmethod
    def build_topology(
        cls, actor_wg_world_size: int, rollout_world_size: int, metadata: list[dict[str, str]]
    ) -> tuple[dict[str, list[Any]], dict[str, list[Any]]]:
        """Rank 0 gets every receiver's address; the other ranks need none."""
        receivers = metadata[actor_wg_world_size:]
        actors: list[Any] = [receivers] + [[] for _ in range(actor_wg_world_size - 1)]
        return {"receivers": actors}, {"receivers": [[] for _ in range(rollout_world_size)]}

    def init_process_group(self, receivers: list[dict[str, str]]) -> None:
        """Connect to the receivers (the sender only)."""
        self._tokens = [receiver["token"] for receiver in receivers]
        for receiver in receivers:
            self._socket(zmq.PUSH).connect(receiver["address"])

    def finalize(self) -> None:
        """Close the sockets."""
        for socket in self._sockets:
            socket.close(linger=0)
        self._sockets = []

    @torch.no_grad()
    async def send_weights(
        self, weights: Generator[tuple[str, torch.Tensor], None, None], global_steps: int | None = None
    ) -> dict[str, float]:
        """Send every weight. All ranks walk the generator, because gathering a sharded tensor is collective."""
        for name, tensor in weights:
            if self.is_master:
                await asyncio.to_thread(self._send, name, tensor.detach().contiguous().cpu())
        if self.is_master:
            await asyncio.to_thread(self._send, _END, torch.empty(0))
        return {}

    async def receive_weights(self, global_steps: int | None = None) -> AsyncGenerator[tuple[str, torch.Tensor], None]:
        """Yield the weights in the order they were sent."""
        while True:
            head, body = await asyncio.to_thread(self._sockets[0].recv_multipart)
            facts = json.loads(head)
            if not secrets.compare_digest(str(facts["token"]), self._token):
                continue
            if facts["name"] == _END:
                return
            flat = torch.frombuffer(bytearray(body), dtype=getattr(torch, facts["dtype"]))
            yield facts["name"], flat.reshape(facts["shape"])

    def _send(self, name: str, tensor: torch.Tensor) -> None:
        body = tensor.reshape(-1).view(torch.uint8).numpy() if tensor.numel() else b""
        facts = {"name": name, "dtype": str(tensor.dtype).removeprefix("torch."), "shape": list(tensor.shape)}
        for socket, token in zip(self._sockets, self._tokens, strict=True):
            socket.send_multipart([json.dumps(facts | {"token": token}).encode(), body], copy=True)

    def _socket(self, kind: int) -> Any:
        socket: Any = zmq.Context.instance().socket(kind)
        milliseconds = from_environment().zmq_timeout_s * 1000
        socket.setsockopt(zmq.RCVTIMEO, milliseconds)
        socket.setsockopt(zmq.SNDTIMEO, milliseconds)
        socket.setsockopt(zmq.SNDHWM, 8)
        socket.setsockopt(zmq.RCVHWM, 8)
        self._sockets.append(socket)
        return socket
