"""At every hand-over of weights a checksum says whether the rollout server holds what the policy sent."""

from __future__ import annotations

import asyncio
import os
from types import SimpleNamespace
from typing import Any

import pytest

os.environ.setdefault("VERL_PLATFORM", "cpu")

import torch

from tagpr_rl.backend.forward.checksum import CHECKSUM, bit_sum, read_checksum, with_checksum
from tagpr_rl.backend.rollout.arrival import ADAPTER, Arrival, require
from tagpr_rl.types import TagprError

pytestmark = [pytest.mark.stack, pytest.mark.torch]
FUSED = {"q_proj": "qkv_proj", "k_proj": "qkv_proj", "v_proj": "qkv_proj"}


def test_the_sum_of_bits_by_hand() -> None:
    # 1.0 is 0x3F800000 in float32 and 0x3F80 in bfloat16, -0.0 is the sign bit alone.
    assert int(bit_sum(torch.tensor([1.0, -0.0, 0.0]))) == 0x3F800000 - 2**31
    assert int(bit_sum(torch.tensor([1.0, 1.0], dtype=torch.bfloat16))) == 2 * 0x3F80
    largest = torch.tensor([2**63 - 1, 1])
    assert int(bit_sum(largest)) == -(2**63)  # modulo 2^64
    pair = torch.tensor([[1.0, -0.0]])  # as one word, the second value above the first
    assert int(bit_sum(pair, words=True)) == 0x3F800000 + (-(2**31) << 32)
    assert int(bit_sum(torch.cat([torch.zeros(1), pair[0]])[1:], words=True)) == int(bit_sum(pair, words=True))
    matrix = torch.randn(5, 7)
    assert int(bit_sum(matrix.t())) == int(bit_sum(matrix)) != int(bit_sum(matrix.nextafter(torch.tensor(9.0))))


def sent(dtype: torch.dtype = torch.float32) -> list[tuple[str, torch.Tensor]]:
    """What a policy sends: a layer's three projections, an embedding, a head tied to it; then the checksum."""
    generator = torch.Generator().manual_seed(0)
    sizes = {"h.0.q_proj.weight": 4, "h.0.k_proj.weight": 2, "h.0.v_proj.weight": 2, "embed.weight": 3}
    weights = {name: torch.randn(rows, 4, generator=generator).to(dtype) for name, rows in sizes.items()}
    return list(with_checksum([*weights.items(), ("lm_head.weight", weights["embed.weight"])]))


