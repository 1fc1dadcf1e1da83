"""verl's balancing of sequences over processes and micro-batches, in the time of a sort.

verl 0.9.1 (utils/seqlen_balancing.py:49) keeps a list of all k parts for each of n sequences and sorts it at every
merge: k * n * log k steps, and k grows with n if micro-batches have a number of tokens. The same differencing method
here keeps the parts that hold something. Its parts are verl's to the last index, ties included.
"""

from __future__ import annotations

import heapq
from bisect import insort
from collections.abc import Sequence
from typing import Any

_FEW = 8
"""More parts than one in so many are sorted together, and not put into their places one by one."""


class _Part:
    """Sequences that stay together: (index, length) in the order of arrival."""

    __slots__ = ("items", "total")

    def __init__(self, index: int, length: int) -> None:
        self.items, self.total = [(index, length)], length

    def __lt__(self, other: _Part) -> bool:
        if self.total != other.total:
            return self.total < other.total
        return (len(self.items), self.items) < (len(other.items), other.items)

    def take(self, other: _Part) -> _Part:
        """This part with the other's sequences behind its own."""
        self.items += other.items
        self.total += other.total
        return self


class _Division:
    """A division of some sequences into at most `k` parts that are not empty, smallest first."""

    __slots__ = ("k", "parts")

    def __init__(self, parts: list[_Part], k: int) -> None:
        self.parts, self.k = parts, k

    @property
    def spread(self) -> int:
        """Total of the largest part above the smallest; a part that holds nothing is the smallest."""
        return self.parts[-1].total - (self.parts[0].total if len(self.parts) == self.k else 0)

    def __lt__(self, other: _Division) -> bool:
        """Whether this is merged first: the larger spread, then the larger first part."""
        own, others = self.spread, other.spread
        return own > others if own != others else other.parts[-1] < self.parts[-1]

    def merge(self, other: _Division) -> None:
        """Add each of the other's parts, from its largest on, to this one's smallest."""
        shared = max(0, len(self.parts) + len(other.parts) - self.k)
        changed = [self.parts[i].take(other.parts[shared - 1 - i]) for i in range(shared)] + other.parts[shared:]
        del self.parts[:shared]
        if len(changed) * _FEW > len(self.parts):
            self.parts += changed
            self.parts.sort()
        else:
            for part in changed:
                insort(self.parts, part)


def balanced_parts(seqlen_list: Sequence[int], k_partitions: int, equal_size: bool) -> list[list[int]]:
    """Indices of the sequences in each of `k_partitions` parts of like total length, the largest part first.

    The largest differencing method; `equal_size`: each part has as many sequences. The arguments are verl's.
    """
    ordered = sorted((length, index) for index, length in enumerate(seqlen_list))
    step = k_partitions if equal_size else 1
    assert len(ordered) % step == 0, f"{len(ordered)} sequences cannot be divided by {step}"
    heap: list[_Division] = []
    for first in range(0, len(ordered), step):
        parts = sorted(_Part(index, length) for length, index in ordered[first : first + step])
        heapq.heappush(heap, _Division(parts, k_partitions))
    while len(heap) > 1:
        largest = heapq.heappop(heap)
        largest.merge(heapq.heappop(heap))
        heapq.heappush(heap, largest)
    return [[index for index, _ in part.items] for part in reversed(heap[0].parts)]


def install() -> None:
    """Let verl balance with `balanced_parts`, in this process."""
    from verl.utils import seqlen_balancing

    module: Any = seqlen_balancing
    module.karmarkar_karp = balanced_parts
