"""How the agent loops ask the rollout servers: for whole responses only, and for a group of them with one call."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

from verl.workers.rollout.llm_server import LLMServerClient, LLMServerManager

ATTEMPTS = 3
"""How often a response is asked for that the engine does not end by itself."""
GROUP_WAIT_S = 0.005
"""How long the first request of a group waits for the others."""


class WholeResponseClient(LLMServerClient):
    """A client that lets no response pass which the engine ended before its end: it would be rewarded as it is."""

    async def generate(self, request_id: str, **kwargs: Any) -> Any:
        """verl's TokenOutput of one prompt. A response that the engine ended (abort, error) is asked for again.

        RuntimeError if it ended `ATTEMPTS` of them: nothing that is not whole is rewarded.
        """
        for _ in range(ATTEMPTS):
            output = await super().generate(request_id, **kwargs)
            if output.stop_reason == "completed":  # verl's word for vLLM's stop and length
                return output
        raise RuntimeError(
            f"the engine ended a response {ATTEMPTS} times, the last for the reason {output.stop_reason!r}; it is not "
            "whole, and the step cannot be taken: go on from the last checkpoint with `tagpr resume`"
        )


class OneServerClient(WholeResponseClient):
    """A client of the only rollout server: it needs no load balancer.

    On the CPU, where every call takes time from the generation, it asks for a group of responses with one call. A group
    then waits for its longest response. On GPUs responses go one by one, and are scored while others are generated.
    """

    def __init__(self, *args: Any, address: str, server: Any, grouped: bool, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._server = (address, GroupedServer(server) if grouped else server)

    async def _acquire_server(self, request_id: str, **extra: Any) -> tuple[str, Any]:
        return self._server

    def _release_server(self, server_id: str, request_id: str | None = None) -> None:
        """Nothing to give back: with one server there is no load to balance."""


class ServerManager(LLMServerManager):
    """verl's manager of rollout servers; it starts a load balancer only for several.

    verl starts one always (llm_server.py:506), a process of its own with all of verl's imports.
    """

    global_load_balancer: Any
    """Its actor; None = there is one server."""

    async def _init_global_load_balancer(self) -> None:
        if len(self.server_handles) == 1:
            self.global_load_balancer = None
        else:
            await super()._init_global_load_balancer()

    def get_client(self, client_cls: type[LLMServerClient] | None = None, **kwargs: Any) -> LLMServerClient:
        """A client for whole responses; for one server, a client that knows it."""
        if self.global_load_balancer is not None:
            return super().get_client(client_cls or WholeResponseClient, **kwargs)
        assert client_cls is None, client_cls
        (address,), (server,) = self.server_addresses, self.server_handles
        grouped = self.config.trainer.device == "cpu"
        return super().get_client(OneServerClient, address=address, server=server, grouped=grouped, **kwargs)


class GroupedServer:
    """Stands for a server's handle in verl's client: requests of one prompt that come together travel together.

    Everything else is each response's own, as with a handle: its settings, its exception, its repetition.
    """

    def __init__(self, server: Any, wait_s: float = GROUP_WAIT_S) -> None:
        self._server, self._wait_s = server, wait_s
        self._groups: dict[Any, list[tuple[str, asyncio.Future[Any]]]] = {}
        self._calls: set[asyncio.Task[None]] = set()
        self.generate = SimpleNamespace(remote=self._generate)

    async def _generate(self, *, request_id: str, **request: Any) -> Any:
        """The response of one request (vLLMHttpServer.generate)."""
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        others = {name: value for name, value in request.items() if name != "prompt_ids"}
        key = (tuple(request["prompt_ids"]), repr(sorted(others.items())))
        if key not in self._groups:
            self._groups[key] = []
            task = asyncio.create_task(self._call(key, request))
            self._calls.add(task)  # the loop itself keeps no reference to a task
            task.add_done_callback(self._calls.discard)
        self._groups[key].append((request_id, future))
        return await future

    async def _call(self, key: Any, request: dict[str, Any]) -> None:
        await asyncio.sleep(self._wait_s)
        group = self._groups.pop(key)
        try:
            results = await self._server.generate_group.remote(request_ids=[name for name, _ in group], **request)
        except Exception as error:  # noqa: BLE001  (passed on to the callers)
            results = [error] * len(group)
        for (_, future), result in zip(group, results, strict=True):
            if future.done():  # its caller was cancelled
                continue
            if isinstance(result, BaseException):
                future.set_exception(result)
            else:
                future.set_result(result)
