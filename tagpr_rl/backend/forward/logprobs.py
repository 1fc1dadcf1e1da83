"""Log-probabilities and entropies of tokens in chunks: four bytes of memory per token and vocabulary entry.

verl 0.9.1 keeps the logits, their fp32 softmax and the entropy's graph of all tokens at once, and without flash-attn
it makes one Python iteration per token (verl/utils/torch_functional.py:197, :250).
"""

from __future__ import annotations

from typing import Any

import torch

CHUNK_ENTRIES = 1 << 22
"""Logits that are worked on at a time: 27 tokens of a vocabulary of 151,936."""


def token_logprobs(
    logits: torch.Tensor, labels: torch.Tensor, temperature: torch.Tensor, *, entropies: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """(log-probabilities of `labels`, entropies in nats or None), both fp32 `[N]`; the entropies have no gradient.

    Logits are divided by the temperature in fp32, as vLLM's sampler does; verl divides bf16 logits in bf16
    (fsdp/transformer_impl.py:104). At temperature 1 values and gradients equal verl's to the bit.

    Args:
        logits: `[N, V]`, bf16 or fp32. Kept for the backward pass, which adds one tensor of the same size.
        labels: `[N]`, token ids.
        temperature: `[N]`, above 0.
        entropies: whether the entropies are computed.
    """
    apply: Any = _TokenLogprobs.apply
    logprobs, entropy = apply(logits, labels, temperature.float(), entropies)
    return logprobs, entropy if entropies else None


class _TokenLogprobs(torch.autograd.Function):
    """Forward and backward pass in chunks of tokens; the backward pass computes each chunk's softmax again."""

    @staticmethod
    def forward(
        ctx: Any, logits: torch.Tensor, labels: torch.Tensor, temperature: torch.Tensor, entropies: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(log-probabilities, entropies), fp32 `[N]`; without `entropies` the second is empty."""
        ctx.save_for_backward(logits, labels, temperature)
        logprobs = torch.empty(labels.shape, dtype=torch.float32, device=logits.device)
        entropy = torch.empty_like(logprobs) if entropies else logprobs.new_empty(0)
        for part in _chunks(logits):
            every = _log_softmax(logits[part], temperature[part])
            logprobs[part] = _chosen(every, labels[part])
            if entropies:
                entropy[part] = -every.exp().mul_(every).sum(-1)
        ctx.mark_non_differentiable(entropy)
        return logprobs, entropy

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Gradient of the logits `[N, V]` in their own dtype."""
        logits, labels, temperature = ctx.saved_tensors
        gradient = torch.empty_like(logits)
        for part in _chunks(logits):
            with torch.enable_grad():
                chunk = logits[part].detach().requires_grad_()
                logprobs = _chosen(_log_softmax(chunk, temperature[part]), labels[part])
            (gradient[part],) = torch.autograd.grad(logprobs, chunk, gradients[0][part])
        return gradient, None, None, None


def _chunks(logits: torch.Tensor) -> list[slice]:
    """Slices of the tokens of `logits` `[N, V]`."""
    size = max(1, CHUNK_ENTRIES // logits.shape[-1])
    return [slice(start, start + size) for start in range(0, logits.shape[0], size)]


def _log_softmax(logits: torch.Tensor, temperature: torch.Tensor) -> torch.Tensor:
    """fp32 `[n, V]` of logits `[n, V]` and temperatures `[n]`."""
    return torch.log_softmax(logits.float() / temperature.unsqueeze(-1), dim=-1)


def _chosen(every: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The entry `labels` `[n]` of each row of `[n, V]`."""
    return every.gather(-1, labels.unsqueeze(-1)).squeeze(-1)
