"""How the agent loops ask the rollout servers: for whole responses only, and for a group of them with one call."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

from ray.exceptions import RayActorError
from verl.workers.rollout.llm_server import FullyAsyncLLMServerClient, LLMServerClient, LLMServerManager

from tagpr_rl.backend.rollout.failures import RolloutError
from tagpr_rl.backend.rollout.places import alone, on_server, place_of
from tagpr_rl.backend.scoring.prmu_actor import last_line
from tagpr_rl.backend.session.worker_settings import from_environment

ATTEMPTS = 3
"""How often a response is asked for."""
_ENDED = ("completed", "length")
"""verl's words for responses that the engine ended itself: of one request, and of one that was interrupted."""
GROUP_WAIT_S = 0.005
"""How long the first request of a group waits for the others."""


class WholeResponses:
    """For a client of verl's: lets no response pass that is not whole; it would be rewarded as it is."""

    config: Any

    async def generate(self, request_id: str, **kwargs: Any) -> Any:
        """verl's TokenOutput of one prompt; its `extra_fields` have the number of attempts.

        A response that ends with an error, broken off, empty, incomplete or too late is asked for again. RolloutError
        if none of `ATTEMPTS` is whole. The death of the engine is raised as it is: it is no failure of one response.
        """
        limit = float(self.config.reward.reward_kwargs.rollout_timeout_s)
        reasons = []
        for attempt in range(1, ATTEMPTS + 1):
            if attempt > 1:  # those that it was to begin with have begun
                kwargs["sampling_params"] = alone(kwargs["sampling_params"])
            try:
                output = await asyncio.wait_for(super().generate(request_id, **kwargs), limit)  # type: ignore[misc]
            except TimeoutError:
                reason = f"no response within rollout_timeout_s={limit:g}"
            except Exception as error:
                if is_death(error):
                    raise
                reason = f"{type(error).__name__}: {last_line(error)}"
            else:
                reason = fault(output, bool(kwargs["sampling_params"].get("logprobs")))
                if not reason:
                    output.extra_fields["attempts"] = attempt
                    return output
            reasons.append(reason)
        raise RolloutError(f"{ATTEMPTS} attempts, the last: {reasons[-1]}")


def is_death(error: BaseException) -> bool:
    """Whether the engine or its server is gone. The supervisor then says which process died, and ends the stage."""
    return isinstance(error, RayActorError) or "EngineDeadError" in type(error).__name__  # vLLM's; Ray adds its own


def fault(output: Any, with_logprobs: bool) -> str:
    """Why a response is not whole; empty if it is."""
    if output.stop_reason not in _ENDED:
        return f"the engine ended it for the reason {output.stop_reason!r}"
    if not output.token_ids:
        return "it is empty"
    if with_logprobs and len(output.log_probs or ()) != len(output.token_ids):
        return f"it was cut: {len(output.token_ids)} tokens with {len(output.log_probs or ())} log-probabilities"
    return ""


class WholeResponseClient(WholeResponses, LLMServerClient):
    """verl's client, for whole responses."""


class WholeResponseAsyncClient(WholeResponses, FullyAsyncLLMServerClient):
    """verl's client of servers that are interrupted for new weights, for whole responses."""


class DirectClient(WholeResponseClient):
    """A client that knows the rollout servers, and needs no load balancer.

    With one server there is no load to balance. With several, requests must have places (`places.Place`), which say who
    serves them: a balancer would decide by which response ends first.

    On the CPU, where every call takes time from the generation, it asks for a group of responses with one call. A group
    then waits for its longest response. On GPUs responses go one by one, and are scored while others are generated.
    """

    def __init__(self, *args: Any, servers: Mapping[str, Any], grouped: bool, **kwargs: Any) -> None:
        """`servers`: address -> handle."""
        super().__init__(*args, **kwargs)
        self._servers = [(own, GroupedServer(handle) if grouped else handle) for own, handle in servers.items()]

    async def generate(self, request_id: str, **kwargs: Any) -> Any:
        """See WholeResponseClient.generate. A request with a place gets its turn on the server."""
        kwargs["sampling_params"] = on_server(kwargs["sampling_params"], len(self._servers))
        return await super().generate(request_id, **kwargs)

    async def _acquire_server(self, request_id: str, **extra: Any) -> tuple[str, Any]:
        place = place_of(extra["sampling_params"])
        return self._servers[place.server(len(self._servers)) if place else 0]

    def _release_server(self, server_id: str, request_id: str | None = None) -> None:
        """Nothing to give back."""


class ServerManager(LLMServerManager):
    """verl's manager of rollout servers; it starts a load balancer only for several, and if responses need not repeat.

    verl starts one always (llm_server.py:506), a process of its own with all of verl's imports.
    """

    global_load_balancer: Any
    """Its actor; None = clients know the servers."""

    async def _init_global_load_balancer(self) -> None:
        if len(self.server_handles) == 1 or from_environment().deterministic:
            self.global_load_balancer = None
        else:
            await super()._init_global_load_balancer()

    def get_client(self, client_cls: type[LLMServerClient] | None = None, **kwargs: Any) -> LLMServerClient:
        """A client for whole responses; without a load balancer, a client that knows the servers."""
        if self.global_load_balancer is not None:
            return super().get_client(client_cls or WholeResponseClient, **kwargs)
        assert client_cls is None, client_cls
        servers = dict(zip(self.server_addresses, self.server_handles, strict=True))
        grouped = self.config.trainer.device == "cpu"
        return super().get_client(DirectClient, servers=servers, grouped=grouped, **kwargs)


class GroupedServer:
    """Stands for a server's handle in verl's client: requests of one prompt that come together travel together.

    Everything else is each response's own, as with a handle: its seed, its exception, its repetition.
    """

    def __init__(self, server: Any, wait_s: float = GROUP_WAIT_S) -> None:
        self._server, self._wait_s = server, wait_s
        self._groups: dict[Any, list[tuple[str, Mapping[str, Any], asyncio.Future[Any]]]] = {}
        self._calls: set[asyncio.Task[None]] = set()
        self.generate = SimpleNamespace(remote=self._generate)

    async def _generate(self, *, request_id: str, sampling_params: Mapping[str, Any], **request: Any) -> Any:
        """The response of one request (vLLMHttpServer.generate)."""
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        others = {name: value for name, value in request.items() if name != "prompt_ids"}
        key = (tuple(request["prompt_ids"]), repr(sorted(others.items())))
        if key not in self._groups:
            self._groups[key] = []
            task = asyncio.create_task(self._call(key, request))
            self._calls.add(task)  # the loop itself keeps no reference to a task
            task.add_done_callback(self._calls.discard)
        self._groups[key].append((request_id, sampling_params, future))
        return await future

    async def _call(self, key: Any, request: dict[str, Any]) -> None:
        await asyncio.sleep(self._wait_s)
        names, samplings, futures = zip(*self._groups.pop(key), strict=True)
        try:
            results = await self._server.generate_group.remote(request_ids=names, samplings=samplings, **request)
        except Exception as error:  # noqa: BLE001  (passed on to the callers)
            results = [error] * len(futures)
        for future, result in zip(futures, results, strict=True):
            if future.done():  # its caller was cancelled
                continue
            if isinstance(result, BaseException):
                future.set_exception(result)
            else:
                future.set_result(result)
