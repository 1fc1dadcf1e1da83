"""bench/prmu_precision.py's arithmetic, by hand."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("ray")
pytestmark = [pytest.mark.stack, pytest.mark.torch]


@pytest.fixture(scope="module")
def bench(root: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("bench_prmu_precision", root / "bench" / "prmu_precision.py")
    assert spec is not None and spec.loader is not None
    module, path = importlib.util.module_from_spec(spec), list(sys.path)
    sys.path.insert(0, str(root / "bench"))
    spec.loader.exec_module(module)
    sys.path[:] = path
    return module


def test_tf32_has_ten_bits_of_mantissa_and_ties_go_to_even(bench: ModuleType) -> None:
    given = torch.tensor([1 + 2**-10, 1 + 2**-11, 1 + 3 * 2**-11, -1 - 2**-12, 3.0, 0.0])
    assert bench.rounded(given).tolist() == [1 + 2**-10, 1.0, 1 + 2**-9, -1.0, 3.0, 0.0]
    with bench.Tf32():
        product = torch.nn.functional.linear(torch.tensor([[1 + 2**-11]]), torch.tensor([[3.0]]))
    assert product.item() == 3.0


def test_ranks_and_changed_orders(bench: ModuleType) -> None:
    assert bench.ranks([0.3, 0.1, 0.3, 0.2]).tolist() == [3.5, 1.0, 3.5, 2.0]
    # Of three pairs the reference ties one; one of the others is turned round.
    reference, other = [0.1, 0.2, 0.2, 0.4], [0.3, 0.2, 0.1, 0.4]
    assert bench.changed(reference, other, [(0, 1), (1, 2), (2, 3)]) == {"pairs": 2, "changed": 0.5}
    figures = bench.effect(reference, reference, [(0, 1)], [(3, 0), (0, 3)])
    assert figures["rank_correlation"] == pytest.approx(1.0) and figures["accuracy"] == 0.5
    assert figures["same_question"]["changed"] == figures["largest_change"] == 0.0
