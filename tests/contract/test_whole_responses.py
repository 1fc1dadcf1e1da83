"""Requests of a group travel together; a response that is not whole is asked for again, and never passed on."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

os.environ.setdefault("VERL_PLATFORM", "cpu")

from verl.workers.rollout.llm_server import LLMServerClient
from verl.workers.rollout.replica import TokenOutput

from tagpr_rl.backend.rollout.clients import (
    ATTEMPTS,
    DirectClient,
    GroupedServer,
    ServerManager,
    WholeResponseAsyncClient,
    WholeResponseClient,
)
from tagpr_rl.backend.rollout.failures import RolloutError
from tagpr_rl.backend.rollout.places import Place, placed, turn_of
from tagpr_rl.backend.scoring.coalesce import Turn

pytestmark = [pytest.mark.stack, pytest.mark.torch]


LIMIT_S = 0.2
WHOLE = {"stop_reason": "completed", "token_ids": [7, 8], "log_probs": [-0.5, -0.25]}
NEVER = object()
# What an engine may do to one response: raise, break it off, end it empty, cut its log-probabilities, say nothing.
FAULTS: dict[str, tuple[Any, str]] = {
    "error": (ValueError("no room\nfor it"), "ValueError: for it"),
    "abort": ({**WHOLE, "stop_reason": "aborted"}, "the engine ended it for the reason 'aborted'"),
    "unknown": ({**WHOLE, "stop_reason": None}, "the engine ended it for the reason None"),
    "empty": ({**WHOLE, "token_ids": [], "log_probs": []}, "it is empty"),
    "cut": ({**WHOLE, "log_probs": [-0.5]}, "it was cut: 2 tokens with 1 log-probabilities"),
    "without": ({**WHOLE, "log_probs": None}, "it was cut: 2 tokens with 0 log-probabilities"),
    "late": (NEVER, "no response within rollout_timeout_s=0.2"),
}


def settings(limit_s: float = LIMIT_S) -> Any:
    rollout = SimpleNamespace(name="vllm", full_determinism=False, response_length=9)
    reward = SimpleNamespace(reward_kwargs=SimpleNamespace(rollout_timeout_s=limit_s))
    return SimpleNamespace(actor_rollout_ref=SimpleNamespace(rollout=rollout), reward=reward)


def generate(monkeypatch: pytest.MonkeyPatch, answers: list[Any], kind: Any = WholeResponseClient) -> tuple[Any, int]:
    """(the output or what was raised, the number of requests) of a client whose engine gives `answers` in turn."""
    requests: list[str] = []

    async def served(self: Any, request_id: str, **kwargs: Any) -> Any:
        requests.append(request_id)
        answer = answers[len(requests) - 1]
        if answer is NEVER:
            await asyncio.sleep(60)
        if isinstance(answer, BaseException):
            raise answer
        return TokenOutput(**{**answer, "token_ids": list(answer["token_ids"]), "extra_fields": {"global_steps": 4}})

    async def run() -> Any:
        client = kind(config=settings())
        given = client.generate("r", prompt_ids=[1], sampling_params={"logprobs": True})
        return (await asyncio.gather(given, return_exceptions=True))[0]

    monkeypatch.setattr(LLMServerClient, "generate", served)
    return asyncio.run(run()), len(requests)


@pytest.mark.parametrize("kind", [WholeResponseClient, WholeResponseAsyncClient])
@pytest.mark.parametrize("name", [name for name in FAULTS if name not in ("abort", "late")])
def test_a_failed_response_is_asked_for_again_and_given_up_after_three_attempts(
    monkeypatch: pytest.MonkeyPatch, kind: Any, name: str
) -> None:
    answer, reason = FAULTS[name]
    for before in range(ATTEMPTS):
        output, requests = generate(monkeypatch, [answer] * before + [WHOLE], kind)
        assert (output.token_ids, requests, output.extra_fields["attempts"]) == ([7, 8], before + 1, before + 1)
    failed, requests = generate(monkeypatch, [answer] * 9, kind)
    assert isinstance(failed, RolloutError) and requests == ATTEMPTS
    assert str(failed) == f"3 attempts, the last: {reason}"


@pytest.mark.parametrize("name", ["abort", "late"])
def test_a_response_broken_off_or_late_is_asked_for_again(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    answer, reason = FAULTS[name]
    output, requests = generate(monkeypatch, [answer, WHOLE])
    assert (output.token_ids, requests, output.extra_fields["attempts"]) == ([7, 8], 2, 2)
    failed, _ = generate(monkeypatch, [FAULTS["error"][0], FAULTS["empty"][0], answer])
    assert isinstance(failed, RolloutError) and str(failed).endswith(reason)


def test_an_interrupted_response_goes_on_and_its_end_at_the_limit_is_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """verl's asynchronous client waits a second before it goes on, and calls an end at the limit of 9 "length"."""
    monkeypatch.setattr("tagpr_rl.backend.rollout.clients.asyncio.wait_for", lambda given, _: given)
    rest = {"stop_reason": "completed", "token_ids": [5] * 7, "log_probs": [-1.0] * 7}
    output, requests = generate(monkeypatch, [{**WHOLE, "stop_reason": "aborted"}, rest], WholeResponseAsyncClient)
    assert output.token_ids == [7, 8, *[5] * 7] and len(output.log_probs) == 9
    assert (output.stop_reason, requests, output.extra_fields["attempts"]) == ("length", 2, 1)