def loaded(weights: list[tuple[str, torch.Tensor]], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """The engine's parameters: projections in one, the vocabulary padded with zeros, the tied head once."""
    own = {name: tensor.to(dtype) for name, tensor in weights}
    qkv = torch.cat([own[f"h.0.{part}_proj.weight"] for part in "qkv"])
    return {
        "h.0.qkv_proj.weight": qkv,
        "embed.weight": torch.cat([own["embed.weight"], torch.zeros(5, 4, dtype=dtype)]),
    }


def proof_of(weights: list[tuple[str, torch.Tensor]], held: dict[str, torch.Tensor]) -> dict[str, Any]:
    """The proof of a hand-over in two buckets."""
    arrival = Arrival()
    for bucket in (weights[:2], weights[2:]):
        arrival.expect(arrival.take(bucket), held, FUSED)
    return arrival.proof({name: [tensor] for name, tensor in held.items()})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_server_that_holds_the_weights_passes(dtype: torch.dtype) -> None:
    proof = proof_of(sent(), loaded(sent()[:-1], dtype))
    require(proof, 3)
    assert proof["compared"] == 2 and proof["unknown"] == 1  # qkv and the embedding; the tied head has no parameter
    assert proof["sent"] == proof["received"] == int(sum(bit_sum(tensor, words=True) for _, tensor in sent()[:-1]))


@pytest.mark.parametrize("name", ["h.0.qkv_proj.weight", "embed.weight"])
def test_one_changed_weight_of_the_server_stops_the_stage_with_both_numbers(name: str) -> None:
    held = loaded(sent()[:-1], torch.float32)
    right = int(bit_sum(held[name], words=True))
    held[name][1, 1] += 1e-3
    with pytest.raises(
        TagprError, match=rf"step 3: .*{name} should have the checksum {right} and has (-?\d+)"
    ) as error:
        require(proof_of(sent(), held), 3)
    assert str(int(bit_sum(held[name], words=True))) in str(error.value)


def test_a_parameter_that_lies_the_other_way_round_is_summed_value_by_value() -> None:
    """As some models keep a weight transposed: its rows are not those that were sent."""
    weights = list(with_checksum([("x.weight", torch.randn(4, 6))]))
    held = {"x.weight": weights[0][1].t().contiguous()}
    require(proof_of(weights, held), 1)


def test_weights_that_change_or_get_lost_on_the_way_stop_the_stage() -> None:
    held, changed = loaded(sent()[:-1], torch.float32), sent()
    changed[1][1][0, 0] = 7.0
    for weights in (changed, sent()[1:], sent()[:-1]):  # the last lacks the checksum itself
        with pytest.raises(TagprError, match="the tensors that arrived should have the checksum"):
            require(proof_of(weights, held), 3)


def test_an_adapter_is_compared_as_the_engine_scales_it() -> None:
    down, up = torch.randn(2, 4), torch.randn(6, 2)
    weights = list(with_checksum([("x.q_proj.lora_A.weight", down), ("x.q_proj.lora_B.weight", up)]))
    arrival = Arrival()
    arrival.expect_adapter(arrival.take(weights), torch.bfloat16, 1.7)
    slots = [torch.zeros(8, 4, dtype=torch.bfloat16), torch.zeros(6, 8, dtype=torch.bfloat16)]
    slots[0][:2], slots[1][:, :2] = down, up.to(torch.bfloat16) * 1.7
    require(arrival.proof({ADAPTER: slots}), 1)
    slots[1][0, 0] = 0.0
    with pytest.raises(TagprError, match="the LoRA adapter should have"):
        require(arrival.proof({ADAPTER: slots}), 1)


def test_the_policy_s_side_asks_the_server_after_each_hand_over(monkeypatch: pytest.MonkeyPatch) -> None:
    from verl.workers.rollout.vllm_rollout import vllm_rollout

    from tagpr_rl.backend.rollout.weights import TagprServerAdapter

    order: list[Any] = []

    async def update(self: Any, weights: Any, global_steps: Any = None, **kwargs: Any) -> None:
        order.append((global_steps, kwargs))

    async def proof() -> list[dict[str, Any]]:
        order.append("proof")
        return [{"sent": 5, "received": 5, "compared": 1, "unknown": 0}, {"sent": 5, "received": 6, "unknown": 0}]

    monkeypatch.setattr(vllm_rollout.ServerAdapter, "update_weights", update)
    adapter = object.__new__(TagprServerAdapter)
    adapter._has_server, adapter.server_handle = True, SimpleNamespace(weights_proof=SimpleNamespace(remote=proof))
    with pytest.raises(TagprError, match="checksum 5 and has 6"):
        asyncio.run(adapter.update_weights(iter([]), global_steps=4, peft_config=None))
    assert order == [(4, {"peft_config": None}), "proof"]


def test_every_engine_sends_the_checksum(monkeypatch: pytest.MonkeyPatch) -> None:
    from verl.workers.engine.fsdp.transformer_impl import FSDPEngineWithLMHead

    from tagpr_rl.backend.deepspeed import engine as deepspeed
    from tagpr_rl.backend.forward.loss_tokens import LossTokenEngine

    weight, given = torch.randn(3), {"peft": 1}
    monkeypatch.setattr(FSDPEngineWithLMHead, "get_per_tensor_param", lambda self, **_: ({"w": weight}.items(), given))
    weights, peft = object.__new__(LossTokenEngine).get_per_tensor_param(base_sync_done=True)
    (_, (name, total)) = list(weights)
    assert (name, read_checksum(total), peft) == (CHECKSUM, int(bit_sum(weight)), given)
    monkeypatch.setattr(deepspeed, "training_weights", lambda model: [("w", weight)])
    monkeypatch.setattr(deepspeed, "convert_weight_keys", lambda pair, model: pair)
    monkeypatch.setattr(deepspeed, "unfuse_moe_params", lambda pairs, kind: pairs)
    own = object.__new__(deepspeed.DeepSpeedEngine)
    own.module = SimpleNamespace(module=None)
    own.model_config = SimpleNamespace(hf_config=SimpleNamespace(model_type="qwen3"))
    assert [name for name, _ in own.get_per_tensor_param()[0]] == ["w", CHECKSUM]
