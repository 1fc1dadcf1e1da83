"""Logits for the loss's tokens alone: verl's own log-probabilities, entropies and gradients, on both kinds of batch."""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any

import pytest
from made_models import ARCHITECTURES, small_model

os.environ.setdefault("VERL_PLATFORM", "cpu")

import torch
from tensordict import TensorDict
from verl.utils import tensordict_utils as tu
from verl.utils.torch_functional import entropy_from_logits
from verl.workers.engine.fsdp.transformer_impl import FSDPEngineWithLMHead

from tagpr_rl.backend.forward.loss_tokens import LossTokenEngine, hidden_indices, loss_positions

pytestmark = [pytest.mark.stack, pytest.mark.torch]
LENGTHS, RESPONSES = (7, 4, 9), (3, 1, 5)
VOCABULARY = 29


def jagged(rows: list[torch.Tensor]) -> torch.Tensor:
    return torch.nested.nested_tensor(rows, layout=torch.jagged)


def batch(kind: str, *, packed: bool = False) -> Any:
    """Three sequences; the loss covers the last 3, 1 and 5 tokens. `packed`: one row without padding."""
    generator = torch.Generator().manual_seed(1)
    ids = [torch.randint(1, VOCABULARY, (n,), generator=generator) for n in LENGTHS]
    masks = [torch.arange(n) >= n - r for n, r in zip(LENGTHS, RESPONSES, strict=True)]
    fields: dict[str, Any] = {
        "input_ids": jagged(ids),
        "position_ids": jagged([torch.arange(n) for n in LENGTHS]),
        "temperature": torch.tensor([1.0, 0.7, 1.3]),
    }
    if kind == "sft":
        fields["loss_mask"] = jagged([mask.long() for mask in masks])
    else:
        fields["responses"] = jagged([row[mask] for row, mask in zip(ids, masks, strict=True)])
        fields["loss_mask"] = jagged([torch.ones(r, dtype=torch.long) for r in RESPONSES])
    made = TensorDict(fields, batch_size=[3])
    tu.assign_non_tensor(made, use_remove_padding=packed, pad_token_id=0, calculate_entropy=True)
    return made


def outputs(
    base: type, kind: str, family: str, *, packed: bool
) -> tuple[dict[str, torch.Tensor], torch.Tensor, list[tuple[int, ...]]]:
    """(values of the loss's tokens, gradient of the embeddings, shapes of the logits) of a forward pass by `base`."""
    engine = object.__new__(base)
    engine.module = small_model(family, VOCABULARY, tied=kind == "sft")
    engine._autocast_dtype, engine.pad_to_length, engine.use_ulysses_sp = torch.float32, False, False
    engine.engine_config = SimpleNamespace(entropy_checkpointing=False, entropy_from_logits_with_chunking=False)
    engine.compute_entropy_from_logits = entropy_from_logits
    engine.get_data_parallel_group = lambda: None
    shapes: list[tuple[int, ...]] = []
    engine.module.lm_head.register_forward_hook(lambda *call: shapes.append(tuple(call[2].shape)))
    micro = batch(kind, packed=packed)
    positions = loss_positions(micro)
    assert positions is not None

    def loss(model_output: Any, **_: Any) -> tuple[torch.Tensor, dict[str, Any]]:
        kept.update({key: value.values()[positions] for key, value in model_output.items()})
        return -kept["log_probs"].sum(), {}

    kept: dict[str, torch.Tensor] = {}
    value, _ = engine.forward_step(micro, loss, forward_only=False)
    value.backward()
    return kept, engine.module.model.embed_tokens.weight.grad, shapes


@pytest.mark.parametrize("family", ARCHITECTURES)
@pytest.mark.parametrize("kind", ["sft", "grpo"])
@pytest.mark.parametrize("packed", [False, True])
def test_values_and_gradients_are_verl_s(kind: str, family: str, packed: bool) -> None:
    wanted, gradient, every = outputs(FSDPEngineWithLMHead, kind, family, packed=packed)
    got, own_gradient, few = outputs(LossTokenEngine, kind, family, packed=packed)
    assert every == [(1, sum(LENGTHS), VOCABULARY) if packed else (3, max(LENGTHS), VOCABULARY)]
    assert few == [(1, sum(RESPONSES), VOCABULARY)]
    for key in ("log_probs", "entropy"):
        torch.testing.assert_close(got[key], wanted[key], rtol=0, atol=1e-6)
    torch.testing.assert_close(own_gradient, gradient, rtol=0, atol=5e-6)
    assert wanted["entropy"].requires_grad and not got["entropy"].requires_grad


@pytest.mark.parametrize("kind", ["sft", "grpo"])
def test_positions_are_one_before_each_token_of_the_loss(kind: str) -> None:
    positions = loss_positions(batch(kind))
    assert positions is not None and positions.tolist() == [3, 4, 5, 9, 14, 15, 16, 17, 18]
    rows, columns = hidden_indices(batch(kind)["input_ids"].offsets(), positions, packed=False)
    assert rows.tolist() == [0, 0, 0, 1, 2, 2, 2, 2, 2] and columns.tolist() == [3, 4, 5, 2, 3, 4, 5, 6, 7]


def test_a_batch_that_asks_for_more_goes_verl_s_way() -> None:
    micro = batch("grpo")
    tu.assign_non_tensor(micro, calculate_sum_pi_squared=True)
    assert loss_positions(micro) is None


@pytest.mark.parametrize("strategy", ["fsdp2", "deepspeed"])
def test_every_device_has_this_engine(strategy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from verl.workers.engine import base

    import tagpr_rl.backend.deepspeed.engine
    import tagpr_rl.backend.platform_cpu.workers  # noqa: F401

    for device, vendor in (("cpu", "cpu"), ("cuda", "nvidia"), ("cuda", "amd")):
        monkeypatch.setattr(base, "get_device_name", lambda device=device: device)
        monkeypatch.setattr(base, "get_vendor", lambda vendor=vendor: vendor)
        assert issubclass(base.EngineRegistry.get_engine_cls("language_model", strategy), LossTokenEngine)


def test_the_entropy_weighs_nothing() -> None:
    """The engine gives the entropy no gradient: right as long as verl's coefficient is 0 and no recipe key sets it."""
    from tagpr_rl.backend.trainer.overrides import compose

    assert compose("ppo_trainer", {}).actor_rollout_ref.actor.entropy_coeff == 0