@pytest.mark.parametrize("error", ["actor", "engine"])
def test_the_death_of_an_engine_is_no_failure_of_a_response(monkeypatch: pytest.MonkeyPatch, error: str) -> None:
    from ray.exceptions import ActorDiedError, RayTaskError
    from vllm.v1.engine.exceptions import EngineDeadError

    wrapped = RayTaskError("generate", "traceback", EngineDeadError()).as_instanceof_cause()
    death = ActorDiedError() if error == "actor" else wrapped
    raised, requests = generate(monkeypatch, [death] * 3)
    assert raised is death and requests == 1


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
    client = DirectClient(config=settings(60.0), servers={"one": server}, grouped=True)

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


def test_a_failed_member_is_asked_for_again_without_the_others() -> None:
    server = Server(lambda prompt, i: ValueError("no room") if i == 1 else token_output(i))
    first, second, third = responses(server, [[1]] * 3)
    assert (first.token_ids, second.token_ids, third.token_ids) == ([0], [3], [2])
    assert server.calls == [((1,), 3), ((1,), 1)]


def test_a_member_that_was_broken_off_is_asked_for_again_without_the_others() -> None:
    server = Server(lambda prompt, i: token_output(i, "aborted" if i in (1, 3) else "completed"))
    assert [output.token_ids for output in responses(server, [[1]] * 3)] == [[0], [4], [2]]
    assert server.calls == [((1,), 3), ((1,), 1), ((1,), 1)]


def test_a_member_that_is_broken_off_every_time_fails_alone() -> None:
    server = Server(lambda prompt, i: token_output(i, "error" if i >= 1 else "completed"))
    first, second = responses(server, [[1]] * 2)
    assert first.token_ids == [0] and isinstance(second, RolloutError) and "'error'" in str(second)
    assert [count for _, count in server.calls] == [2, 1, 1]


def test_a_call_that_fails_fails_for_every_member() -> None:
    def fails(prompt: list[int], i: int) -> Any:
        raise ConnectionError("not reached")

    outputs = responses(Server(fails), [[1]] * 2)
    assert [str(output) for output in outputs] == ["3 attempts, the last: ConnectionError: not reached"] * 2


def test_a_cancelled_member_takes_nothing_from_the_others() -> None:
    async def run() -> Any:
        server = GroupedServer(Server(lambda prompt, i: token_output(i)))
        first, second = (
            asyncio.create_task(server.generate.remote(request_id=n, prompt_ids=[1], sampling_params={})) for n in "ab"
        )
        await asyncio.sleep(0)
        first.cancel()
        return await asyncio.wait_for(second, timeout=5)

    assert asyncio.run(run()).token_ids == [1]


