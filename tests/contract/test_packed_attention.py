"""Packed sequences by torch's own attention: verl's padded values and gradients, and no sequence sees another."""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any

import pytest
from made_models import ARCHITECTURES, small_model

os.environ.setdefault("VERL_PLATFORM", "cpu")

import torch
from tensordict import TensorDict
from torch.utils._python_dispatch import TorchDispatchMode
from verl.utils import tensordict_utils as tu
from verl.workers.engine.fsdp.transformer_impl import FSDPEngineWithLMHead

from tagpr_rl.backend.forward.loss_tokens import LossTokenEngine
from tagpr_rl.backend.forward.packed_attention import NAME, packed_attention, sequence_lengths, window_mask

pytestmark = [pytest.mark.stack, pytest.mark.torch]
LENGTHS, RESPONSES, VOCABULARY = (7, 1, 40, 12), (3, 1, 5, 11), 29


def tokens() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(1, VOCABULARY, (length,), generator=generator) for length in LENGTHS]


def forward(base: type, model: Any, ids: list[torch.Tensor], *, packed: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """(log-probabilities of all tokens in a row, gradient of the embeddings) with every later token in the loss."""
    engine = object.__new__(base)
    engine.module, engine._autocast_dtype = model, torch.float32
    engine.pad_to_length = engine.use_ulysses_sp = False
    engine.engine_config = SimpleNamespace(entropy_checkpointing=False)
    engine.get_data_parallel_group = lambda: None
    masks = [(torch.arange(len(row)) >= len(row) - r).long() for row, r in zip(ids, RESPONSES, strict=True)]
    rows = {"input_ids": ids, "position_ids": [torch.arange(len(row)) for row in ids], "loss_mask": masks}
    fields = {key: torch.nested.nested_tensor(value, layout=torch.jagged) for key, value in rows.items()}
    batch = TensorDict({**fields, "temperature": torch.ones(len(ids))}, batch_size=[len(ids)])
    tu.assign_non_tensor(batch, use_remove_padding=packed, pad_token_id=0)
    kept: list[torch.Tensor] = []

    def loss(model_output: Any, **_: Any) -> tuple[torch.Tensor, dict[str, Any]]:
        counted = torch.roll(torch.cat(masks), -1)
        kept.append((model_output["log_probs"].values() * counted).detach())
        return -(model_output["log_probs"].values() * counted).sum() / counted.sum(), {}

    value, _ = engine.forward_step(batch, loss, forward_only=False)
    model.zero_grad()
    value.backward()
    return kept[0], model.model.embed_tokens.weight.grad.clone()


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("family", ARCHITECTURES)
def test_values_and_gradients_are_those_of_padded_sequences(family: str, recompute: bool) -> None:
    model = small_model(family, VOCABULARY, tied=True)
    if family == "gemma3":  # shorter than the longest sequence
        for layer in model.model.layers:
            layer.self_attn.sliding_window = 8 if layer.self_attn.is_sliding else None
        model.config.sliding_window = model.model.config.sliding_window = 8
    wanted, gradient = forward(FSDPEngineWithLMHead, model, tokens(), packed=False)
    model.set_attn_implementation(NAME)
    if recompute:
        model.train().gradient_checkpointing_enable({"use_reentrant": False})
    got, own_gradient = forward(LossTokenEngine, model, tokens(), packed=True)
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-5)
    torch.testing.assert_close(own_gradient, gradient, rtol=0, atol=1e-6)


def test_no_sequence_sees_another() -> None:
    model = small_model("qwen3", VOCABULARY, tied=True)
    model.set_attn_implementation(NAME)
    before, _ = forward(LossTokenEngine, model, tokens(), packed=True)
    changed = tokens()
    changed[2] = changed[2].flip(0)
    after, _ = forward(LossTokenEngine, model, changed, packed=True)
    start, end = sum(LENGTHS[:2]), sum(LENGTHS[:3])
    # the last position of a sequence is not in the loss
    assert torch.equal(before[: start - 1], after[: start - 1]) and torch.equal(before[end:], after[end:])
    assert not torch.equal(before[start : end - 1], after[start : end - 1])


class Shapes(TorchDispatchMode):
    """Elements of the largest tensor that an operator made."""

    largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.largest = max(self.largest, result.numel())
        return result


def test_nothing_is_quadratic_in_the_row_as_it_is_under_sdpa() -> None:
    model = small_model("qwen3", VOCABULARY, tied=True)
    ids = torch.randint(1, VOCABULARY, (1, 512))
    positions = torch.arange(64).repeat(8).unsqueeze(0)
    largest = {}
    for name in ("sdpa", NAME):
        model.set_attn_implementation(name)
        with torch.no_grad(), Shapes() as shapes:
            model.model(input_ids=ids, position_ids=positions, use_cache=False)
        largest[name] = shapes.largest
    assert largest["sdpa"] == 512 * 512  # this test fails once transformers does without
    assert largest[NAME] == 512 * 48  # the feed-forward layer's inner states


def test_lengths_and_windows_by_hand() -> None:
    positions = torch.tensor([[0, 1, 2, 0, 0, 1]])
    assert sequence_lengths(positions) == [3, 1, 2] == positions.tagpr_lengths  # type: ignore[attr-defined]
    assert window_mask(3, None, positions.device) is None and window_mask(3, 3, positions.device) is None
    mask = window_mask(3, 2, positions.device)
    assert mask is not None and mask.int().tolist() == [[1, 0, 0], [1, 1, 0], [0, 1, 1]]


def test_what_it_does_not_compute_is_refused() -> None:
    states, positions, module = torch.zeros(1, 2, 3, 4), torch.arange(3)[None], torch.nn.Identity()
    packed_attention(module, states, states, states, None, position_ids=positions)
    with pytest.raises(ValueError, match="a padded batch; use sdpa or eager"):
        packed_attention(module, *[states.repeat(2, 1, 1, 1)] * 3, None, position_ids=positions)
    with pytest.raises(ValueError, match="softcap"):
        packed_attention(module, states, states, states, None, position_ids=positions, softcap=50.0)
