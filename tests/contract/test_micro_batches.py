"""Micro-batches of sequences of like length: little padding, the batch's order again, and verl's gradients."""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

os.environ.setdefault("VERL_PLATFORM", "cpu")

import torch
from made_models import small_model
from tensordict import TensorDict
from verl.utils import tensordict_utils as tu
from verl.workers.engine.fsdp import transformer_impl

from tagpr_rl.backend.platform_cpu.micro_batches import groups_of_like_length, padded_micro_batches, with_count
from tagpr_rl.backend.platform_cpu.workers import CpuFsdp2Engine, logprobs_by_cross_entropy

pytestmark = [pytest.mark.stack, pytest.mark.torch]
LENGTHS = (3, 9, 4, 8, 3, 10)
VOCABULARY = 29


def test_the_longest_come_first_and_padding_counts() -> None:
    # 10 and 9 fill 20 places; 8 and 4 fill 16 and a third row of 8 has no room; 3 and 3 remain.
    assert groups_of_like_length(LENGTHS, 20) == [[5, 1], [3, 2], [0, 4]]
    assert groups_of_like_length(LENGTHS, 5) == [[5], [1], [3], [2], [0], [4]]
    assert groups_of_like_length(LENGTHS, 60) == [[5, 1, 3, 2, 0, 4]]


@given(st.lists(st.integers(1, 50), min_size=1, max_size=30), st.integers(1, 200), st.integers(0, 5))
def test_every_row_has_one_group_within_the_limit(lengths: list[int], limit: int, more: int) -> None:
    groups = groups_of_like_length(lengths, limit)
    groups = with_count(groups, min(len(groups) + more, len(lengths)))
    assert sorted(row for group in groups for row in group) == list(range(len(lengths)))
    for group in groups:
        assert group and (len(group) == 1 or len(group) * max(lengths[row] for row in group) <= limit)


def test_a_process_with_fewer_groups_halves_its_largest() -> None:
    assert with_count([[5, 1, 3], [2]], 4) == [[5], [1], [3], [2]]
    with pytest.raises(ValueError, match="4 rows in 2 groups cannot become 5 groups"):
        with_count([[5, 1, 3], [2]], 5)


def jagged(rows: list[torch.Tensor]) -> torch.Tensor:
    return torch.nested.nested_tensor(rows, layout=torch.jagged)


def batch(limit: int) -> Any:
    """Six sequences; the loss covers each one's last two tokens."""
    generator = torch.Generator().manual_seed(1)
    ids = [torch.randint(1, VOCABULARY, (n,), generator=generator) for n in LENGTHS]
    fields = {
        "input_ids": jagged(ids),
        "position_ids": jagged([torch.arange(n) for n in LENGTHS]),
        "temperature": torch.ones(len(LENGTHS)),
        "loss_mask": jagged([(torch.arange(n) >= n - 2).long() for n in LENGTHS]),
    }
    made = TensorDict(fields, batch_size=[len(LENGTHS)])
    tu.assign_non_tensor(
        made, use_remove_padding=False, pad_token_id=0, use_dynamic_bsz=True, max_token_len_per_gpu=limit
    )
    tu.assign_non_tensor(made, return_model_output=True)
    return made


def update(limit: int, monkeypatch: pytest.MonkeyPatch, prepare: Any) -> tuple[Any, torch.Tensor, list[int]]:
    """(log-probabilities of the tokens in the batch's order, the embeddings' gradient, padded tokens of each pass)."""
    from verl.utils import torch_functional

    monkeypatch.setattr(torch_functional, "logprobs_from_logits_v2", logprobs_by_cross_entropy)
    monkeypatch.setattr(transformer_impl, "prepare_micro_batches", prepare)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda *_, **__: None)
    engine = object.__new__(CpuFsdp2Engine)
    engine.module = small_model("llama", VOCABULARY, tied=True)
    engine._autocast_dtype, engine.pad_to_length = torch.float32, False
    engine.engine_config = SimpleNamespace(entropy_checkpointing=False, use_no_sync_for_gradient_accumulation=False)
    engine.ulysses_sequence_parallel_size = 1
    engine.get_data_parallel_group, engine.get_data_parallel_size = lambda: None, lambda: 1
    engine.scaler = None
    padded: list[int] = []
    engine.module.model.embed_tokens.register_forward_hook(lambda *call: padded.append(call[1][0].numel()))

    def loss(model_output: Any, data: Any, **_: Any) -> tuple[torch.Tensor, dict[str, Any]]:
        return -model_output["log_probs"].values().sum(), {}

    done = engine.forward_backward_batch(batch(limit), loss)
    return done["model_output"]["log_probs"], engine.module.model.embed_tokens.weight.grad, padded


def test_an_update_is_verl_s_with_less_padding(monkeypatch: pytest.MonkeyPatch) -> None:
    verl_s = transformer_impl.prepare_micro_batches
    if hasattr(verl_s, "tagpr_padded"):
        verl_s = verl_s.__wrapped__
    wanted, gradient, wide = update(20, monkeypatch, verl_s)
    got, own, narrow = update(20, monkeypatch, padded_micro_batches(verl_s))
    assert narrow == [20, 16, 6] and sum(wide) > sum(narrow)
    assert got.offsets().tolist() == wanted.offsets().tolist()
    torch.testing.assert_close(got.values(), wanted.values(), rtol=0, atol=1e-5)
    torch.testing.assert_close(own, gradient, rtol=0, atol=1e-5)


def test_verl_still_balances_sums_of_lengths() -> None:
    """If this fails, verl knows padded sequences, and `little_padding` can go."""
    from verl.workers.engine.utils import prepare_micro_batches

    micro, rows = prepare_micro_batches(batch(20))
    assert len(micro) == 2 or any(len(group) * max(LENGTHS[row] for row in group) > 20 for group in rows)
