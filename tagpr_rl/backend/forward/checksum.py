"""A checksum of weights that travels with them from the policy to its rollout servers.

The sum does not depend on the order of the values, so it is the same for a fused parameter as for its parts together,
and zeros add nothing, so padding does not count.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch

CHECKSUM = "tagpr.checksum"
"""Name of the last tensor of a hand-over: the checksum of all others, an int64 as its bytes `[8]`. A transport that
packs tensors of any size need not align bytes."""
_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def bit_sum(tensor: torch.Tensor, *, words: bool = False) -> torch.Tensor:
    """Sum of a tensor's values, their bits read as integers, modulo 2^64: int64 `[]` on the tensor's device.

    `words`: read 8 bytes as one integer, which on the CPU takes a tenth of the time. Then only whole rows may change
    their places.
    """
    flat = tensor.detach().contiguous().view(-1)
    if words and flat.storage_offset() * flat.element_size() % 8:
        flat = flat.clone()
    return flat.view(torch.int64 if words else _INTEGERS[flat.element_size()]).sum(dtype=torch.int64)


def has_words(tensor: torch.Tensor) -> bool:
    """Whether the rows of a matrix are whole words of 8 bytes."""
    return tensor.dim() > 1 and tensor.shape[-1] * tensor.element_size() % 8 == 0


def with_checksum(weights: Iterable[tuple[str, torch.Tensor]]) -> Iterator[tuple[str, torch.Tensor]]:
    """The same (name, tensor) pairs, then their checksum. Every pair is summed as it passes."""
    total: torch.Tensor | None = None
    for name, tensor in weights:
        own = bit_sum(tensor, words=has_words(tensor))
        total = own if total is None else total + own.to(total.device)
        yield name, tensor
    if total is not None:
        yield CHECKSUM, total.reshape(1).view(torch.uint8)


def read_checksum(tensor: torch.Tensor) -> int:
    """The number in a hand-over's last tensor."""
    return int(tensor.clone().view(torch.int64).item())
