"""A response that the engine broke off is asked for again, within bounds, and never passed on."""

from __future__ import annotations

import asyncio
import os
from types import SimpleNamespace
from typing import Any

import pytest

os.environ.setdefault("VERL_PLATFORM", "cpu")

from verl.workers.rollout.llm_server import LLMServerClient

from tagpr_rl.backend.rollout.agent_loop import ATTEMPTS, WholeResponseClient

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
