"""Which of an engine's outputs wait, and what is handed over at a response's end."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from vllm import SamplingParams
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs, FinishReason
from vllm.v1.outputs import LogprobsLists

from tagpr_rl.backend.rollout.finished import FinishedOutputs

pytestmark = [pytest.mark.stack, pytest.mark.torch]


class Engine:
    """A scheduler whose outputs the test writes: one list per step."""

    def __init__(self) -> None:
        self.outputs: list[EngineCoreOutput] = []
        self.stats: Any = None

    def add_request(self, request: Any) -> None: ...

    def update_from_output(self, scheduler_output: Any, model_runner_output: Any) -> dict[int, EngineCoreOutputs]:
        return {0: EngineCoreOutputs(outputs=self.outputs, scheduler_stats=self.stats)}


class Scheduler(FinishedOutputs, Engine):
    """The class under test above it."""

    def step(self, *outputs: EngineCoreOutput, ended: tuple[str, ...] = ()) -> list[EngineCoreOutput] | None:
        """What the server gets of a step; None = no message at all. `ended`: ended since the last step, or aborted."""
        self.outputs = list(outputs)
        sent = self.update_from_output(SimpleNamespace(finished_req_ids=set(ended)), None)
        return sent[0].outputs if sent else None


def scheduler(**requests: SamplingParams) -> Scheduler:
    made = Scheduler()
    for name, sampling in requests.items():
        made.add_request(SimpleNamespace(request_id=name, sampling_params=sampling))
    return made


def final(**keys: Any) -> SamplingParams:
    return SamplingParams(output_kind=RequestOutputKind.FINAL_ONLY, logprobs=0, **keys)


def token(name: str, *ids: int, end: FinishReason | None = None, **more: Any) -> EngineCoreOutput:
    """An output with `ids`; token i has the log-probability -i/4 and the rank i + 1."""
    column = np.array(ids)
    logprobs = LogprobsLists(
        column.reshape(-1, 1).astype(np.int32), (-column / 4).reshape(-1, 1).astype(np.float32), column + 1
    )
    return EngineCoreOutput(name, list(ids), new_logprobs=logprobs, finish_reason=end, **more)


def test_a_response_is_handed_over_in_its_first_output_and_in_one_at_its_end() -> None:
    engine = scheduler(a=final())
    (first,) = engine.step(token("a", 7)) or []
    assert first.new_token_ids == [7]
    assert engine.step(token("a", 2)) is None and engine.step(token("a", 3, 5)) is None
    (last,) = engine.step(token("a", 4, end=FinishReason.STOP)) or []
    assert last.new_token_ids == [2, 3, 5, 4] and last.finish_reason == FinishReason.STOP
    ids, logprobs, ranks, _ = last.new_logprobs
    assert ids.tolist() == [[2], [3], [5], [4]] and ids.dtype == np.int32
    assert logprobs.tolist() == [[-0.5], [-0.75], [-1.25], [-1.0]] and logprobs.dtype == np.float32
    assert ranks.tolist() == [3, 4, 6, 5]
    assert engine._held == {}


def test_arrays_that_the_engine_uses_again_change_nothing_that_is_held() -> None:
    engine = scheduler(a=final())
    engine.step(token("a", 7))
    reused = token("a", 2)
    engine.step(reused)
    reused.new_logprobs.logprobs[:] = 9.0
    reused.new_token_ids.append(9)
    (last,) = engine.step(token("a", 4, end=FinishReason.LENGTH)) or []
    assert last.new_token_ids == [2, 4] and last.new_logprobs.logprobs.tolist() == [[-0.5], [-1.0]]


def test_members_of_a_group_end_by_themselves() -> None:
    engine = scheduler(a=final(), b=final())
    assert len(engine.step(token("a", 1), token("b", 1)) or []) == 2
    assert engine.step(token("a", 2), token("b", 3)) is None
    assert [o.new_token_ids for o in engine.step(token("a", 4), token("b", 5, end=FinishReason.STOP)) or []] == [[3, 5]]
    assert [o.new_token_ids for o in engine.step(token("a", 6, end=FinishReason.STOP)) or []] == [[2, 4, 6]]


@pytest.mark.parametrize(
    "sampling",
    [SamplingParams(output_kind=RequestOutputKind.CUMULATIVE), SamplingParams(output_kind=RequestOutputKind.DELTA),
     final(stop=["</answer>"]), None],
)  # fmt: skip
def test_a_request_that_is_read_as_it_comes_passes_beside_one_that_is_held(sampling: Any) -> None:
    engine = scheduler(a=final(), read=sampling)
    engine.step(token("a", 1), token("read", 1))
    assert [o.request_id for o in engine.step(token("a", 2), token("read", 2)) or []] == ["read"]
    (last,) = engine.step(token("a", 3, end=FinishReason.STOP)) or []
    assert last.new_token_ids == [2, 3]


def test_a_failed_member_ends_with_what_it_had_and_the_others_go_on() -> None:
    engine = scheduler(a=final(), b=final())
    engine.step(token("a", 1), token("b", 1))
    engine.step(token("a", 2), token("b", 2))
    broken = EngineCoreOutput("a", [], finish_reason=FinishReason.ERROR)
    (last,) = engine.step(broken, token("b", 3)) or []
    assert (last.request_id, last.new_token_ids, last.finish_reason) == ("a", [2], FinishReason.ERROR)
    assert len(last.new_logprobs.logprobs) == 1  # as many as tokens
    assert [o.new_token_ids for o in engine.step(token("b", 4, end=FinishReason.STOP)) or []] == [[2, 3, 4]]


def test_nothing_is_kept_of_an_aborted_response_and_its_name_may_come_again() -> None:
    engine = scheduler(a=final())
    engine.step(token("a", 1))
    engine.step(token("a", 2))
    assert engine.step(ended=("a",)) is None and engine._held == {}
    engine.add_request(SimpleNamespace(request_id="a", sampling_params=final()))
    engine.step(token("a", 5), ended=())
    (last,) = engine.step(token("a", 6, end=FinishReason.STOP)) or []
    assert last.new_token_ids == [6]


@pytest.mark.parametrize("more", [{"events": [1]}, {"routed_experts": np.zeros(1)}, {"kv_transfer_params": {"a": 1}}])
def test_an_output_that_tells_more_goes_at_once_with_what_was_held(more: dict[str, Any]) -> None:
    engine = scheduler(a=final())
    engine.step(token("a", 1))
    engine.step(token("a", 2))
    (sent,) = engine.step(token("a", 3, **more)) or []
    assert sent.new_token_ids == [2, 3] and sent.finish_reason is None
    engine.step(token("a", 4))
    (last,) = engine.step(token("a", 5, end=FinishReason.STOP)) or []
    assert last.new_token_ids == [4, 5]


def test_without_log_probabilities_there_are_none_at_the_end() -> None:
    engine = scheduler(a=SamplingParams(output_kind=RequestOutputKind.FINAL_ONLY))
    for ids in (1, 2):
        engine.step(EngineCoreOutput("a", [ids]))
    (last,) = engine.step(EngineCoreOutput("a", [3], finish_reason=FinishReason.LENGTH)) or []
    assert last.new_token_ids == [2, 3] and last.new_logprobs is None


def test_statistics_are_sent_though_every_output_waits() -> None:
    engine = scheduler(a=final())
    engine.step(token("a", 1))
    engine.stats = object()
    assert engine.step(token("a", 2)) == []


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with the configuration of a small model; no weights are needed."""
    import transformers

    folder = tmp_path_factory.mktemp("model")
    config = transformers.Qwen3Config(
        vocab_size=256, hidden_size=64, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2, head_dim=32,
        architectures=["Qwen3ForCausalLM"],
    )  # fmt: skip
    config.save_pretrained(folder)
    return str(folder)


