"""Requests of a group travel together; a response that the engine broke off is asked for again, and never passed on."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

os.environ.setdefault("VERL_PLATFORM", "cpu")

from verl.workers.rollout.llm_server import LLMServerClient

from tagpr_rl.backend.rollout.clients import (
    ATTEMPTS,
    GroupedServer,
    OneServerClient,
    ServerManager,
    WholeResponseClient,
)

pytestmark = [pytest.mark.stack, pytest.mark.torch]


def generate(monkeypatch: pytest.MonkeyPatch, reasons: list[str]) -> tuple[Any, list[str]]:
    """(the output, the request ids) of a client whose server ends its responses for `reasons`, one after another."""
    requests: list[str] = []

    async def served(self: Any, request_id: str, **kwargs: Any) -> Any:
        requests.append(request_id)
        return SimpleNamespace(stop_reason=reasons[len(requests) - 1], token_ids=[len(requests)])

    monkeypatch.setattr(LLMServerClient, "generate", served)
    client = WholeResponseClient(config=None)
    return asyncio.run(client.generate("r", prompt_ids=[1], sampling_params={})), requests


@pytest.mark.parametrize("before", range(ATTEMPTS))
def test_the_first_whole_response_is_taken(monkeypatch: pytest.MonkeyPatch, before: int) -> None:
    output, requests = generate(monkeypatch, ["aborted", "error"][:before] + ["completed"])
    assert output.token_ids == [before + 1] and requests == ["r"] * (before + 1)


def test_an_engine_that_ends_every_response_stops_the_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RuntimeError, match=r"3 times, the last for the reason 'aborted'.*tagpr resume"):
        generate(monkeypatch, ["error", "error", "aborted", "completed"])


Served = Callable[[list[int], int], Any]
"""(the prompt, how many requests came before) -> a response, or the exception that it ends with."""


class Server:
    """A rollout server's handle: answers by `served`, and notes each call as (prompt, number of requests)."""

    def __init__(self, served: Served) -> None:
        self.served, self.calls, self.requests = served, [], []  # type: ignore[var-annotated]
        self.generate_group = SimpleNamespace(remote=self._generate_group)

    async def _generate_group(self, *, prompt_ids: list[int], request_ids: list[str], **request: Any) -> list[Any]:
        self.calls.append((tuple(prompt_ids), len(request_ids)))
        first = len(self.requests)
        self.requests += request_ids
        return [self.served(prompt_ids, first + i) for i in range(len(request_ids))]


def token_output(token: int, reason: str = "completed") -> Any:
    return SimpleNamespace(stop_reason=reason, token_ids=[token], extra_fields={"global_steps": 4})


def responses(server: Server, prompts: list[list[int]]) -> list[Any]:
    """What verl's client and ours give for `prompts` at the same time; an exception stands for its response."""
    rollout = SimpleNamespace(name="vllm", full_determinism=False)
    config = SimpleNamespace(actor_rollout_ref=SimpleNamespace(rollout=rollout))
    client = OneServerClient(config=config, address="one", server=server, grouped=True)

    async def run() -> list[Any]:
        requests = (client.generate("r", prompt_ids=ids, sampling_params={"temperature": 1.0}) for ids in prompts)
        return await asyncio.gather(*requests, return_exceptions=True)

    return asyncio.run(run())


def test_a_group_is_one_call_and_each_member_gets_its_own_response() -> None:
    server = Server(lambda prompt, i: token_output(100 * prompt[0] + i))
    outputs = responses(server, [[1, 2]] * 3 + [[2, 2]] * 2)
    assert sorted(server.calls) == [((1, 2), 3), ((2, 2), 2)]
    assert sorted(output.token_ids[0] for output in outputs) == [100, 101, 102, 203, 204]
    assert len(set(server.requests)) == 5  # a name of its own for each request to the engine
    assert all(output.extra_fields["max_global_steps"] == 4 for output in outputs)


def test_a_failed_member_raises_for_itself_alone() -> None:
    server = Server(lambda prompt, i: ValueError("no room") if i == 1 else token_output(i))
    first, second, third = responses(server, [[1]] * 3)
    assert isinstance(second, ValueError) and (first.token_ids, third.token_ids) == ([0], [2])
    assert server.calls == [((1,), 3)]


def test_a_member_that_was_broken_off_is_asked_for_again_without_the_others() -> None:
    server = Server(lambda prompt, i: token_output(i, "aborted" if i in (1, 3) else "completed"))
    assert [output.token_ids for output in responses(server, [[1]] * 3)] == [[0], [4], [2]]
    assert server.calls == [((1,), 3), ((1,), 1), ((1,), 1)]


