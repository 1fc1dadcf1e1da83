"""A response that cannot be generated has no row: its group goes on without it, and the step counts it."""

from __future__ import annotations

import asyncio
import os
from types import SimpleNamespace
from typing import Any

import pytest

os.environ.setdefault("VERL_PLATFORM", "cpu")

from verl.trainer.ppo.v1 import agent_loop_tq, replay_buffer

from tagpr_rl.backend.rollout import agent_loop
from tagpr_rl.backend.rollout.clients import WholeResponseClient
from tagpr_rl.backend.rollout.failures import Failure
from tagpr_rl.backend.trainer import replay_buffers
from tagpr_rl.types import TagprError

pytestmark = [pytest.mark.stack, pytest.mark.torch]
GROUP = 3
BUFFERS = ("FastReplayBuffer", "ResamplingReplayBuffer", "AsyncReplayBuffer")
WHOLE = SimpleNamespace(stop_reason="completed", token_ids=[7], log_probs=[-0.5], extra_fields={})
EMPTY = SimpleNamespace(stop_reason="completed", token_ids=[], log_probs=[], extra_fields={})
BROKEN = SimpleNamespace(stop_reason="error", token_ids=[7], log_probs=[-0.5], extra_fields={})


class Queue:
    """Tags of one partition. A put reads, merges and writes back, as TransferQueue's: two at one time lose a tag."""

    def __init__(self) -> None:
        self.tags: dict[str, dict[str, Any]] = {}

    async def async_kv_put(self, *, key: str, partition_id: str, tag: dict[str, Any]) -> None:
        assert partition_id == "train"
        old = dict(self.tags.get(key, {}))
        await asyncio.sleep(0)
        self.tags[key] = old | tag

    def kv_list(self, partition_id: str | None = None) -> dict[str, Any]:
        return {"train": {key: dict(tag) for key, tag in self.tags.items()}}

    def kv_clear(self, partition_id: str, keys: list[str]) -> None:
        for key in keys:
            self.tags.pop(key, None)

    def kv_batch_get(self, keys: list[str], partition_id: str, select_fields: list[str]) -> dict[str, Any]:
        import torch

        return {"rm_scores": [torch.tensor([float(key.split("_")[1])]) for key in keys]}


def batch_of(monkeypatch: pytest.MonkeyPatch, buffer: str, served: dict[str, Any]) -> tuple[Any, Any]:
    """(the batch, the buffer) of prompts, whose responses a server ends as `served` says: `a1` is a's second response.

    From the agent-loop worker's own prompts to the batch; only the queue, the tokenizer and the server are not real.
    """
    queue = Queue()
    for module in (agent_loop, agent_loop_tq, replay_buffer, replay_buffers):
        monkeypatch.setattr(module, "tq", queue)
    limits = SimpleNamespace(reward_kwargs=SimpleNamespace(rollout_timeout_s=30.0))
    client = WholeResponseClient(SimpleNamespace(reward=limits))
    worker = object.__new__(agent_loop.TagprAgentLoopWorker)
    worker.notes = asyncio.Lock()
    worker.config = SimpleNamespace(actor_rollout_ref=SimpleNamespace(rollout=SimpleNamespace(n=GROUP)))

    async def generate(self: Any, request_id: str, **kwargs: Any) -> Any:
        answer = served.get(request_id, WHOLE)
        if isinstance(answer, BaseException):
            raise answer
        return answer

    async def loop(
        self: Any, sampling: dict[str, Any], trajectory: Any, *, uid: str, session_id: int, **_: Any
    ) -> None:
        await client.generate(f"{uid}{session_id}", prompt_ids=[1], sampling_params=sampling)
        queue.tags[f"{uid}_{session_id}_0"] = {"status": "success"}

    monkeypatch.setattr("verl.workers.rollout.llm_server.LLMServerClient.generate", generate)
    monkeypatch.setattr(agent_loop._Worker, "_run_agent_loop", loop)

    async def prompts() -> None:
        for uid in "ab":
            queue.tags[uid] = {"is_prompt": True, "status": "pending", "global_steps": 1}
            info = {"task": "LaMP_2", "record_id": f"r{uid}"}
            row = {"uid": uid, "extra_info": info, "agent_name": "single_turn_agent"}
            await worker._run_prompt(row, {"logprobs": True}, {"validate": False})

    asyncio.run(prompts())
    made = getattr(replay_buffers, buffer)(
        trainer_mode="sync", trainer_config=None, max_off_policy_threshold=8, max_off_policy_strategy="drop",
        sampler_kwargs={"group_size": GROUP, "train_batch_size": 2, "limit": 4},
        refill_fn=lambda count: pytest.fail(f"asks for {count} more"),
    )  # fmt: skip
    batch, _ = made.sample(global_steps=1, partition_id="train", batch_size=2)
    return batch, made


@pytest.mark.parametrize("buffer", BUFFERS)
def test_a_failed_response_is_counted_and_has_no_row(monkeypatch: pytest.MonkeyPatch, buffer: str) -> None:
    batch, made = batch_of(monkeypatch, buffer, {"a1": EMPTY})
    assert sorted(batch.keys) == ["a_0_0", "a_2_0", "b_0_0", "b_1_0", "b_2_0"]
    assert made.failures == [Failure("LaMP_2", "ra", 1, "3 attempts, the last: it is empty")]


@pytest.mark.parametrize("buffer", BUFFERS)
def test_a_group_may_fail_as_a_whole(monkeypatch: pytest.MonkeyPatch, buffer: str) -> None:
    batch, made = batch_of(monkeypatch, buffer, {f"b{i}": BROKEN for i in range(GROUP)})
    assert sorted(batch.keys) == ["a_0_0", "a_1_0", "a_2_0"]
    assert [(failure.record_id, failure.sample) for failure in made.failures] == [("rb", i) for i in range(GROUP)]


@pytest.mark.parametrize("buffer", BUFFERS)
def test_a_batch_without_a_response_ends_the_stage_with_the_reasons(
    monkeypatch: pytest.MonkeyPatch, buffer: str
) -> None:
    served = {f"{uid}{i}": EMPTY if uid == "a" else BROKEN for uid in "ab" for i in range(GROUP)}
    with pytest.raises(TagprError, match=r"none of the 6 responses .* 3 x 3 attempts, the last: it is empty; 3 x"):
        batch_of(monkeypatch, buffer, served)


@pytest.mark.parametrize("buffer", BUFFERS)
def test_a_dead_engine_ends_the_stage_and_its_process_is_named(monkeypatch: pytest.MonkeyPatch, buffer: str) -> None:
    """No response is asked for again, and Ray's text is whole, for the supervisor reads the process from it."""
    from ray.exceptions import ActorDiedError

    from tagpr_rl.backend.session.supervisor import _DIED

    death = ActorDiedError()
    text = "The actor died unexpectedly.\n\tclass_name: Server\n\tpid: 12\n\tip: 127.0.0.1"
    monkeypatch.setattr(ActorDiedError, "__str__", lambda self: text)
    with pytest.raises(RuntimeError, match="agent loops of 1 prompts failed: 1 x ActorDiedError") as raised:
        batch_of(monkeypatch, buffer, {"b2": death})
    died = _DIED.search(str(raised.value))
    assert died is not None and died.groupdict() == {"name": "Server", "pid": "12", "host": "127.0.0.1"}