def vllm_scheduler(model: str, asynchronous: bool, name: str | None) -> Any:
    """vLLM's scheduler as its engine makes it (v1/engine/core.py:147), with memory for 100 blocks."""
    import torch
    from vllm.config import CacheConfig, DeviceConfig, ModelConfig, SchedulerConfig, VllmConfig
    from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
    from vllm.v1.structured_output import StructuredOutputManager

    config = VllmConfig(
        model_config=ModelConfig(model=model, skip_tokenizer_init=True, dtype="float32", max_model_len=96),
        scheduler_config=SchedulerConfig(
            max_num_seqs=8, max_num_batched_tokens=512, max_model_len=96, is_encoder_decoder=False, scheduler_cls=name
        ),
        cache_config=CacheConfig(block_size=32, enable_prefix_caching=False),
        device_config=DeviceConfig("cpu"),
    )
    config.scheduler_config.async_scheduling = asynchronous  # which vLLM switches off on the CPU
    config.cache_config.num_gpu_blocks = 100
    spec = FullAttentionSpec(block_size=32, num_kv_heads=2, head_size=32, dtype=torch.float32)
    return config.scheduler_config.get_scheduler_cls()(
        vllm_config=config,
        kv_cache_config=KVCacheConfig(100, [], [KVCacheGroupSpec(["layer"], spec)]),
        structured_output_manager=StructuredOutputManager(config),
        block_size=32,
        hash_block_size=32,
    )


