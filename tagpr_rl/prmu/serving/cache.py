"""A cache of arrays, bounded in entries and in bytes. It drops the least recently used ones. Imports no torch."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, Protocol, TypeVar


class Sized(Protocol):
    """An array or a tensor."""

    @property
    def nbytes(self) -> int:
        """Bytes of its elements."""


Value = TypeVar("Value", bound=Sized)


class ArrayCache(Generic[Value]):
    """Drops the least recently used values first. It does not keep a value larger than the whole bound."""

    def __init__(self, max_entries: int, max_bytes: int) -> None:
        self.max_entries, self.max_bytes = max_entries, max_bytes
        self.nbytes = 0
        self._entries: OrderedDict[Hashable, Value] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: Hashable) -> Value | None:
        """The value, marked as used last; None if the cache does not hold it."""
        value = self._entries.get(key)
        if value is not None:
            self._entries.move_to_end(key)
        return value

    def put(self, key: Hashable, value: Value) -> None:
        """Store `value`, and drop the oldest entries until both bounds hold."""
        old = self._entries.pop(key, None)
        self.nbytes += value.nbytes - (old.nbytes if old is not None else 0)
        self._entries[key] = value
        while len(self._entries) > self.max_entries or self.nbytes > self.max_bytes:
            _, dropped = self._entries.popitem(last=False)
            self.nbytes -= dropped.nbytes

    def clear(self) -> None:
        """Drop everything."""
        self._entries.clear()
        self.nbytes = 0
