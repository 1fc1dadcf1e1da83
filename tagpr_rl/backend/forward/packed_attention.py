"""Attention over packed sequences without flash-attn: torch's own kernel, one sequence after another.

verl removes padding by laying all sequences of a micro-batch into one row, and counts on flash-attn to keep them apart.
Under `sdpa` transformers keeps them apart with a mask `[T, T]` of the whole row (masking_utils.py:993), which costs T
bytes and T scores a token. Here each sequence is a causal call of its own, as in a batch of one: no mask, and its own
length squared. In a recipe this is `training.attention: packed_sdpa`.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from transformers import AttentionInterface

NAME = "packed_sdpa"


def packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    position_ids: torch.Tensor | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """(causal attention within each sequence `[1, T, heads, D]`, None), in the manner of transformers' functions.

    Args:
        module: the attention layer; not read.
        query: `[1, heads, T, D]`, the sequences one after another.
        key, value: `[1, key heads, T, D]`.
        attention_mask: must be None.
        dropout: of attention weights.
        scaling: factor of the scores.
        sliding_window: a token sees this many, itself included; None = all before it.
        position_ids: `[1, T]`; a 0 begins a sequence.
        options: what other families pass; soft caps and sinks are refused.

    Raises:
        ValueError: for a padded batch, or a model whose attention is of another kind.
    """
    refused = [name for name in ("softcap", "s_aux") if options.get(name) is not None]
    if query.shape[0] != 1 or attention_mask is not None or position_ids is None:
        refused.append("a padded batch")
    if refused:
        raise ValueError(f"training.attention={NAME} does not work with {', '.join(refused)}; use sdpa or eager")
    assert position_ids is not None
    lengths = sequence_lengths(position_ids)
    parts = zip(*(tensor.split(lengths, dim=2) for tensor in (query, key, value)), strict=True)
    outputs = []
    for q, k, v in parts:
        mask = window_mask(q.shape[2], sliding_window, q.device)
        outputs.append(
            F.scaled_dot_product_attention(
                q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=mask is None, scale=scaling,
                enable_gqa=q.shape[1] != k.shape[1],
            )
        )  # fmt: skip
    return torch.cat(outputs, dim=2).transpose(1, 2).contiguous(), None


def sequence_lengths(position_ids: torch.Tensor) -> list[int]:
    """Lengths of the sequences whose positions `[1, T]` stand one after another, each from 0 on.

    Kept on the tensor: all layers of a forward pass, and of its recomputation, have the same one, and reading it makes
    the host wait for the device.
    """
    known: list[int] | None = getattr(position_ids, "tagpr_lengths", None)
    if known is None:
        starts = (position_ids.flatten() == 0).nonzero().flatten().tolist()
        known = [end - start for start, end in zip(starts, [*starts[1:], position_ids.numel()], strict=True)]
        position_ids.tagpr_lengths = known  # type: ignore[attr-defined]
    return known


def window_mask(length: int, window: int | None, device: torch.device) -> torch.Tensor | None:
    """Boolean `[T, T]` of what each token sees of a sliding window; None if the window holds the whole sequence."""
    if window is None or window >= length:
        return None
    every = torch.ones(length, length, dtype=torch.bool, device=device)
    return every.tril().triu(1 - window)


AttentionInterface.register(NAME, packed_attention)
