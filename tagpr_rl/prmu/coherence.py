"""Does a response hang together? How probable each of its tokens is among the words of its own text."""

from __future__ import annotations

import torch
from torch import Tensor, nn

GAIN = 8.0
"""Score of one nat of mean log-probability at the start."""
_NEVER = -1e9


class Coherence(nn.Module):
    """A user-independent term: the mean log-probability of the response's tokens, each among the text's own tokens.

    A thought that says "so fantasy" before the answer "romance" is wrong whoever asks, and a model that sees every
    word only as it agrees with the user does not notice. The backbone's last state before a token expects what comes;
    the candidates are the tokens of question and response, as in a pointer network (arXiv 1506.03134), so that no
    vocabulary-sized output is needed. A gate says which tokens count: names from a profile that is not in the text
    cannot be expected. Ours.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.expect = nn.Linear(dim, dim, bias=False)
        nn.init.eye_(self.expect.weight)  # with tied embeddings this is the language model's own expectation
        self.gate = nn.Linear(dim, 1)
        nn.init.zeros_(self.gate.weight)
        nn.init.zeros_(self.gate.bias)
        self.strength = nn.Parameter(torch.ones(1))

    def log_probabilities(self, before: Tensor, words: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        """`[R, T - 1]`: log-probability of tokens 1..T-1 among all tokens of their row; equal tokens count together.

        `before`: the backbone's last states `[R, T, D]`; `words`: its embeddings `[R, T, D]`; `ids`, `mask` `[R, T]`.
        """
        logits = self.expect(before[:, :-1]) @ words.transpose(1, 2)  # [R, T - 1, T]
        logits = logits.masked_fill(~mask[:, None, :], _NEVER)
        same = ids[:, 1:, None] == ids[:, None, :]
        return logits.masked_fill(~same, _NEVER).logsumexp(-1) - logits.logsumexp(-1)

    def forward(self, before: Tensor, words: Tensor, gated: Tensor, ids: Tensor, mask: Tensor, start: Tensor) -> Tensor:
        """The term `[R]`, at most 0 while `strength` is positive. `gated` `[R, T, D]`: what the gate reads."""
        place = torch.arange(1, ids.shape[1], device=ids.device)
        counted = (mask[:, 1:] & (place >= start[:, None])).float()
        weight = 2 * torch.sigmoid(self.gate(gated[:, :-1]).squeeze(-1)) * counted
        found = self.log_probabilities(before, words, ids, mask)
        return GAIN * self.strength * (weight * found).sum(1) / counted.sum(1)
