"""vLLM's engine with the project's scheduler and worker: the same responses in far fewer outputs, proven weights."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tagpr_rl.backend.rollout.arrival import require
from tagpr_rl.types import TagprError

os.environ.setdefault("VERL_PLATFORM", "cpu")
pytestmark = [pytest.mark.stack, pytest.mark.torch, pytest.mark.timeout(300)]
ROOT = Path(__file__).resolve().parents[2]
SCHEDULER = "tagpr_rl.backend.rollout.finished.scheduler"
BY_VLLM = """
import json, sys
from vllm import LLM, SamplingParams
from vllm.inputs import TokensPrompt
from vllm.sampling_params import RequestOutputKind

EXTENSION = "tagpr_rl.backend.rollout.vllm_worker.TagprWorkerExtension"

def engine(**more):
    llm = LLM(sys.argv[1], skip_tokenizer_init=True, dtype="float32", enforce_eager=True, max_model_len=96, seed=0,
              block_size=16, kv_cache_memory_bytes=%d << 10, distributed_executor_backend="uni", **more)
    core, counts = llm.llm_engine.engine_core, []
    get = core.get_output
    def counted():
        output = get()
        counts.append(len(output.outputs))
        return output
    core.get_output = counted
    return llm, counts, core.engine_core.scheduler

def sampling(tokens):
    return SamplingParams(temperature=0, max_tokens=tokens, logprobs=0, detokenize=False, stop_token_ids=list(range(9)))

def sampled(llm, batch, order, unseeded=None):
    # Responses by number, of requests that arrive in `order`, with a step of the engine after each.
    llm.reset_prefix_cache()
    loop, got = llm.llm_engine, {}
    def step():
        for one in loop.step():
            out = one.outputs[0]
            values = [place[t].logprob for t, place in zip(out.token_ids, out.logprobs)]
            got[int(one.request_id)] = [list(out.token_ids), values]
    for i in order:
        params = SamplingParams(temperature=1, seed=None if i == unseeded else i, max_tokens=20, logprobs=0,
                                detokenize=False, output_kind=RequestOutputKind.FINAL_ONLY,
                                extra_args={"tagpr_turn": {"batch": batch, "number": i, "count": 12}})
        loop.add_request(str(i), prompts[i], params)
        step()
    while loop.has_unfinished_requests():
        step()
    return [got[i] for i in range(12)]

def hand_overs(llm):
    # What the engine says after two hand-overs of the policy's weights, and after one of its own weights changed.
    import asyncio, threading
    from safetensors.torch import load_file
    from tagpr_rl.backend.forward.checksum import with_checksum
    from tagpr_rl.backend.rollout.weights import TimedWeightSender, socket_address

    weights, proofs = load_file(sys.argv[1] + "/model.safetensors"), []
    for factor in (1.0, 1.25):
        sender = TimedWeightSender(socket_address(0, 0), bucket_size_mb=1, use_shm=True)
        changed = with_checksum((name, weight * factor) for name, weight in weights.items())
        thread = threading.Thread(target=lambda: asyncio.run(sender.async_send_weights(changed)))
        thread.start()
        llm.collective_rpc("update_weights_from_ipc", kwargs={"use_shm": True})
        thread.join()
        proofs += llm.collective_rpc("weights_proof")
    llm.apply_model(lambda model: model.model.layers[1].mlp.gate_up_proj.weight.data[3, 5].add_(1e-3))
    return proofs + llm.collective_rpc("weights_proof")

prompts = [TokensPrompt(prompt_token_ids=[(7 * i + 3 * j) %% 250 + 1 for j in range(5 + i)]) for i in range(12)]
result = {}
for name, more in (("vllm", {}), ("ours", {"scheduler_cls": sys.argv[2], "worker_extension_cls": EXTENSION})):
    llm, counts, scheduler = engine(**more)
    preempted = []
    preempt = scheduler._preempt_request
    def counting(request, *args, **kwargs):
        preempted.append(request.request_id)
        return preempt(request, *args, **kwargs)
    scheduler._preempt_request = counting
    done = llm.generate(prompts, [sampling(1 + 5 * i) for i in range(12)], use_tqdm=False)
    result[name] = {
        "responses": [
            [list(o.token_ids), [place[t].logprob for t, place in zip(o.token_ids, o.logprobs)], o.finish_reason]
            for o in (one.outputs[0] for one in done)
        ],
        "outputs": sum(counts), "preempted": len(preempted),
    }
    if name == "ours":
        loop = llm.llm_engine
        for i in (8, 9):
            params = sampling(40)
            params.output_kind = RequestOutputKind.FINAL_ONLY
            loop.add_request(str(i), prompts[i], params)
        for _ in range(5):
            loop.step()
        result["held"] = len(scheduler._held)
        loop.abort_request(["8"])
        ended = []
        while loop.has_unfinished_requests():
            ended += loop.step()
        result["ended"] = [[o.request_id, list(o.outputs[0].token_ids)] for o in ended]
        result["left"] = len(scheduler._held)
        numbers = list(range(12))
        result["in_order"] = sampled(llm, "a", numbers)
        result["reversed"] = sampled(llm, "b", numbers[::-1])
        result["one_unseeded"] = sampled(llm, "c", numbers, unseeded=11)
        result["gathered"] = len(scheduler._gathered)
        result["proofs"] = hand_overs(llm)
    del llm