def test_a_member_that_is_broken_off_every_time_stops_the_stage() -> None:
    server = Server(lambda prompt, i: token_output(i, "error" if i >= 1 else "completed"))
    first, second = responses(server, [[1]] * 2)
    assert first.token_ids == [0] and isinstance(second, RuntimeError) and "tagpr resume" in str(second)
    assert [count for _, count in server.calls] == [2, 1, 1]


def test_a_call_that_fails_fails_for_every_member() -> None:
    def dies(prompt: list[int], i: int) -> Any:
        raise ConnectionError("the server died")

    assert [type(output) for output in responses(Server(dies), [[1]] * 2)] == [ConnectionError] * 2


def test_a_cancelled_member_takes_nothing_from_the_others() -> None:
    async def run() -> Any:
        server = GroupedServer(Server(lambda prompt, i: token_output(i)))
        first, second = (asyncio.create_task(server.generate.remote(request_id=n, prompt_ids=[1])) for n in "ab")
        await asyncio.sleep(0)
        first.cancel()
        return await asyncio.wait_for(second, timeout=5)

    assert asyncio.run(run()).token_ids == [1]


def test_requests_of_one_prompt_with_other_settings_are_another_group() -> None:
    async def run() -> list[tuple[Any, int]]:
        server = Server(lambda prompt, i: token_output(i))
        grouped = GroupedServer(server)
        settings = ({"seed": 1}, {"seed": 2}, {"seed": 1})
        calls = (grouped.generate.remote(request_id="r", prompt_ids=[1], sampling_params=s) for s in settings)
        await asyncio.gather(*calls)
        return server.calls

    assert asyncio.run(run()) == [((1,), 2), ((1,), 1)]


def test_the_server_serves_each_member_by_verl_s_own_generate(monkeypatch: pytest.MonkeyPatch) -> None:
    """Adapters, admission and token limits are verl's; it takes keys out of the settings that it gets."""
    from verl.workers.rollout.replica import RolloutMode
    from verl.workers.rollout.vllm_rollout.vllm_async_server import vLLMHttpServer
    from vllm.sampling_params import RequestOutputKind

    from tagpr_rl.backend.rollout.server import TagprHttpServer

    async def generate(self: Any, prompt: list[int], sampling: dict[str, Any], request: str, **kwargs: Any) -> Any:
        assert sampling.pop("max_tokens") == 5 and sampling["output_kind"] == RequestOutputKind.FINAL_ONLY
        if request == "b":
            raise ValueError(request)
        return prompt, request, kwargs

    monkeypatch.setattr(vLLMHttpServer, "generate", generate)
    server = object.__new__(TagprHttpServer)
    server.rollout_mode = RolloutMode.HYBRID
    given = {"max_tokens": 5}
    first, second, third = asyncio.run(server.generate_group([1], given, ["a", "b", "c"], priority=0))
    assert (first, third) == (([1], "a", {"priority": 0}), ([1], "c", {"priority": 0}))
    assert isinstance(second, ValueError) and given == {"max_tokens": 5}


@pytest.mark.parametrize(
    ("servers", "device", "client", "handle"),
    [
        (1, "cpu", OneServerClient, GroupedServer),
        (1, "cuda", OneServerClient, str),
        (2, "cpu", WholeResponseClient, None),
    ],
)
def test_a_load_balancer_is_started_only_for_several_servers(
    monkeypatch: pytest.MonkeyPatch, servers: int, device: str, client: type, handle: type | None
) -> None:
    from verl.workers.rollout import router

    started: list[dict[str, Any]] = []

    def start(servers: dict[str, Any], **kwargs: Any) -> str:
        started.append(servers)
        return "balancer"

    monkeypatch.setattr(router, "get_router_handle", start)
    manager = object.__new__(ServerManager)
    manager.config = SimpleNamespace(trainer=SimpleNamespace(device=device))
    manager.rollout_config, manager._load_balancer_cls = SimpleNamespace(), None
    manager.server_addresses, manager.server_handles = ["a", "b"][:servers], ["A", "B"][:servers]
    asyncio.run(manager._init_global_load_balancer())
    made = manager.get_client()
    assert type(made) is client
    assert started == ([] if servers == 1 else [{"a": "A", "b": "B"}])
    if handle is not None:
        address, server = asyncio.run(made._acquire_server("r"))  # type: ignore[attr-defined]
        assert address == "a" and type(server) is handle


def test_verl_still_starts_a_load_balancer_for_one_server_and_its_trainer_finds_the_manager_by_name() -> None:
    import inspect

    from verl.trainer.ppo.v1 import trainer_base
    from verl.workers.rollout.llm_server import LLMServerManager

    assert "if " not in inspect.getsource(LLMServerManager._init_global_load_balancer)
    assert "= LLMServerManager.create(" in inspect.getsource(trainer_base)