def test_requests_of_one_prompt_travel_together_with_a_seed_each() -> None:
    noted: list[Any] = []

    class Noting(Server):
        async def _generate_group(self, *, samplings: Any, **request: Any) -> list[Any]:
            noted.extend(samplings)
            return await super()._generate_group(**request)

    async def run() -> list[tuple[Any, int]]:
        server = Noting(lambda prompt, i: token_output(i))
        grouped = GroupedServer(server)
        given = ({"seed": 1}, {"seed": 2}, {"seed": 1})
        calls = (grouped.generate.remote(request_id="r", prompt_ids=[1], sampling_params=s) for s in given)
        other = grouped.generate.remote(request_id="r", prompt_ids=[1], sampling_params={}, priority=1)
        await asyncio.gather(*calls, other)
        return server.calls

    assert asyncio.run(run()) == [((1,), 3), ((1,), 1)]  # another priority is another call
    assert noted == [{"seed": 1}, {"seed": 2}, {"seed": 1}, {}]


@pytest.mark.parametrize("servers", [1, 2, 3])
def test_places_say_which_server_gets_a_request_and_when_its_requests_are_all_there(servers: int) -> None:
    """Five prompts of two responses: of two servers the first gets prompts 0, 2, 4 and the second 1, 3."""
    noted: list[tuple[int, list[Turn]]] = []

    class Noting:
        def __init__(self, number: int) -> None:
            self.generate_group = SimpleNamespace(remote=self._generate_group)
            self.number = number

        async def _generate_group(self, *, samplings: Any, request_ids: Any, **request: Any) -> list[Any]:
            turns = [turn_of(own["extra_args"]) for own in samplings]
            noted.append((self.number, [turn for turn in turns if turn is not None]))
            return [token_output(1)] * len(request_ids)

    handles = {str(i): Noting(i) for i in range(servers)}
    client = DirectClient(config=settings(60.0), servers=handles, grouped=True)

    async def run() -> None:
        places = [Place("train/1/0", prompt, 5, sample, 2) for prompt in range(5) for sample in range(2)]
        await asyncio.gather(
            *(client.generate("r", prompt_ids=[p.prompt], sampling_params=placed({}, p, 7)) for p in places)
        )

    asyncio.run(run())
    expected = {1: [10], 2: [6, 4], 3: [4, 4, 2]}[servers]
    for server, count in enumerate(expected):
        turns = [turn for number, own in noted if number == server for turn in own]
        assert sorted(turn.number for turn in turns) == list(range(count))
        assert {turn.count for turn in turns} == {count}


def test_a_response_with_a_place_is_asked_for_again_with_its_seed_and_without_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The others have begun; it would wait for them for ever."""
    samplings: list[dict[str, Any]] = []

    async def served(self: Any, request_id: str, **kwargs: Any) -> Any:
        samplings.append(kwargs["sampling_params"])
        return token_output(1, "aborted" if len(samplings) == 1 else "completed")

    monkeypatch.setattr(LLMServerClient, "generate", served)
    client = DirectClient(config=settings(), servers={"one": None}, grouped=True)
    sampling = placed({}, Place("train/1/0", 0, 1, 0, 2), 7)
    asyncio.run(client.generate("r", prompt_ids=[1], sampling_params=sampling))
    assert [turn_of(own["extra_args"]) for own in samplings] == [Turn("train/1/0", 0, 2), None]
    assert [own["seed"] for own in samplings] == [7, 7]


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
    first, second, third = asyncio.run(server.generate_group([1], [given] * 3, ["a", "b", "c"], priority=0))
    assert (first, third) == (([1], "a", {"priority": 0}), ([1], "c", {"priority": 0}))
    assert isinstance(second, ValueError) and given == {"max_tokens": 5}


@pytest.mark.parametrize(
    ("servers", "device", "client", "handle"),
    [
        (1, "cpu", DirectClient, GroupedServer),
        (1, "cuda", DirectClient, str),
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
        address, server = asyncio.run(made._acquire_server("r", sampling_params={}))  # type: ignore[attr-defined]
        assert address == "a" and type(server) is handle


def test_verl_still_starts_a_load_balancer_for_one_server_and_its_trainer_finds_the_manager_by_name() -> None:
    import inspect

    from verl.trainer.ppo.v1 import trainer_base
    from verl.workers.rollout.llm_server import LLMServerManager

    assert "if " not in inspect.getsource(LLMServerManager._init_global_load_balancer)
    assert "= LLMServerManager.create(" in inspect.getsource(trainer_base)
