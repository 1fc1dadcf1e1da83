"""PRMU's coherence term against numbers worked out by hand."""

from __future__ import annotations

import math

import pytest

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch


def made() -> tuple[torch.Tensor, ...]:
    """One row `a b | a c` and a pad: words on two axes, states that expect one axis or the other."""
    words = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, 2.0], [9.0, 9.0]]])
    before = torch.tensor([[[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [5.0, 5.0], [5.0, 5.0]]])
    ids = torch.tensor([[7, 8, 7, 9, 0]])
    mask = torch.tensor([[True, True, True, True, False]])
    return before, words, ids, mask, torch.tensor([2])


def test_a_tokens_probability_is_among_its_own_text_and_equal_tokens_count_together() -> None:
    from tagpr_rl.prmu.model import Coherence

    before, words, ids, mask, _ = made()
    actual = Coherence(2).log_probabilities(before, words, ids, mask)[0]
    # Logits of `a b a c`: state 1 expects axis 0: (1, 0, 1, 0); state 2 axis 1: (0, 1, 0, 2). The pad never counts.
    assert actual[1].item() == pytest.approx(math.log(2 * math.e / (2 * math.e + 2)))  # both a's
    assert actual[2].item() == pytest.approx(math.log(math.e**2 / (2 + math.e + math.e**2)))
    assert actual[0].item() == pytest.approx(math.log(1 / 4))  # state 0 expects nothing: b is one of four


def test_the_term_is_the_mean_over_the_responses_tokens_and_the_gate_weighs_them() -> None:
    from tagpr_rl.prmu.model import COHERENCE_GAIN, Coherence

    before, words, ids, mask, start = made()
    model = Coherence(2)
    two = model.log_probabilities(before, words, ids, mask)[0, 1:3]
    gated = torch.zeros_like(before)
    assert model(before, words, gated, ids, mask, start).item() == pytest.approx(COHERENCE_GAIN * two.mean().item())
    torch.nn.init.constant_(model.gate.weight, 1.0)
    gated[0, 1] = -50.0  # shuts the gate of the token after state 1
    assert model(before, words, gated, ids, mask, start).item() == pytest.approx(COHERENCE_GAIN * two[1].item() / 2)


def test_padding_changes_nothing() -> None:
    from tagpr_rl.prmu.model import Coherence

    before, words, ids, mask, start = made()
    model = Coherence(2)
    full = model(before, words, before, ids, mask, start)
    cut = model(before[:, :4], words[:, :4], before[:, :4], ids[:, :4], mask[:, :4], start)
    assert torch.allclose(full, cut)