llm, _, _ = engine(max_num_batched_tokens=16, max_num_seqs=8)  # 12 prompts of 5 to 16 tokens: some are split
try:
    llm.generate(prompts, [SamplingParams(temperature=1, seed=i, max_tokens=2) for i in range(12)], use_tqdm=False)
    result["split"] = ""
except Exception as error:
    result["split"] = str(error)
json.dump(result, open(sys.argv[3], "w"))
"""


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    import torch
    import transformers

    folder = tmp_path_factory.mktemp("engine")
    torch.manual_seed(0)
    config = transformers.Qwen3Config(
        vocab_size=256, hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, head_dim=32, max_position_embeddings=128, initializer_range=0.5,
    )  # fmt: skip
    transformers.Qwen3ForCausalLM(config).save_pretrained(folder / "hf")
    command = [sys.executable, "-c", BY_VLLM % 256, str(folder / "hf"), SCHEDULER, str(folder / "out.json")]
    environment = os.environ | {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "TORCH_COMPILE_DISABLE": "1"}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    result: dict[str, Any] = json.loads((folder / "out.json").read_text())
    return result


def test_tokens_and_log_probabilities_are_the_same_to_the_bit(engines: dict[str, Any]) -> None:
    assert engines["ours"]["responses"] == engines["vllm"]["responses"]
    assert {reason for _, _, reason in engines["ours"]["responses"]} == {"stop", "length"}
    assert engines["ours"]["preempted"] == engines["vllm"]["preempted"] > 0


def test_a_response_takes_two_outputs_and_not_one_a_token(engines: dict[str, Any]) -> None:
    lengths = [len(tokens) for tokens, _, _ in engines["vllm"]["responses"]]
    assert engines["vllm"]["outputs"] == sum(lengths)
    assert engines["ours"]["outputs"] == sum(min(2, length) for length in lengths)


def test_an_aborted_response_leaves_nothing_held_and_the_other_is_whole(engines: dict[str, Any]) -> None:
    assert engines["held"] == 2 and engines["left"] == 0
    ((name, tokens),) = engines["ended"]
    expected = engines["vllm"]["responses"][9][0]
    assert name == "9" and tokens == expected[:40] and len(tokens) > 5


def test_requests_of_one_batch_begin_together_whatever_order_they_arrive_in(engines: dict[str, Any]) -> None:
    """Equal to the bit, log-probabilities too: the engine's batches are the same."""
    assert engines["in_order"] == engines["reversed"]
    assert len({tuple(tokens) for tokens, _ in engines["in_order"]}) == 12 and engines["gathered"] == 0


def test_vllm_ignores_all_seeds_if_one_request_of_a_batch_has_none(engines: dict[str, Any]) -> None:
    """Why every request has one (topk_topp_sampler.py:203). If this fails, vLLM honours them, and it need not."""
    others = [tokens for tokens, _ in engines["one_unseeded"][:11]]
    assert others != [tokens for tokens, _ in engines["in_order"][:11]]


def test_vllm_still_cannot_split_a_seeded_prompt_on_the_cpu(engines: dict[str, Any]) -> None:
    """Why prompts are not split. If this fails, `enable_chunked_prefill` may be on again."""
    assert "CPU Generator does not use offset" in engines["split"]


def test_the_engine_holds_what_the_policy_sent_and_a_changed_weight_shows(engines: dict[str, Any]) -> None:
    """19 parameters of its own: 8 a layer with projections in one, embedding, norm, head."""
    first, second, changed = engines["proofs"]
    for proof in (first, second):
        require(proof, 1)
        assert proof["compared"] == 19 and proof["unknown"] == 0
    assert first["sent"] != second["sent"] == changed["sent"] == changed["received"]
    assert changed["differs"] == "model.layers.1.mlp.gate_up_proj.weight"
    with pytest.raises(TagprError, match=f"checksum {changed['expected']} and has {changed['held']}"):
        require(changed, 2)