def served(scheduler: Any, ahead: int) -> tuple[dict[str, tuple[list[int], list[float]]], int]:
    """({request: (tokens, log-probabilities)}, number of outputs) of four requests; the last is aborted.

    `ahead`: how many steps are scheduled before the outputs of one come.
    """
    from vllm.v1.outputs import ModelRunnerOutput
    from vllm.v1.request import Request, RequestStatus

    for i in range(4):
        sampling = final(temperature=0, max_tokens=3 + 2 * i)
        scheduler.add_request(Request(f"r{i}", list(range(1, 10 + i)), sampling_params=sampling, pooling_params=None))
    responses: dict[str, tuple[list[int], list[float]]] = {}
    count, underway = 0, []
    for step in range(20):
        work = scheduler.schedule()
        if names := list(work.num_scheduled_tokens):
            made = token("", *((7 * step + 3 * row) % 250 for row in range(len(names))))
            rows = {name: row for row, name in enumerate(names)}
            tokens = [[one] for one in made.new_token_ids]
            underway.append((work, ModelRunnerOutput(names, rows, tokens, logprobs=made.new_logprobs)))
        if underway and (len(underway) > ahead or not names):
            for sent in scheduler.update_from_output(*underway.pop(0)).values():
                for output in sent.outputs:
                    tokens_, logprobs = responses.setdefault(output.request_id, ([], []))
                    tokens_.extend(output.new_token_ids)
                    logprobs.extend(output.new_logprobs.logprobs[:, 0].tolist())
                    count += 1
        if step == 3:
            scheduler.finish_requests(["r3"], RequestStatus.FINISHED_ABORTED)
    assert not scheduler.has_requests() and not underway
    return responses, count


@pytest.mark.parametrize("asynchronous", [False, True])
def test_vllm_s_own_schedulers_make_the_same_responses(model: str, asynchronous: bool) -> None:
    """The GPU's engines schedule a step ahead of its outputs, the CPU's do not."""
    theirs = vllm_scheduler(model, asynchronous, None)
    ours = vllm_scheduler(model, asynchronous, "tagpr_rl.backend.rollout.finished.scheduler")
    assert type(theirs) in type(ours).__mro__
    expected, outputs = served(theirs, int(asynchronous))
    actual, fewer = served(ours, int(asynchronous))
    assert [len(expected[f"r{i}"][0]) for i in range(3)] == [3, 5, 7]
    assert {name: actual[name] for name in ("r0", "r1", "r2")} == {name: expected[name] for name in ("r0", "r1", "r2")}
    assert fewer == 3 * 2 + 1 < outputs and ours._held == {}  # of the aborted one, its first token
