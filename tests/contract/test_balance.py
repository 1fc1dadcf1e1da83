"""Sequences are balanced as verl balances them, to the index, in steps that grow with their number alone."""

from __future__ import annotations

import importlib.util
import os
import random
from typing import Any

import pytest

os.environ.setdefault("VERL_PLATFORM", "cpu")
pytest.importorskip("verl")
pytestmark = [pytest.mark.stack, pytest.mark.torch]

from verl.utils import seqlen_balancing  # noqa: E402

from tagpr_rl.backend.trainer import balance  # noqa: E402


def verl_s() -> Any:
    """verl's own function, from a copy of its module that nothing has changed."""
    spec = importlib.util.find_spec("verl.utils.seqlen_balancing")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.karmarkar_karp


def test_parts_are_verl_s_ties_included() -> None:
    expected = verl_s()
    rng = random.Random(0)
    for _ in range(400):
        k, equal = rng.randint(1, 9), rng.random() < 0.5
        count = k * rng.randint(1, 9) if equal else rng.randint(k, 60)
        lengths = [rng.randint(1, rng.choice([2, 6, 1000])) for _ in range(count)]
        assert balance.balanced_parts(lengths, k, equal) == expected(lengths, k, equal), (lengths, k, equal)


def test_comparisons_grow_with_the_sequences_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four times the sequences. verl's own takes 16 times as many steps if the parts grow, too."""
    compare, counts = balance._Part.__lt__, [0]

    def counted(self: balance._Part, other: balance._Part) -> bool:
        counts[0] += 1
        return compare(self, other)

    monkeypatch.setattr(balance._Part, "__lt__", counted)

    def comparisons(count: int, k: int, equal: bool) -> int:
        rng = random.Random(1)
        counts[0] = 0
        balance.balanced_parts([rng.randint(200, 1400) for _ in range(count)], k, equal)
        return counts[0]

    assert comparisons(16_384, 800, False) < 6.5 * comparisons(4_096, 200, False)
    assert comparisons(16_384, 8, True) < 5 * comparisons(4_096, 8, True)


def test_verl_asks_ours_in_the_driver_and_in_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seqlen_balancing, "karmarkar_karp", None)
    balance.install()
    assert seqlen_balancing.karmarkar_karp is balance.balanced_parts
    # verl looks the name up at each call (seqlen_balancing.py:253), so one assignment reaches all its callers.
    parts = seqlen_balancing.get_seqlen_balanced_partitions([3, 1, 2, 4], 2, equal_size=True)
    assert sorted(parts) == [[0, 2], [1, 3]]
